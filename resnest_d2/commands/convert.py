"""Convert published ResNeSt weights to a file in Detectron2's names."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..config import FileError, InputError
from ..files import check_writable, sha256
from ..weights import open_weights
from ..weights.convert import network_of, rename_resnest
from ..weights.files import ENDINGS, write_checkpoint
from ..weights.loading import HEURISTICS
from . import running


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if there is nothing to convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("source", help="a file, an address, or a name: resnest://, timm://, hf://")
    add("target", type=Path, help="file to write, .pth or .safetensors")
    add("--average", action="store_true", help="take the average of the weights (EMA) beside them")
    add("--overwrite", action="store_true", help="replace an existing target")
    args = parser.parse_args(arguments)
    target = args.target
    with running("resnest_d2"):
        if target.suffix not in ENDINGS:
            raise InputError(f"{target} must end in {' or '.join(ENDINGS)}")
        check_writable(target)
        if os.path.exists(target) and not args.overwrite:
            raise FileError(f"{target} is there already; --overwrite replaces it")
        checkpoint = rename_resnest(open_weights(args.source, args.average))
        write_checkpoint(checkpoint, target)
        kind = "a backbone" if checkpoint.by_suffix else "a detector"
        sizes = [tensor.numel() for tensor in checkpoint.weights.values()]
        network = network_of(checkpoint.weights)
        print(f"holds    {network}, {kind}: {len(sizes)} tensors, {sum(sizes) / 1e6:.2f} M values")
        print(f"wrote    {target} (SHA-256 {sha256(target)})")
        if checkpoint.by_suffix and target.suffix == ".safetensors":
            # Detectron2's own loader does not see what the file says of its names.
            print(f"In other projects: MODEL.WEIGHTS '{target}?{HEURISTICS}'")
    return 0
