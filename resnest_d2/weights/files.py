"""Files of weights: one schema, read without executing anything in a file, written as a whole."""

import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, StrictStr, TypeAdapter, ValidationError
from torch import nn
from typing_extensions import TypedDict

from ..config import FileError, InputError, MissingFileError, import_extra
from ..files import IS_POINTER, LFS_POINTER, replacing
from .arrays import ArrayUnpickler, plain

ENDINGS = (".pth", ".safetensors")
# Training keeps under these keys what it knows of its classes and its images, and its config.
CLASSES_KEY, INPUT_KEY, CONFIG_KEY = "classes", "input", "config"
# Keys under which checkpoints hold their weights, the first that is there counts. What is trained
# comes before an average of it (EMA).
_TRAINED = ("model", "model_state_dict", "state_dict", "model_state", "net", "params", "blobs")
_AVERAGED = ("model_ema", "state_dict_ema", "ema_model", "ema_state", "ema_state_dict", "ema")
_MAX_DEPTH = 4  # of containers in containers
# Of what a layer computes with; other tensors, such as masks, may be of any type.
_COMPUTED = ("weight", "bias", "running_mean", "running_var")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Images in steps of 0 to 255. ImageNet's own mean differs by up to 0.5 from what Detectron2's RGB
# models are given, a hundredth of the deviation: not worth a warning.
_TOLERANCE = 1.0


Names = Annotated[list[StrictStr], Field(min_length=1)]


class Classes(TypedDict, total=False):
    """The metadata of a data set that naming and drawing predictions takes."""

    thing_classes: Names
    thing_dataset_id_to_contiguous_id: dict[int, int]
    stuff_classes: Names
    stuff_dataset_id_to_contiguous_id: dict[int, int]
    keypoint_names: Names
    keypoint_connection_rules: list[tuple[StrictStr, StrictStr, Any]]
    """Two names and a colour."""


CLASS_METADATA = tuple(Classes.__annotations__)


class UnreadableError(InputError):
    """A file is no checkpoint, is damaged, asks to execute something or holds other weights."""


@dataclass(frozen=True)
class InputFormat:
    """Images as a network sees them, in values from 0 to 255."""

    channels: str
    """``INPUT.FORMAT``; "" where it is not known."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.channels or 'images'} with mean {mean} and std {std}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def fits(self, other: "InputFormat") -> bool:
        """Return whether weights for one of them work with the other, as far as is known."""
        if len(self.mean) != len(other.mean):  # the stem is fitted to another number of channels
            return True
        if self.channels and other.channels and self.channels != other.channels:
            return False
        pairs = zip(self.mean + self.std, other.mean + other.std, strict=False)
        return all(abs(a - b) <= _TOLERANCE for a, b in pairs)


def of_model(model: nn.Module) -> InputFormat | None:
    """Return what a model of Detectron2 is fed; None if it does not say."""
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if mean is None or std is None or mean.is_meta:
        return None
    # Six digits are the config's values; fp32 has added more.
    values = (tuple(float(f"{v:.6g}") for v in t.flatten().tolist()) for t in (mean, std))
    return InputFormat(getattr(model, "input_format", None) or "", *values)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights; no other code knows the file's keys."""

    name: str
    """The words that messages call it by: its path, address or name."""
    weights: dict[str, torch.Tensor]
    by_suffix: bool = False
    """Whether names match a model's by their ends, so that a backbone fits a detector."""
    author: str = ""
    """"Caffe2" makes Detectron2 convert names; "" if unknown."""
    input_format: InputFormat | None = None
    """The images that the weights are for."""
    classes: dict[str, Any] = field(default_factory=dict)
    """Metadata of the classes, with keys of ``CLASS_METADATA``."""
    config: str = ""
    """Text of the config that the weights were trained with, in YAML; "" if unknown."""
    rest: dict[str, Any] = field(default_factory=dict)
    """Everything that training keeps beside its weights; it is never written here."""
    source: dict[str, Any] = field(default_factory=dict)
    """The file that this one was made from."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a file that ``DetectionCheckpointer`` loads."""
        known = {
            "matching_heuristics": self.by_suffix,
            "__author__": self.author,
            INPUT_KEY: self.input_format and self.input_format.to_dict(),
            CLASSES_KEY: self.classes,
            CONFIG_KEY: self.config,
            "source": self.source,
        }
        return {"model": self.weights, **{key: value for key, value in known.items() if value}}


