"""Run a trained detector on images, folders and videos: drawings, COCO's results, crops."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger

from .. import data  # noqa: F401  (class names of the data sets that come with the package)
from ..config import InputError, require_int
from ..config.settings import Settings
from ..data.coco_json import read_coco
from ..data.images import set_max_pixels
from ..files import check_writable
from ..inference import Outputs, Predictor, predict_inputs
from ..inference.files import list_inputs
from ..processes import require_alone
from ..weights.stored_config import load_config_of_weights
from . import add_max_pixels, one_line_errors, warnings_again


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--model",
        metavar="MODEL",
        help="a name of the zoo, a checkpoint, the folder of a training or an exported file, in "
        "place of --config-file and MODEL.WEIGHTS",
    )
    add("--config-file", default="", metavar="FILE", help="(default: the one in the checkpoint)")
    add("--input", required=True, nargs="+", metavar="PATH", help="images, folders or videos")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    add(
        "--confidence-threshold",
        type=float,
        metavar="SCORE",
        help="least score of a detection, 0 to 1 (default: the config's; of drawings and crops 0.5 "
        "if that is lower)",
    )
    add("--json", type=Path, metavar="FILE", help="write all detections as COCO's results")
    add("--json-per-image", action="store_true", help="write a JSON file for each input")
    add(
        "--input-json",
        type=Path,
        metavar="FILE",
        help="run on the images of this COCO file, which --input is the folder of, and take ids "
        "of images and classes from it",
    )
    add("--no-draw", action="store_true", help="draw nothing")
    add("--save-crops", action="store_true", help="write each detection's part of the picture")
    add("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    add("--tile", type=int, metavar="PIXELS", help="run on tiles of this size, by SAHI")
    add("--overlap", type=float, default=0.2, help="of tiles, 0 to 0.9 (default: 0.2)")
    add("--optimize", action="store_true", help="fold norms first, which takes less time an image")
    add("--half", action="store_true", help="compute in half precision: float16, on CPUs bfloat16")
    add_max_pixels(parser)
    add(
        "--allow-untrained",
        action="store_true",
        help="run even if MODEL.WEIGHTS leaves parameters at random values",
    )
    add(
        "--opts",
        default=[],
        nargs=argparse.REMAINDER,
        help="KEY VALUE pairs, e.g. MODEL.WEIGHTS x; for a .py config key=value",
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Check what can be told before a model is loaded.

    Raises:
        ValueError: a number is out of range, or nothing would be written.
        OSError: a file cannot be written.
    """
    threshold = args.confidence_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--confidence-threshold must be between 0 and 1, got {threshold}")
    require_int("--batch-size", args.batch_size, least=1)
    if args.no_draw and not (args.json or args.json_per_image or args.save_crops):
        raise InputError("--no-draw leaves nothing to write: add --json FILE or --json-per-image")
    if args.model and args.config_file:
        raise InputError("--model has a config of its own: leave --config-file out")
    if args.json:
        check_writable(args.json)


def inputs(args: argparse.Namespace) -> tuple[list[Path], Outputs]:
    """List the files, and what is written of them.

    Raises:
        InputError, FileNotFoundError: as :func:`list_inputs` and :func:`read_coco`.
    """
    drawn = {"draw": not args.no_draw, "crops": args.save_crops}
    written = {"per_image": args.json_per_image, "json": args.json}
    outputs = Outputs(args.output, **drawn, **written)
    if not args.input_json:
        return list_inputs(args.input), outputs
    if len(args.input) != 1:
        raise InputError("--input-json needs one --input, the folder of its images")
    listed = read_coco(args.input_json, args.input[0])
    outputs.image_ids = {Path(image["file_name"]): image["id"] for image in listed.images}
    outputs.category_ids = {name: number for number, name in listed.categories.items()}
    return list(outputs.image_ids), outputs


@warnings_again()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if an input had to be skipped, 2 if the arguments are wrong."""
    args = make_parser().parse_args(arguments)
    for name in ("resnest_d2", "fvcore", "detectron2"):
        setup_logger(name=name)
    with one_line_errors():
        require_alone()
        set_max_pixels(args.max_pixels)
        check(args)
        options: dict[str, Any] = {"optimize": args.optimize, "options": args.opts}
        model: Any = args.model
        if model is None:
            model = Settings.of(load_config_of_weights(args.config_file, options.pop("options")))
        files, outputs = inputs(args)
        outputs.check(files)  # found missing before the model is loaded
        options |= {"half": args.half, "tile": args.tile, "overlap": args.overlap}
        predictor = Predictor(model, args.allow_untrained, **options)
        if args.confidence_threshold is not None:
            predictor.set_score_threshold(args.confidence_threshold)
        elif args.json or args.json_per_image:  # drawings would be cluttered
            outputs.least = 0.5
        else:
            predictor.set_score_threshold(0.5, only_raise=True)
        skipped = predict_inputs(predictor, files, outputs, args.batch_size)
    what = "drawn" if outputs.draw else "written"
    print(f"{len(files) - len(skipped)} of {len(files)} inputs {what} to {args.output}")
    if skipped:
        print(f"Not {what}, or not to their end: {', '.join(map(str, skipped))}")
    return 1 if skipped else 0
