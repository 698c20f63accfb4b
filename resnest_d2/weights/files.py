"""Files of weights: one schema, read without executing anything in a file, written as a whole."""

import errno
import io
import json
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import replacing
from . import input_format
from .convert import Conversion, UnreadableError
from .input_format import InputFormat

ENDINGS = (".pth", ".safetensors")
# Training keeps under these keys what it knows of its classes and its images, and its config.
CLASSES_KEY, INPUT_KEY, CONFIG_KEY = "classes", "input", "config"
# The metadata of a data set that naming and drawing predictions takes.
CLASS_METADATA = (
    *("thing_classes", "thing_dataset_id_to_contiguous_id"),
    *("stuff_classes", "stuff_dataset_id_to_contiguous_id"),
    *("keypoint_names", "keypoint_connection_rules"),
)
_TENSORS = ("model", "classifier")
_NO_SAFETENSORS = "safetensors, which is not installed: pip install 'resnest_d2[hub]'"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights; no other code knows the file's keys."""

    weights: dict[str, torch.Tensor]
    """Tensors by Detectron2's names; those of a backbone alone have no prefix."""
    classifier: dict[str, torch.Tensor]
    """The ``linear.`` layer of a backbone, for which detectors have no use."""
    by_suffix: bool
    """Whether names match a model's by their ends, so that a backbone fits a detector."""
    author: str
    """"Caffe2" makes Detectron2 convert names; "" if unknown."""
    input_format: InputFormat | None
    """The images that the weights are for."""
    classes: dict[str, Any]
    """Metadata of the classes, with keys of ``CLASS_METADATA``."""
    config: str
    """Text of the config that the weights were trained with, in YAML; "" if unknown."""
    rest: dict[str, Any]
    """Everything that training keeps beside its weights; it is never written here."""
    source: dict[str, Any] = field(default_factory=dict)
    """The file that this one was made from."""

    @classmethod
    def of(cls, content: Mapping[str, Any], conversion: Conversion) -> "Checkpoint":
        """Sort the content of a file whose weights have been converted.

        Raises:
            UnreadableError: a tensor is no plain array of numbers.
        """
        for key, value in conversion.weights.items():
            if value.is_meta or value.is_quantized or value.layout != torch.strided:
                kind = f"{value.device.type}, {value.layout}, {value.dtype}"
                name = conversion.origins.get(key, key)
                raise UnreadableError(f"{name} is a tensor of an unsupported kind ({kind})")
            if not value.isfinite().all():
                name = conversion.origins.get(key, key)
                raise UnreadableError(
                    f"{name} has values that are NaN or infinite, as after a training that "
                    "diverged; take an earlier checkpoint"
                )
        backbone, classifier = conversion.backbone, content.get("classifier")
        classifier = dict(classifier) if isinstance(classifier, Mapping) else {}
        classifier |= {k: v for k, v in (backbone or {}).items() if k.startswith("linear.")}
        weights = conversion.weights if backbone is None else backbone
        # Other projects use other containers, and keep other things beside them.
        is_ours = conversion.container == "model"
        return cls(
            {k: v for k, v in weights.items() if k not in classifier},
            {k: v for k, v in classifier.items() if isinstance(v, torch.Tensor)},
            by_suffix=backbone is not None,
            author="resnest_d2" if conversion.naming else "",
            input_format=input_format.from_dict(content.get(INPUT_KEY)),
            classes=classes_in(content),
            config=config_in(content),
            rest={k: v for k, v in content.items() if is_ours and k not in _TENSORS},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a file that ``DetectionCheckpointer`` loads."""
        known = {
            "classifier": self.classifier,
            "matching_heuristics": self.by_suffix,
            "__author__": self.author,
            INPUT_KEY: self.input_format and self.input_format.to_dict(),
            CLASSES_KEY: self.classes,
            CONFIG_KEY: self.config,
            "source": self.source,
        }
        return {"model": self.weights, **{key: value for key, value in known.items() if value}}


def classes_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes that a checkpoint was trained on; {} if it does not name them our way."""
    classes = checkpoint.get(CLASSES_KEY)
    if not isinstance(classes, Mapping):
        return {}
    for key in {"thing_classes", "stuff_classes"} & classes.keys():
        names = classes[key]
        is_list = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
        if not is_list or not names:
            return {}
    found = {key: classes[key] for key in CLASS_METADATA if key in classes}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def config_in(checkpoint: Mapping[str, Any]) -> str:
    """Return the text of the config that a checkpoint holds; "" if it does not, our way."""
    text = checkpoint.get(CONFIG_KEY)
    is_config = isinstance(text, str) and re.search("^(MODEL|model):", text, re.MULTILINE)
    return text if is_config else ""


def read_checkpoint(
    path: str | Path, with_weights: bool = True, name: str | None = None
) -> dict[str, Any]:
    """Read a checkpoint of PyTorch, safetensors, or a pickle of arrays (Detectron2's ``.pkl``).

    Only tensors, arrays and plain values are read; nothing in the file is ever executed. The
    tensors of a safetensors file are returned under "model", with its metadata beside them.

    Args:
        path: a local file.
        with_weights: False leaves the weights on the disk where the format allows it.
        name: how messages call the file, by default by its path.

    Raises:
        UnreadableError: the file is something else, is damaged or holds other objects.
        OSError: it cannot be opened.
    """
    path, name = Path(path), name or str(path)
    with path.open("rb") as stream:
        head = stream.read(512)
    if text := describe_text(head):
        raise UnreadableError(f"{name} is {text}")
    is_zip = head.startswith(b"PK")
    if program := _describe_program(path, head):
        raise UnreadableError(
            f"{name} is {program}, not a file of weights; give the checkpoint that it was made from"
        )
    # Formats show in the content, for files are renamed; but a pickle's ending is not overruled.
    if head[8:9] == b"{" and path.suffix not in (".pkl", ".pyth"):
        content = _read_safetensors(path, name, with_weights)
    elif path.suffix != ".pkl" and (is_zip or _TORCH_MAGIC in head):
        with _reader_errors(name):
            # Before 1.6 torch.save wrote files that are no archives and cannot be mapped.
            mmap = is_zip and not with_weights
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    else:
        with _reader_errors(name):
            content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    if not isinstance(content, dict):
        raise UnreadableError(f"{name} is of type {type(content).__name__}, not a dict of tensors")
    return content


def describe_text(head: bytes) -> str | None:
    """Say what a file that begins like this is; None if it may be a checkpoint."""
    page = re.match(rb"(?P<html>\s*<!doctype html|.*<html)|\s*<(\?xml|error)", head, re.I | re.S)
    if page:
        kind = "HTML" if page["html"] else "XML"
        return f"an {kind} page: a server's answer saved in place of the weights"
    if head.lstrip().startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: `git lfs pull` fetches the weights that it stands for"
    # torch and pickle write control characters early on; texts have none.
    if re.fullmatch(rb"[\t\r\n\x20-\xff]*", head):
        return "a text, not weights" if head else "empty"
    return None


def _describe_program(path: Path, head: bytes) -> str | None:
    """Say which kind of compiled or exported model a file is; None if it is none."""
    # ONNX begins with the version of its format, and then the name of its producer or the like.
    if re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", head):
        return "an ONNX model"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2]: name for name in archive.namelist()}
        if "archive_format" in names or "serialized_exported_program.json" in names:
            return "a program of torch.export"
        if any("/code/" in name for name in names.values()):
            return "a TorchScript program"
    return None


