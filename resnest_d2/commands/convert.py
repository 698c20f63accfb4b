"""Convert published ResNeSt weights to a file in Detectron2's names."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

from ..config import InputError
from ..files import sha256
from ..weights import FetchError, UnreadableError, read_checkpoint
from ..weights.catalog import input_format_of
from ..weights.convert import Conversion, describe_conversion
from ..weights.files import CLASSES_KEY, ENDINGS, Checkpoint, classes_in, write_checkpoint
from ..weights.loading import local_file
from ..weights.naming import network_of
from . import setting_up

_PART = re.compile(r"stem|res\d|linear|backbone\.[a-z_]+|[^.]+(\.[^.]+)?")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if there is nothing to convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("source", help="a file, an address, or a name: resnest://..., timm://<model>.<tag>")
    add("target", type=Path, help="file to write, .pth or .safetensors")
    add("--drop-unknown", action="store_true", help="leave out keys of no known name")
    add("--overwrite", action="store_true", help="replace an existing target")
    args = parser.parse_args(arguments)
    with setting_up("resnest_d2"):
        check_target(args.target, args.overwrite)
        conversion, checkpoint = read(args.source, args.drop_unknown)
        write_checkpoint(checkpoint, args.target)
        print(format_summary(args.source, conversion, checkpoint))
        print(f"wrote    {args.target} (SHA-256 {sha256(args.target)})")
    return 0


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target before any work is done.

    Raises:
        InputError: its ending is not one of a known format.
        FileExistsError: it is there and is not to be replaced.
        FileNotFoundError: its folder is not there.
    """
    if target.suffix not in ENDINGS:
        raise InputError(f"{target} must end in {' or '.join(ENDINGS)}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already; --overwrite replaces it")


def read(source: str, drop_unknown: bool = False) -> tuple[Conversion, Checkpoint]:
    """Read and convert a file of published weights or of training.

    Args:
        source: a path, a name (``resnest://``, ``timm://``) or an address.
        drop_unknown: leave out keys of no known name.

    Raises:
        OSError: the file is not there or cannot be fetched.
        UnreadableError: it is no checkpoint of a ResNeSt.
    """
    if "://" not in source and not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {source}")
    try:
        file = local_file(source) if "://" in source else source  # of which a name may have a "?"
        content = read_checkpoint(PathManager.get_local_path(file), name=source)
        conversion = describe_conversion(content, drop_unknown)
        checkpoint = Checkpoint.of(content, conversion)
    except (UnreadableError, OSError) as error:
        if source in str(error) or isinstance(error, FetchError):
            raise
        kind = UnreadableError if isinstance(error, UnreadableError) else OSError
        raise kind(f"{source}: {error}") from error
    return conversion, replace(
        checkpoint,
        input_format=checkpoint.input_format or input_format_of(source),
        classes=checkpoint.classes or _mmdetection_classes(content.get("meta")),
    )


def _mmdetection_classes(meta: Any) -> dict[str, Any]:
    """Return the names of the classes in the ``meta`` of MMDetection 2 or 3."""
    if not isinstance(meta, Mapping):
        return {}
    dataset = meta.get("dataset_meta")
    inner = dataset if isinstance(dataset, Mapping) else {}
    names = meta.get("CLASSES") or inner.get("CLASSES") or inner.get("classes")
    return classes_in({CLASSES_KEY: {"thing_classes": names}})


def format_summary(source: str, conversion: Conversion, checkpoint: Checkpoint) -> str:
    """Tell what was read, what it became, and what was left out."""
    container = f", under {conversion.container!r}" if conversion.container else ""
    network = network_of(conversion.weights) or "no ResNet"
    kind = "a detector" if conversion.backbone is None else "a backbone"
    tensors = {**conversion.weights, **checkpoint.classifier}
    millions = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    lines = [
        f"read     {source}: names of {conversion.naming}{container}",
        f"holds    {network}, {kind}: {len(tensors)} tensors, {millions:.2f} M values",
    ]
    parts: dict[str, list[str]] = {}
    for key in tensors:
        parts.setdefault(_PART.match(key).group(), []).append(key)
    for part, keys in parts.items():
        origin = conversion.origins.get(keys[0], keys[0])
        example = "" if origin == keys[0] else f"   {origin} -> {keys[0]}"
        lines.append(f"{len(keys):8} {part}{example}")
    if conversion.dropped:
        lines.append(f"left out {', '.join(conversion.dropped)}")
    return "\n".join(lines)
