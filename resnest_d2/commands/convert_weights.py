"""Files of published weights to files in Detectron2's names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..files import sha256
from ..weights.catalog import input_format_of
from ..weights.convert import Conversion, describe_conversion
from ..weights.input_format import from_dict
from ..weights.loading import CLASSES_KEY, classes_in, local_file
from ..weights.network import network_of
from ..weights.reading import read_checkpoint
from ..weights.writing import ENDINGS, detectron2_checkpoint, write_checkpoint

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
        """Name of the backbone, "ResNeSt-50"."""
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
    checkpoint = read_checkpoint(local_file(source))
    try:
        conversion = describe_conversion(checkpoint, drop_unknown)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    apart = checkpoint.get("classifier")  # in a file that was converted before
    if isinstance(apart, Mapping):
        classifier = {key: value for key, value in apart.items() if isinstance(value, torch.Tensor)}
        conversion = conversion._replace(weights={**conversion.weights, **classifier})
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
    ours = classes_in(checkpoint)
    if ours:
        return ours
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping):
        return {}
    dataset = meta.get("dataset_meta")
    inner = dataset if isinstance(dataset, Mapping) else {}
    names = meta.get("CLASSES") or inner.get("CLASSES") or inner.get("classes")
    return classes_in({CLASSES_KEY: {"thing_classes": names}})
