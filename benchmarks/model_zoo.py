"""Write MODEL_ZOO.md: every model of the zoo with its cost and what was published about it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.zoo_markdown import COMMAND, render
from resnest_d2.commands import one_line_errors

DEFAULT = Path(__file__).resolve().parents[1] / "MODEL_ZOO.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if ``--check`` finds another file than the one it would write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT, metavar="FILE", help="the file")
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    args = parser.parse_args(arguments)
    with one_line_errors():
        expected = render()
        if not args.check:
            args.output.write_text(expected, encoding="utf-8")
            return 0
        if args.output.is_file() and args.output.read_text(encoding="utf-8") == expected:
            return 0
    print(f"{args.output} is missing or stale; {COMMAND} writes it anew", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
