"""``resnest-d2 <command>``; outside of the package, so that help does not wait for PyTorch."""

import difflib
import importlib
import importlib.metadata
import os
import select
import sys
from collections.abc import Sequence

# What each command does; its module in resnest_d2.commands is imported when it is called.
COMMANDS = {
    "train": "train or evaluate a detector",
    "predict": "find objects in pictures, folders and videos",
    "export": "write a detector to a file that runs elsewhere: ONNX, torch.export",
    "check-data": "check a data set in COCO's format and every picture of it",
    "convert": "convert published weights to Detectron2's names",
    "publish": "make a trained model ready for others",
    "reproduce": "evaluate published models and compare with their figures",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 2 if there is no such command, 1 if nobody reads its output.

    That ends in silence, as after ``| head``; errors of other pipes do not.
    """
    try:
        try:
            return _run((sys.argv[1:] if arguments is None else arguments) or [""])
        finally:
            sys.stdout.flush()  # at its exit Python could only print the error
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str]) -> int:
    name, *rest = arguments
    if name in COMMANDS:
        sys.argv[0] = f"resnest-d2 {name}"  # argparse names the program by it
        module = importlib.import_module(f"resnest_d2.commands.{name.replace('-', '_')}")
        return module.main(rest)
    usage = "usage: resnest-d2 COMMAND ... | --version"
    lines = [usage, "", "commands (COMMAND --help tells their options):"]
    lines += [f"  {command:<10} {text}" for command, text in COMMANDS.items()]
    if name == "--version":
        print(f"resnest_d2 {importlib.metadata.version('resnest_d2')}")
        return 0
    if name in ("", "-h", "--help"):
        print("\n".join(lines))
        return 0 if name else 2
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    print(f"error: no command {name!r}{hint}", file=sys.stderr)
    return 2
