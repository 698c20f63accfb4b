"""Reading checkpoints without executing anything that is in them."""

import io
import json
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Enough to know a text from weights.
_HEAD = 512


class UnreadableError(ValueError):
    """A file is no checkpoint, a damaged one, or one that asks to execute something."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of PyTorch, safetensors, or a pickle of arrays (Detectron2's ``.pkl``).

    Only tensors, arrays and plain values are read; whatever else is in a file is never executed.

    Returns:
        what the file holds. Of a safetensors file, the tensors under "model" and, beside them,
        what its metadata say.

    Raises:
        UnreadableError: the file is something else, is damaged, or holds other objects; the
            message names them.
        OSError: it cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    problem = what_text_is_it(head)
    if problem:
        raise UnreadableError(f"{path} is {problem}")
    try:
        if _is_safetensors(path, head):
            return _read_safetensors(path)
        content = _read_pickled(path)
    except (UnreadableError, OSError, MemoryError):
        raise
    except Exception as error:  # each reader has its own ways of telling that a file is damaged
        raise UnreadableError(f"{path} {_reason(error)}") from error
    if isinstance(content, dict):
        _check_tensors(path, content)
    else:
        raise UnreadableError(f"{path} is of type {type(content).__name__}, not a dict of tensors")
    return content


def _is_safetensors(path: Path, head: bytes) -> bool:
    # By content, for files are renamed; but what is called a pickle is never something else too.
    return head[8:9] == b"{" and path.suffix not in (".pkl", ".pyth")


def _check_tensors(path: Path, content: dict[Any, Any], depth: int = 0) -> None:
    """Refuse tensors that are no plain arrays of numbers, and nestings without an end."""
    if depth > 8:
        raise UnreadableError(f"{path} nests dicts in dicts more than 8 deep")
    for key, value in content.items():
        if isinstance(value, dict):
            _check_tensors(path, value, depth + 1)
        elif isinstance(value, torch.Tensor) and (
            value.layout != torch.strided or value.is_meta or value.is_quantized
        ):
            kind = (
                "meta" if value.is_meta else value.layout if not value.is_quantized else value.dtype
            )
            raise UnreadableError(
                f"{path}: {key} is a tensor of kind {kind}, which is not supported"
            )


def _read_pickled(path: Path) -> Any:
    """A file of torch.save or, as Detectron2's, a pickle of arrays."""
    if path.suffix == ".pkl":
        return _read_arrays(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        with path.open("rb") as stream:
            is_zip = stream.read(2) == b"PK"
        if is_zip or _UNSAFE.search(str(error)):
            raise
        content = _read_arrays(path)
        if not isinstance(content, dict):  # the beginning of a file of torch.save that was cut off
            raise
        return content


def what_text_is_it(head: bytes) -> str | None:
    """What a file that begins like this is, in words; None if it may be a checkpoint."""
    text = head.lstrip().lower()
    if not head:
        return "empty"
    if text.startswith((b"<!doctype html", b"<html")) or b"<html" in text:
        return "an HTML page: a server's answer saved in place of the weights"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML page: a server's answer saved in place of the weights"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: `git lfs pull` fetches the weights that it stands for"
    # torch and pickle write control characters early on; texts have none.
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "a text, not weights"
    return None


_UNSAFE = re.compile(r"GLOBAL (\S+)|[Uu]nsupported (?:class|global)\S* (?!GLOBAL)(\S+)")
_DAMAGED = re.compile(
    r"central directory|EOF|corrupt|truncat|failed reading|ran out|too (short|large)|[Ii]ncomplete"
    r"|[Ii]nvalid ?[Hh]eader|PytorchStreamReader"
)


def _reason(error: Exception) -> str:
    """What is wrong with a file, from the words of whatever was reading it."""
    message = str(error)
    unsafe = _UNSAFE.search(message)
    if unsafe:
        name = next(filter(None, unsafe.groups())).strip("`'\".,")
        return (
            f"holds Python objects besides tensors ({name}) and was not loaded, because reading "
            "them could execute anything; save nothing but its state dict, "
            'torch.save({"model": model.state_dict()}, ...), where it comes from'
        )
    if isinstance(error, EOFError) or _DAMAGED.search(message):
        return "is damaged or cut off; fetch it again"
    if isinstance(error, pickle.UnpicklingError):  # PyTorch's advice would be to unpickle it all
        return "is no checkpoint, or a damaged one"
    first = message.strip().splitlines()[0] if message.strip() else ""
    return f"is no readable checkpoint: {type(error).__name__}: {first}".rstrip(": ")


def read_beside_weights(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds beside its weights, which stay on the disk.

    Raises:
        UnreadableError, OSError: as :func:`read_checkpoint`.
    """
    path = Path(path)
    with path.open("rb") as stream:
        head = stream.read(9)
    if _is_safetensors(path, head):
        return _read_safetensors(path, weights=False)
    # Files that are no archives, as torch.save wrote before 1.6, cannot be mapped.
    is_zip = head.startswith(b"PK")
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    return content if isinstance(content, dict) else {}


def _read_safetensors(path: Path, weights: bool = True) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise UnreadableError(
            f"{path} is read by safetensors, which is not installed: pip install safetensors"
        ) from None
    content: dict[str, Any] = {}
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        if weights:
            content["model"] = {key: file.get_tensor(key) for key in keys}
        metadata = file.metadata() or {}
    for key, value in metadata.items():
        try:
            content.setdefault(key, json.loads(value, object_hook=_integer_keys))
        except json.JSONDecodeError:
            content.setdefault(key, value)
    return content


def _integer_keys(content: dict[str, Any]) -> dict[Any, Any]:
    """JSON has no integers for keys: category ids come back as texts."""
    if content and all(re.fullmatch(r"-?\d+", key) for key in content):
        return {int(key): value for key, value in content.items()}
    return content


# What arrays are pickled with, in the names of NumPy 1 and 2.
_ARRAY_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}
for _core in ("core", "_core"):
    _module = f"numpy.{_core}.multiarray"
    _ARRAY_GLOBALS[_module, "_reconstruct"] = np.empty(0).__reduce__()[0]
    _ARRAY_GLOBALS[_module, "scalar"] = np.float64(0).__reduce__()[0]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_GLOBALS:
            return _ARRAY_GLOBALS[module, name]
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _read_arrays(path: Path) -> dict[str, Any]:
    return _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
