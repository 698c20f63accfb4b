"""Train or evaluate a detector: Detectron2's command line, and options for one's own data."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence

import detectron2.utils.comm as comm
from detectron2.engine import default_argument_parser
from detectron2.utils.logger import setup_logger

from ..config import InputError
from ..data.images import set_max_pixels
from ..engine.finetune import add_arguments
from ..engine.launch import Job, prepare, start_processes, work
from ..engine.options import TrainingOptions
from . import add_max_pixels, one_line_errors

AFTER_FIRST = 3  # seconds
# Pages that Detectron2 logs before training; on the terminal they hide what was said before.
LONG = ("Environment info:", "Contents of args.config_file", "Running with full config:", "Model:")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = default_argument_parser()
    add_arguments(parser)
    text = "processes to start on the CPUs of this machine, which share each batch (default: 1)"
    parser.add_argument("--num-processes", type=int, metavar="N", help=text)
    TrainingOptions.add_arguments(parser)
    add_max_pixels(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if the arguments, the config or the data are wrong."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if not (args.config_file or args.eval_only):  # a checkpoint may hold its config
        parser.error("--config-file is required, e.g. configs/cascade_resnest101.yaml")
    _shorten_log()
    with one_line_errors():
        setup_logger(name="resnest_d2")
        set_max_pixels(args.max_pixels)
        job, num_processes = prepare(args)
        return start_processes(
            _work, (job,), num_processes, args.num_machines, args.machine_rank, args.dist_url
        )


def _work(job: Job) -> None:
    """Run in each process."""
    _shorten_log()
    set_max_pixels(job.args.max_pixels)
    with one_line_errors():
        try:
            work(job)
        except InputError:
            if comm.get_rank():
                time.sleep(AFTER_FIRST)  # if the first process says the same, it ends this one
            raise


def _shorten_log() -> None:
    """Keep long pages, and tracebacks of errors that end in one line, out of the terminal."""
    for name in ("detectron2", "detectron2.engine.train_loop", "detectron2.engine.defaults"):
        logging.getLogger(name).addFilter(_is_for_terminal)


def _is_for_terminal(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if not str(record.msg).startswith(LONG) and not isinstance(error, InputError):
        return True
    handlers = logging.getLogger("detectron2").handlers
    for handler in handlers:
        if getattr(handler, "stream", None) not in (sys.stdout, sys.stderr):
            handler.handle(record)
    return False
