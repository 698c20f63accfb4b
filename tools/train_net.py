#!/usr/bin/env python3
"""Train or evaluate a detector: Detectron2's command line, for ResNeSt configs."""

from detectron2.engine import default_argument_parser

import resnest_d2.data  # noqa: F401  (registers the data sets that come with the package)
from resnest_d2.engine import coco_evaluation, train_or_evaluate
from resnest_d2.engine.finetune import add_arguments


def main(example: str = "configs/cascade_resnest101.yaml", ending: str = "") -> None:
    """Parse the command line and run it."""
    parser = default_argument_parser()
    add_arguments(parser)
    coco_evaluation.add_argument(parser)
    args = parser.parse_args()
    if not args.config_file.endswith(ending) or not args.config_file:
        parser.error(f"--config-file is required, e.g. {example}")
    train_or_evaluate(args)


if __name__ == "__main__":
    main()
