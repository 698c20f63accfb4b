"""The command lines, one module each; ``python -m resnest_d2`` and ``tools/`` run them."""

import argparse
import json
import logging
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import detectron2.utils.comm as comm
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.logger import setup_logger

from ..data.loader import UNREADABLE
from ..files import write_text
from ..processes import require_alone

if TYPE_CHECKING:
    from ..inference import Predictor

# Raised in Detectron2, fvcore and PyTorch on every run: category, beginning and module.
KNOWN_WARNINGS = (
    (FutureWarning, "`broadcast_buffers` is deprecated", r"detectron2\.engine"),
    (FutureWarning, "`torch.jit.script` is deprecated", r"torch\.jit\."),
    (UserWarning, "torch.meshgrid: in an upcoming release", r"torch\.functional"),
    (UserWarning, "The given NumPy array is not writable", r"detectron2\.data\."),
    (UserWarning, "pkg_resources is deprecated", r"detectron2\.model_zoo"),
)
for _category, _message, _module in KNOWN_WARNINGS:
    warnings.filterwarnings("ignore", _message, _category, _module)
# Log records to hide, by logger and beginning.
_KNOWN_RECORDS = {
    "torch.fx._symbolic_trace": "is_fx_tracing will return true",
    "torch.utils.cpp_extension": "No CUDA runtime is found",
    "matplotlib.font_manager": "findfont: Failed to find font weight",  # of hotcoco's charts
}
for _name, _start in _KNOWN_RECORDS.items():
    logging.getLogger(_name).addFilter(lambda r, start=_start: not str(r.msg).startswith(start))
# Pages that Detectron2 logs before training; on the terminal they hide what was said before.
_LONG = ("Environment info:", "Contents of args.config_file", "Running with full config:", "Model:")

# Wrong input raises these while a command is set up.
INPUT_ERRORS = (ValueError, OSError, ImportError, AssertionError, KeyError)
# A picture or a file that turns out wrong during training or evaluation raises these.
DATA_ERRORS = UNREADABLE

AFTER_FIRST = 3  # seconds
# These report wrong input by assertions and KeyErrors; raised by anyone else, they are defects.
_ASSERTING = ("detectron2", "fvcore", "omegaconf", "pycocotools", "yacs")


def _is_for_terminal(record: logging.LogRecord) -> bool:
    """Give a record of Detectron2 that is not to the log file alone.

    These are long pages, and the traceback of an error that ends in one line.
    """
    error = record.exc_info[1] if record.exc_info else None
    if not str(record.msg).startswith(_LONG) and not isinstance(error, DATA_ERRORS):
        return True
    handlers = logging.getLogger("detectron2").handlers
    files = [h for h in handlers if getattr(h, "stream", None) not in (sys.stdout, sys.stderr)]
    for handler in files:
        handler.handle(record)
    return not files


for _name in ("detectron2", "detectron2.engine.train_loop", "detectron2.engine.defaults"):
    logging.getLogger(_name).addFilter(_is_for_terminal)


class _Warnings(logging.Handler):
    """Keeps each warning once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            self.messages[record.getMessage()] = None
        if logging.getLogger("resnest_d2").handlers == [self]:  # nobody else shows it yet
            logging.lastResort.handle(record)


@contextmanager
def warnings_again() -> Iterator[None]:
    """Repeat this package's warnings, each once, when a command has come to its end."""
    handler, logger = _Warnings(), logging.getLogger("resnest_d2")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if handler.messages:
        number = len(handler.messages)
        lines = [f"{number} warning{'s' * (number > 1)}:", *handler.messages]
        print("\n- ".join(lines), file=sys.stderr)


@contextmanager
def one_line_errors(kinds: tuple[type[Exception], ...] = INPUT_ERRORS) -> Iterator[None]:
    """End a command on wrong input with one line and exit code 2, not with a traceback.

    A defect keeps its traceback: an error of another type, one without a message, an assertion or a
    ``KeyError`` of our own code. RESNEST_D2_TRACEBACK=1 keeps all of them.

    Args:
        kinds: types of errors that wrong input causes; :data:`DATA_ERRORS` during training.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except kinds as error:
        message = str(error)
        if isinstance(error, AssertionError | KeyError):
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            if frame.f_globals.get("__name__", "").partition(".")[0] not in _ASSERTING:
                raise
            message = str(error.args[0]) if error.args else ""
            if message and " " not in message:  # a bare key
                message = f"there is nothing named {error.args[0]!r}"
        if not message or os.getenv("RESNEST_D2_TRACEBACK"):
            raise
        if "Original Traceback" in message:  # of a loader's process; its last line is the message
            message = message.rstrip().splitlines()[-1].partition(f"{type(error).__name__}: ")[2]
        if comm.get_rank():
            time.sleep(AFTER_FIRST)  # if the first process says the same, it ends this one
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def setting_up(*packages: str) -> Iterator[None]:
    """Begin a command of one process: its messages on the terminal, wrong input in one line.

    Args:
        packages: whose messages are shown, by default those of Detectron2 and fvcore too.
    """
    for name in packages or ("resnest_d2", "fvcore", "detectron2"):
        setup_logger(name=name)
    with one_line_errors():
        require_alone()
        yield


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`load_predictor` reads; nothing may follow them."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model",
        metavar="MODEL",
        help="a name of the zoo, a checkpoint, the folder of a training or an exported file, in "
        "place of --config-file and MODEL.WEIGHTS",
    )
    text = "(default: the one in the checkpoint)"
    which.add_argument("--config-file", default="", metavar="FILE", help=text)
    text = "run even if MODEL.WEIGHTS leaves parameters at random values"
    parser.add_argument("--allow-untrained", action="store_true", help=text)
    text = "KEY VALUE pairs, e.g. MODEL.WEIGHTS x; for a .py config key=value"
    parser.add_argument("--opts", default=[], nargs=argparse.REMAINDER, help=text)


def load_predictor(args: argparse.Namespace, **options: Any) -> "Predictor":
    """Load the detector that a command line names.

    Args:
        args: with the options of :func:`add_model_arguments`.
        options: of :class:`~resnest_d2.inference.Predictor`.

    Raises:
        FileNotFoundError, InputError, UntrainedParametersError: as the predictor.
    """
    from ..config.settings import Settings
    from ..inference import Predictor
    from ..weights.stored_config import load_config_of_weights

    model: Any = args.model
    if model is None:
        model = Settings.of(load_config_of_weights(args.config_file, args.opts))
    else:
        options["options"] = args.opts
    return Predictor(model, args.allow_untrained, **options)


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add the option whose value is for :func:`resnest_d2.data.images.set_max_pixels`."""
    text = "read pictures of up to N pixels (default: 178956970, Pillow's guard against bombs)"
    parser.add_argument("--max-pixels", type=int, metavar="N", help=text)


def write_metrics(file: Path, results: Mapping[str, Any]) -> dict[str, float | None]:
    """Write an evaluation's metrics as JSON, ``{"bbox/AP": 42.8, ...}``, and return them.

    NaN, which is COCO's "no object of that size" and no JSON, becomes None.
    """
    flat = flatten_results_dict(results)
    metrics = {name: None if math.isnan(value) else value for name, value in flat.items()}
    write_text(file, json.dumps(metrics, indent=1) + "\n")
    return metrics
