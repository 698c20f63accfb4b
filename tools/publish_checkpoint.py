#!/usr/bin/env python3
"""Make a trained model ready for others: weights alone, a hash in the name, and a model card."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from resnest_d2.commands.publish_checkpoint import publish
from resnest_d2.engine import one_line_errors
from resnest_d2.weights.writing import ENDINGS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if the files do not belong together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="model_final.pth, say")
    parser.add_argument("output", type=Path, help="folder for the weights and the model card")
    parser.add_argument(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="the model's config (default: config.yaml beside the checkpoint)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="JSON file of metrics (default: metrics.json beside the checkpoint, if it is there)",
    )
    parser.add_argument("--name", help="of the model (default: that of the config)")
    parser.add_argument("--format", choices=[e.lstrip(".") for e in ENDINGS], default="pth")
    parser.add_argument(
        "--opts", default=[], nargs=argparse.REMAINDER, help="overrides of the config"
    )
    args = parser.parse_args(arguments)
    setup_logger(name="resnest_d2")
    beside = args.checkpoint.parent / "metrics.json"
    with one_line_errors():
        written = publish(
            args.checkpoint,
            args.output,
            args.config_file or args.checkpoint.parent / "config.yaml",
            args.results or (beside if beside.is_file() else None),
            args.name,
            f".{args.format}",
            args.opts,
        )
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
