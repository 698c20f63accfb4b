"""The command lines, one module each; ``resnest_d2_cli`` runs them."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from detectron2.utils.logger import setup_logger

from ..config import InputError, known_warnings  # noqa: F401  (it silences them)

if TYPE_CHECKING:
    from ..inference import Predictor

MODELS = "a checkpoint, the folder of a training, a name of the zoo or an exported file"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command on wrong input with one line and exit code 2; any other error is a defect.

    RESNEST_D2_TRACEBACK=1 keeps the tracebacks of wrong input, too.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except InputError as error:
        if os.getenv("RESNEST_D2_TRACEBACK"):
            raise
        message = str(error)
        if "Original Traceback" in message:  # of a loader's process; its last line is the message
            message = message.rstrip().splitlines()[-1].partition(": ")[2]
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def running(*packages: str) -> Iterator[None]:
    """Run a command: its messages on the terminal, wrong input in one line.

    Args:
        packages: whose messages are shown, by default those of Detectron2 and fvcore too.
    """
    for name in packages or ("resnest_d2", "fvcore", "detectron2"):
        setup_logger(name=name)
    logging.captureWarnings(True)
    with one_line_errors():
        yield


def add_model_arguments(parser: argparse.ArgumentParser, kinds: str = MODELS) -> None:
    """Add the options that :func:`load_predictor` reads; nothing may follow them."""
    parser.add_argument("--model", default="", metavar="MODEL", help=kinds)
    text = "(default: the one in the checkpoint)"
    parser.add_argument("--config-file", default="", metavar="FILE", help=text)
    text = "run even if the weights leave parameters at random values"
    parser.add_argument("--allow-untrained", action="store_true", help=text)
    text = "KEY VALUE pairs that override the config, e.g. MODEL.WEIGHTS x"
    parser.add_argument("--opts", default=[], nargs=argparse.REMAINDER, help=text)


def load_predictor(args: argparse.Namespace, **options: Any) -> "Predictor":
    """Load the detector that a command line names.

    Args:
        args: with the options of :func:`add_model_arguments`.
        options: of :class:`~resnest_d2.inference.Predictor`.

    Raises:
        InputError: as the predictor.
    """
    from ..inference import Predictor

    return Predictor(
        args.model,
        config_file=args.config_file,
        options=args.opts,
        allow_untrained=args.allow_untrained,
        **options,
    )


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add the option whose value is for :func:`resnest_d2.data.images.set_max_pixels`."""
    text = "read pictures of up to N pixels (default: 178956970, Pillow's guard against bombs)"
    parser.add_argument("--max-pixels", type=int, metavar="N", help=text)
