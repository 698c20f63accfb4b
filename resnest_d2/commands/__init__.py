"""The command lines, one module each; ``python -m resnest_d2`` and ``tools/`` run them."""

import argparse
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict

from ..files import write_text

# These report wrong input by assertions and KeyErrors; raised by anyone else, they are defects.
_ASSERTING = ("detectron2", "fvcore", "omegaconf", "pycocotools", "yacs")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command on wrong input with one line and exit code 2, not with a traceback.

    A defect keeps its traceback: an error of another type, one without a message, an assertion or a
    ``KeyError`` of our own code. RESNEST_D2_TRACEBACK=1 keeps all of them.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, AssertionError, KeyError) as error:
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
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


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
