"""The command lines, one module each; ``python -m resnest_d2`` and ``tools/`` run them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command on wrong input with one line and exit code 2, not with a traceback.

    Detectron2 reports wrong input by assertions and ``KeyError`` too. One without a message is a
    defect, not an answer, and keeps its traceback; RESNEST_D2_TRACEBACK=1 keeps all of them.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, AssertionError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        if message and " " not in str(message):  # a bare key
            message = f"there is nothing named {message!r}"
        if not message or os.getenv("RESNEST_D2_TRACEBACK"):
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
