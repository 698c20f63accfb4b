"""Train or evaluate a detector: Detectron2's command line, for YAML and ``.py`` configs."""

import argparse
from collections.abc import Sequence

from detectron2.engine import default_argument_parser, launch

from ..config.settings import Settings
from ..data.images import set_max_pixels
from ..engine.finetune import add_arguments
from ..engine.launch import prepare, set_up
from ..evaluation import coco
from . import DATA_ERRORS, add_max_pixels, one_line_errors, warnings_again


@warnings_again()
def main(
    arguments: Sequence[str] | None = None,
    example: str = "configs/cascade_resnest101.yaml",
    ending: str = "",
) -> int:
    """Run; the exit code is 2 if the arguments, the config or the data are wrong.

    Args:
        arguments: the command line.
        example: a config to name where none is given.
        ending: the ending that the config's name must have.
    """
    parser = default_argument_parser()
    add_arguments(parser)
    coco.add_argument(parser)
    add_max_pixels(parser)
    args = parser.parse_args(arguments)
    # A checkpoint that is evaluated may hold its config.
    if not (args.config_file.endswith(ending) if args.config_file else args.eval_only):
        parser.error(f"--config-file is required, e.g. {example}")
    with one_line_errors():
        set_max_pixels(args.max_pixels)
        settings, num_processes = prepare(args)
    launch(
        _work,
        num_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(settings, args),
    )
    return 0


def _work(settings: Settings, args: argparse.Namespace) -> None:
    with one_line_errors():
        set_max_pixels(args.max_pixels)  # in a process that was started for one GPU of several
        work = set_up(settings, args)
    with one_line_errors(DATA_ERRORS):
        work()
