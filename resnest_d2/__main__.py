"""``resnest-d2 <command>``, also as ``python -m resnest_d2 <command>``."""

import importlib
import sys
from collections.abc import Sequence

from .config import did_you_mean

# Each command's module, and what it does; a module is imported when its command is called.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train_net", "train or evaluate a detector (YAML and .py configs)"),
    "predict": ("predict", "draw detections on images, folders of images and videos"),
    "export": ("export_model", "write a detector to a file that runs elsewhere: ONNX and others"),
    "reproduce": ("reproduce", "evaluate published models and compare with their figures"),
    "convert": ("convert_weights", "convert published weights to Detectron2's names"),
    "publish": ("publish_checkpoint", "make a trained model ready for others"),
    "check-data": ("check_data", "check a data set and read every picture of it"),
    "analyze": ("analyze", "write a page about predictions: AP, errors, worst images"),
    "compare": ("compare", "compare two models on one data set"),
    "attention": ("attention", "draw what a detector looks at"),
    "web": ("web", "serve a page that shows detections in pictures"),
    "demo": ("demo", "train on handwritten digits, evaluate and draw"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 2 if there is no such command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    by_module = {module: command for command, (module, _) in COMMANDS.items()}
    name = by_module.get(name, name)
    if name in COMMANDS:
        sys.argv[0] = f"resnest-d2 {name}"  # argparse names the program by it
        module = importlib.import_module(f"{__package__}.commands.{COMMANDS[name][0]}")
        return module.main(rest)
    lines = ["usage: resnest-d2 COMMAND ...", "", "commands (COMMAND --help tells their options):"]
    lines += [f"  {command:<10} {text}" for command, (_, text) in COMMANDS.items()]
    if name in ("", "-h", "--help"):
        print("\n".join(lines))
        return 0 if name else 2
    print(f"error: no command {name!r}{did_you_mean(name, COMMANDS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
