"""Train or evaluate a detector: Detectron2's command line, for YAML and ``.py`` configs."""

import argparse
from collections.abc import Sequence

from detectron2.engine import default_argument_parser

from ..config.settings import Settings
from ..data.images import set_max_pixels
from ..engine.finetune import add_arguments
from ..engine.launch import add_process_arguments, prepare, set_up
from ..engine.options import TrainingOptions
from ..evaluation import coco
from ..processes import ProcessError, start_processes
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
    add_process_arguments(parser)
    TrainingOptions.add_arguments(parser)
    coco.add_argument(parser)
    add_max_pixels(parser)
    args = parser.parse_args(arguments)
    # A checkpoint that is evaluated may hold its config.
    if not (args.config_file.endswith(ending) if args.config_file else args.eval_only):
        parser.error(f"--config-file is required, e.g. {example}")
    with one_line_errors():
        set_max_pixels(args.max_pixels)
        settings, num_processes = prepare(args)
    try:
        with one_line_errors(DATA_ERRORS):
            start_processes(
                _work,
                (settings, args),
                settings.device,
                num_processes,
                args.num_machines,
                args.machine_rank,
                args.dist_url,
            )
    except ProcessError as error:
        return error.exit_code
    return 0


def _work(settings: Settings, args: argparse.Namespace) -> None:
    with one_line_errors():
        set_max_pixels(args.max_pixels)  # in a process that was started for one GPU of several
        work = set_up(settings, args)
    with one_line_errors(DATA_ERRORS):
        work()
