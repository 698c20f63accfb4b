"""Exported detectors beside the model that they were made from, each in a process of its own."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from resnest_d2.config import MissingFileError

from .apart import Way, measure_apart
from .timing import Found, Progress, Section, at_least

FORMATS = ("onnx", "pt2")
EAGER = "eager"
ENDINGS = {".jpg", ".jpeg", ".png"}


def predict_all(model: str, optimize: bool, files: tuple[str, ...]) -> Callable[[], None]:
    """The call that finds the objects of some pictures, with a checkpoint or an exported file."""
    from resnest_d2.inference import Predictor

    predictor = Predictor(model, optimize=optimize)

    def run() -> None:
        for file in files:
            predictor(file)

    return run


def measure_exported(args: argparse.Namespace, progress: Progress) -> Found:
    """Time a checkpoint and what it is exported to on the pictures of a folder.

    Returns:
        "model", number of "pictures", "ways" as :func:`~benchmarks.apart.measure_apart`, and
        "bytes" of the exported files.

    Raises:
        MissingFileError: the folder has no pictures.
    """
    files = sorted(f for f in args.export_images.glob("*") if f.suffix.lower() in ENDINGS)
    pictures = tuple(map(str, files[: args.export_count]))
    if not pictures:
        raise MissingFileError(f"--export-images {args.export_images} has no pictures")
    from resnest_d2.export import export_model  # it takes seconds, and other sections no export
    from resnest_d2.inference import Predictor

    found = {"model": args.export_model, "pictures": len(pictures), "bytes": {}}
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            EAGER: Way(predict_all, (args.export_model, False, pictures)),
            "optimised": Way(predict_all, (args.export_model, True, pictures)),
        }
        predictor = Predictor(args.export_model, device="cpu")
        for name in FORMATS:
            file = Path(folder) / f"detector.{name}"
            export_model(predictor, file)
            found["bytes"][name] = file.stat().st_size
            ways[name] = Way(predict_all, (str(file), False, pictures))

        def keep(times: Found) -> None:
            progress.keep({**found, "ways": times})

        earlier = Progress(progress.found.get("ways", {}), keep)
        return {**found, "ways": measure_apart(ways, args.rounds, earlier, EAGER)}


def render(found: Found) -> list[str]:
    """A table."""
    lines = [f"## Exported: {found['model']}, {found['pictures']} pictures", ""]
    lines.append("| | file (MiB) | loaded in (s) | memory (MiB) | times as fast as eager |")
    lines.append("|---|---:|---:|---:|---:|")
    for name, one in found["ways"].items():
        size = f"{found['bytes'][name] / 2**20:.1f}" if name in found["bytes"] else ""
        low, high = one["its quartiles"]
        ratio = f"{one['times as fast']:.2f} ({low:.2f} to {high:.2f})"
        facts = f"{one['loading']:.2f} | {one['memory'] / 2**20:.0f}"
        lines.append(f"| {name} | {size} | {facts} | {ratio} |")
    return lines


SECTION = Section(
    measure_exported,
    render,
    {
        "--export-model": {"default": "output/demo", "help": "a checkpoint or its folder"},
        "--export-images": {"type": Path, "default": Path("datasets/digits/val"), "help": "folder"},
        "--export-count": {"type": at_least(1), "default": 12, "help": "pictures of it"},
    },
)