def read_checkpoint(path: str | Path, name: str = "", average: bool = False) -> Checkpoint:
    """Read a checkpoint of PyTorch, safetensors, or a pickle of arrays (Detectron2's ``.pkl``).

    Only tensors, arrays and plain values are read; nothing in the file is ever executed. The ending
    decides on the reader: ``.safetensors``, ``.pkl``, and PyTorch's for all others.

    Args:
        path: a local file.
        name: how messages call it, by default by its path.
        average: take the average of the weights (EMA), where there is one beside them.

    Raises:
        MissingFileError: there is no such file.
        UnreadableError: the file is something else, is damaged or holds other objects.
    """
    path, name = Path(path), name or str(path)
    if not os.path.isfile(path):  # pathlib's raises where a name is too long
        is_folder = " (it is a folder)" if os.path.isdir(path) else ""
        raise MissingFileError(f"there is no file {name}{is_folder}")
    ending = Path(path.name.partition("?")[0]).suffix  # files of addresses keep their query
    with _reader_errors(name), path.open("rb") as stream:
        head = stream.read(512)
        if re.match(rb"\s*<(!doctype|html|\?xml|error)", head, re.IGNORECASE):
            page = "a web page: a server's answer saved in place of the weights"
            raise UnreadableError(f"{name} is {page}")
        if head.startswith(LFS_POINTER):
            raise UnreadableError(f"{name} is {IS_POINTER}")
        stream.seek(0)
        if ending == ".safetensors":
            content = _read_safetensors(path, name)
        elif ending == ".pkl":
            content = plain(ArrayUnpickler(stream.read()).load())
        else:
            content = plain(torch.load(stream, map_location="cpu", weights_only=True))
    if not isinstance(content, dict):
        raise UnreadableError(f"{name} is of type {type(content).__name__}, not a dict of tensors")
    return _checkpoint_of(content, ending, name, average)


def _checkpoint_of(content: dict[Any, Any], ending: str, name: str, average: bool) -> Checkpoint:
    containers = (*_AVERAGED, *_TRAINED) if average else (*_TRAINED, *_AVERAGED)
    container, weights = find_tensors(content, containers)
    if average and not {*container.split(".")} & {*_AVERAGED}:
        raise UnreadableError(f"{name} has no average of its weights: {', '.join(_AVERAGED)}")
    if not weights:
        raise UnreadableError(f"{name} holds no tensors under {', '.join(map(str, content))[:200]}")
    for key, value in weights.items():
        is_number = value.dtype in _FLOATS or not key.endswith(_COMPUTED)
        is_odd = value.is_meta or value.is_quantized or value.is_nested
        if is_odd or value.layout != torch.strided or not is_number:
            kind = f"{value.device.type}, {value.layout}, {value.dtype}"
            raise UnreadableError(f"{name}: {key} is a tensor of an unsupported kind ({kind})")
    author = _validated(StrictStr, content.get("__author__")) or ""
    by_suffix = content.get("matching_heuristics") is True
    if container != "model" and ending == ".pkl":  # Detectron's, as Detectron2 tells them
        weights = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
        author, by_suffix = "Caffe2", True
    config = _validated(StrictStr, content.get(CONFIG_KEY)) or ""
    return Checkpoint(
        name,
        weights,
        by_suffix,
        author,
        input_format=_validated(InputFormat, content.get(INPUT_KEY)),
        classes=_classes_of(content),
        config=config if re.search("^MODEL:", config, re.MULTILINE) else "",
        # Other projects use other containers, and keep other things beside them.
        rest={k: v for k, v in content.items() if container == "model" and k != "model"},
        source=_validated(dict[str, str | bool], content.get("source")) or {},
    )