def write_checkpoint(checkpoint: Checkpoint, target: Path) -> None:
    """Write everything but ``rest``, whole or not at all.

    The target has one of ``ENDINGS``. A safetensors file has the values beside the tensors as JSON
    in its metadata.

    Raises:
        ImportError: safetensors is not installed and the target is such a file.
        OSError: the file cannot be written.
    """
    content = checkpoint.to_dict()
    for part in content.keys() & set(_TENSORS):  # views would drag along all of their memory
        content[part] = {k: v.detach().clone().contiguous() for k, v in content[part].items()}
    size = sum(v.nbytes for v in _tensors(content).values())
    free = shutil.disk_usage(target.parent).free
    if size > free:
        message = f"cannot write {target}: it takes {size} bytes, and {free} are free on its disk"
        raise OSError(errno.ENOSPC, message)
    save = _save_safetensors if target.suffix == ".safetensors" else torch.save
    with replacing(target) as temporary:
        try:
            save(content, temporary)
        except (OSError, RuntimeError) as error:  # torch tells of the disk by RuntimeErrors
            reason = getattr(error, "strerror", "") or str(error).strip().partition("\n")[0]
            message = f"cannot write {target} ({free} bytes are free there): {reason}"
            raise OSError(errno.EIO, message) from error


def _tensors(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {k: v for part in _TENSORS for k, v in content.get(part, {}).items()}


def _save_safetensors(content: Mapping[str, Any], file: Path) -> None:
    try:
        from safetensors.torch import save
    except ImportError:
        raise ImportError(f"{file.suffix} is written by {_NO_SAFETENSORS}") from None
    beside = {key: json.dumps(value) for key, value in content.items() if key not in _TENSORS}
    # Its save_file would make the file private, and raise errors of its own for a full disk.
    file.write_bytes(save(_tensors(content), {"format": "pt", **beside}))


def _read_safetensors(path: Path, name: str, with_weights: bool) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise UnreadableError(f"{name} is read by {_NO_SAFETENSORS}") from None
    with _reader_errors(name), safe_open(path, framework="pt") as file:
        # The layer that tells the number of classes is small.
        names = [k for k in file.keys() if with_weights or k.endswith("cls_score.weight")]  # noqa: SIM118
        content: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in names}}
        metadata = file.metadata() or {}
    for key, value in metadata.items():
        try:
            content.setdefault(key, json.loads(value, object_hook=_integer_keys))
        except json.JSONDecodeError:
            content.setdefault(key, value)
    return content


