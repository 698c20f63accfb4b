"""What a reader finds in a file: what it repaired, and what is wrong."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LISTED = 5  # so many examples are named in a message
LONGEST = 200  # characters of an example


class Notes:
    """Collects what a reader finds in one file.

    Args:
        file: its name begins each warning.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.kinds: dict[str, list[Any]] = defaultdict(list)
        self.errors: list[str] = []
        """What is wrong, a line each, which begins with the entry's kind and id."""

    def add(self, kind: str, which: Any) -> None:
        """Note one repair.

        Args:
            kind: a sentence without its end, in which "{n}" stands for the number of cases.
            which: the case's id, name or the like.
        """
        self.kinds[kind].append(which)

    def error(self, text: str) -> None:
        """Note an error, as a line of :attr:`errors`."""
        self.errors.append(text)

    def report(self) -> None:
        """Warn of each kind of repair, with the number of its cases and some of them."""
        for kind, which in self.kinds.items():
            logger.warning(
                "%s: %s: %s", self.file, kind.replace("{n}", str(len(which))), some(which)
            )


def some(values: Sequence[Any]) -> str:
    """List the first few of some values."""
    texts = [str(value) for value in values[:LISTED]]
    listed = ", ".join(t if len(t) <= LONGEST else f"{t[:LONGEST]}..." for t in texts)
    return f"{listed}, ..." if len(values) > LISTED else listed
