"""Writing weights as files that hold nothing else: for PyTorch and as safetensors."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from ..files import replacing, sha256
from .catalog import input_format_of
from .convert import Conversion, describe_conversion
from .handler import detectron2_checkpoint
from .input_format import from_dict
from .loading import CLASSES_KEY
from .network import network_of
from .reading import read_checkpoint

ENDINGS = (".pth", ".safetensors")
_PART = re.compile(r"(stem|res\d|linear|backbone\.[a-z_]+|[^.]+\.[^.]+)")


@dataclass(frozen=True)
class Converted:
    """A file that was written, and what it was made of."""

    target: Path
    sha256: str
    conversion: Conversion
    content: dict[str, Any]
    """What a ``.pth`` file holds."""

    @property
    def network(self) -> str:
        """The backbone, "ResNeSt-50"."""
        return str(network_of(self.conversion.weights) or "no ResNet")

    def parts(self) -> dict[str, list[str]]:
        """The tensors of each part of the model, by their new names."""
        found: dict[str, list[str]] = {}
        for key in self.conversion.weights:
            found.setdefault(_PART.match(key).group(), []).append(key)
        return found


def check_target(target: Path, overwrite: bool = False) -> None:
    """Refuse a target before any work is done.

    Raises:
        ValueError: its ending is not one of a known format.
        FileExistsError: it is there and is not to be replaced.
        FileNotFoundError: its folder is not there.
    """
    if target.suffix not in ENDINGS:
        raise ValueError(f"{target} must end in {' or '.join(ENDINGS)}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already; --overwrite replaces it")


def convert_file(source: str, target: Path, drop_unknown: bool = False) -> Converted:
    """Convert a file of published weights to Detectron2's names.

    Args:
        source: a path, a name (``resnest://``, ``timm://``) or an address.
        target: the file to write, ``.pth`` or ``.safetensors``.
        drop_unknown: leave out keys of no known name.

    Raises:
        OSError: the source cannot be had or the target cannot be written.
        ValueError: the source is no checkpoint of a ResNeSt.
    """
    if "://" not in source and not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {source}")
    checkpoint = read_checkpoint(PathManager.get_local_path(source))
    try:
        conversion = describe_conversion(checkpoint, drop_unknown)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if checkpoint.get("classifier"):  # kept apart in a file that was converted before
        weights = {**conversion.weights, **checkpoint["classifier"]}
        conversion = conversion._replace(weights=weights)
    content = detectron2_checkpoint(conversion)
    found = from_dict(checkpoint.get("input")) or input_format_of(source)
    if found:
        content["input"] = found.to_dict()
    classes = _classes(checkpoint)
    if classes:
        content[CLASSES_KEY] = classes
    write_checkpoint(content, target)
    return Converted(target, sha256(target), conversion, content)


def _classes(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the classes, as our trainers and MMDetection 2 and 3 keep them."""
    if isinstance(checkpoint.get(CLASSES_KEY), Mapping):
        return dict(checkpoint[CLASSES_KEY])
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping):
        return {}
    dataset = meta.get("dataset_meta")
    inner = dataset if isinstance(dataset, Mapping) else {}
    names = meta.get("CLASSES") or inner.get("CLASSES") or inner.get("classes")
    return {"thing_classes": [str(name) for name in names]} if names else {}


def write_checkpoint(content: Mapping[str, Any], target: Path) -> None:
    """Write weights under "model" and plain values beside them, whole or not at all.

    In a safetensors file the values are JSON in the metadata, and a classifier is among the
    tensors.

    Raises:
        ImportError: safetensors is asked for and not installed.
        OSError: the file cannot be written.
    """
    size = sum(tensor.nbytes for tensor in content["model"].values())
    free = shutil.disk_usage(target.parent).free
    if size > free:
        raise OSError(f"{target} takes {size} bytes, and {free} are free on its disk")
    with replacing(target) as temporary:
        if target.suffix == ".safetensors":
            _write_safetensors(content, temporary)
        else:
            torch.save(dict(content), temporary)


def _write_safetensors(content: Mapping[str, Any], target: Path) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ImportError("writing safetensors needs them: pip install safetensors") from None
    named = {**content["model"], **content.get("classifier", {})}
    # Each on its own: a file has no views.
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in named.items()}
    beside = {k: v for k, v in content.items() if k not in ("model", "classifier")}
    metadata = {key: json.dumps(value) for key, value in beside.items()}
    save_file(tensors, target, {"format": "pt", **metadata})