def find_tensors(
    content: Mapping[Any, Any], containers: tuple[str, ...] = _TRAINED + _AVERAGED, depth: int = 0
) -> tuple[str, dict[str, torch.Tensor]]:
    """Find the tensors in a file's content, and the key that holds them ("" if none does)."""
    for container in containers if depth < _MAX_DEPTH else ():
        inner = content.get(container)
        if isinstance(inner, Mapping):
            deeper, tensors = find_tensors(inner, containers, depth + 1)
            if tensors:
                return f"{container}.{deeper}".rstrip("."), tensors
    return "", {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}


def _validated(kind: Any, value: Any) -> Any:
    """Read a value that a file may well have in another form, or not at all: then it is None."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


def _classes_of(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the classes that a checkpoint was trained on; {} if it does not name them.

    MMDetection 2 and 3 name them in its "meta".
    """
    meta = content.get("meta")
    found = [content.get(CLASSES_KEY)]
    for facts in (meta, meta.get("dataset_meta") if isinstance(meta, dict) else None):
        if isinstance(facts, dict):
            found += [{"thing_classes": facts.get(key)} for key in ("CLASSES", "classes")]
    return next((classes for one in found if (classes := _validated(Classes, one))), {})


def write_checkpoint(checkpoint: Checkpoint, target: Path) -> None:
    """Write everything but ``rest``, whole or not at all, to a file with one of ``ENDINGS``.

    A safetensors file has the values beside the tensors as JSON in its metadata.

    Raises:
        InputError: the file cannot be written, or safetensors is not installed.
    """
    content = checkpoint.to_dict()
    # Views would drag along all of their memory.
    content["model"] = {k: v.detach().clone().contiguous() for k, v in content["model"].items()}
    with replacing(target) as temporary:
        if target.suffix == ".safetensors":
            library = import_extra("safetensors.torch", "hub", f"writing {target}")
            beside = {key: json.dumps(value) for key, value in content.items() if key != "model"}
            temporary.write_bytes(library.save(content["model"], {"format": "pt", **beside}))
        else:
            save_content(content, temporary)


def save_content(content: Mapping[str, Any], file: Path) -> None:
    """``torch.save``, which tells of a full disk by an OSError."""
    try:
        with file.open("wb") as stream:
            torch.save(dict(content), stream)
    except RuntimeError as error:  # PyTorch's own, of its archives; the disk's may stand before it
        before = error.__context__
        raise before if isinstance(before, OSError) else OSError(None, str(error)) from error


def _read_safetensors(path: Path, name: str) -> dict[str, Any]:
    library = import_extra("safetensors", "hub", f"reading {name}")
    with library.safe_open(path, framework="pt") as file:
        content: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
        metadata = file.metadata() or {}
    for key, value in metadata.items():
        try:
            content.setdefault(key, json.loads(value))
        except json.JSONDecodeError:
            content.setdefault(key, value)
    return content


_UNSAFE = re.compile(r"GLOBAL (\S+)|[Uu]nsupported (?:class|global)\S* (?!GLOBAL)(\S+)")


@contextmanager
def _reader_errors(name: str) -> Iterator[None]:
    """Turn what a reader raises into an UnreadableError; put nothing but its call inside."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise FileError(f"{name} cannot be read: {error.strerror}") from error
    except Exception as error:  # damage makes torch.load, pickle and safetensors raise any type
        if unsafe := _UNSAFE.search(str(error)):
            found = unsafe[unsafe.lastindex].strip("`'\".,")
            reason = (
                f"holds Python objects besides tensors ({found}) and was not loaded, because "
                "reading them could execute anything; save nothing but its state dict, "
                'torch.save({"model": model.state_dict()}, ...), where it comes from'
            )
        elif isinstance(error, pickle.UnpicklingError):  # PyTorch advises to unpickle it all
            reason = "is no checkpoint, or a damaged one"
        else:
            first = str(error).strip().partition("\n")[0]
            reason = f"cannot be read, it may be cut off: {type(error).__name__}: {first}"
        raise UnreadableError(f"{name} {reason}") from error
