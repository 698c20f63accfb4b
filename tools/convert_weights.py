#!/usr/bin/env python3
"""Convert published ResNeSt weights to a file in Detectron2's names."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

import resnest_d2  # noqa: F401  (registers resnest:// and timm://)
from resnest_d2.commands.convert_weights import Converted, check_target, convert_file
from resnest_d2.engine import one_line_errors


def format_summary(source: str, converted: Converted) -> str:
    """What was read, what it became, and what was left out."""
    conversion = converted.conversion
    container = f", under {conversion.container!r}" if conversion.container else ""
    tensors = conversion.weights.values()
    kind = "a detector" if conversion.backbone is None else "a backbone"
    millions = sum(t.numel() for t in tensors) / 1e6
    lines = [
        f"read     {source}: names of {conversion.naming}{container}",
        f"holds    {converted.network}, {kind}: {len(tensors)} tensors, {millions:.2f} M values",
    ]
    for part, keys in converted.parts().items():
        origin = conversion.origins.get(keys[0], keys[0])
        example = "" if origin == keys[0] else f"   {origin} -> {keys[0]}"
        lines.append(f"{len(keys):8} {part}{example}")
    if conversion.dropped:
        lines.append(f"left out {', '.join(conversion.dropped)}")
    lines.append(f"wrote    {converted.target} (SHA-256 {converted.sha256})")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if there is nothing to convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", help="a file, an address, or a name: resnest://..., timm://<model>.<tag>"
    )
    parser.add_argument("target", type=Path, help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--drop-unknown", action="store_true", help="leave out keys of no known name"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing target")
    args = parser.parse_args(arguments)
    setup_logger(name="resnest_d2")
    with one_line_errors():
        check_target(args.target, args.overwrite)
        converted = convert_file(args.source, args.target, args.drop_unknown)
    print(format_summary(args.source, converted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