def _integer_keys(content: dict[str, Any]) -> dict[Any, Any]:
    """Turn category ids back into integers, which JSON does not have as keys."""
    if content and all(re.fullmatch(r"-?\d+", key) for key in content):
        return {int(key): value for key, value in content.items()}
    return content


# The number that torch.save puts at the beginning of files that are no archives.
_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
# The functions that arrays are pickled with.
_ARRAY_GLOBALS: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": str.encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # in NumPy 1 and 2
    _ARRAY_GLOBALS[f"{_module}._reconstruct"] = np.empty(0).__reduce__()[0]
    _ARRAY_GLOBALS[f"{_module}.scalar"] = np.float64(0).__reduce__()[0]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in _ARRAY_GLOBALS:
            return _ARRAY_GLOBALS[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


_UNSAFE = re.compile(r"GLOBAL (\S+)|[Uu]nsupported (?:class|global)\S* (?!GLOBAL)(\S+)")


@contextmanager
def _reader_errors(name: str) -> Iterator[None]:
    """Turn what a reader raises into an UnreadableError; put nothing but its call inside."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # torch.load, pickle and safetensors meet damage with any type
        # An archive's end, where its table should be, can lie before the beginning of a short file.
        is_short = isinstance(error, OSError) and error.errno == errno.EINVAL
        if isinstance(error, OSError) and not is_short:
            raise
        unsafe = _UNSAFE.search(str(error))
        if unsafe:
            found = unsafe[unsafe.lastindex].strip("`'\".,")
            reason = (
                f"holds Python objects besides tensors ({found}) and was not loaded, because "
                "reading them could execute anything; save nothing but its state dict, "
                'torch.save({"model": model.state_dict()}, ...), where it comes from'
            )
        elif isinstance(error, pickle.UnpicklingError):  # PyTorch advises to unpickle it all
            reason = "is no checkpoint, or a damaged one"
        elif is_short or type(error).__name__ in ("EOFError", "RuntimeError", "SafetensorError"):
            reason = "is damaged or cut off; fetch it again"
        else:
            first = str(error).strip().partition("\n")[0]
            reason = f"is no readable checkpoint: {type(error).__name__}: {first}".rstrip(": ")
        raise UnreadableError(f"{name} {reason}") from error
