"""Draw a trained detector's predictions on images, a folder of images or videos."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from .. import data  # noqa: F401  (class names of the data sets that come with the package)
from ..config.load import choose_device
from ..config.settings import Settings
from ..data.images import set_max_pixels
from ..inference import Predictor, predict_inputs, set_score_threshold
from ..inference.drawing import import_to_draw
from ..inference.files import list_inputs, output_paths
from ..processes import require_alone
from ..weights.stored_config import load_config_of_weights
from . import add_max_pixels, one_line_errors, warnings_again


@warnings_again()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if an input had to be skipped, 2 if the arguments are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="(default: the one in the checkpoint)")
    add("--input", required=True, nargs="+", metavar="PATH", help="images, folders or videos")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    add(
        "--confidence-threshold",
        type=float,
        metavar="SCORE",
        help="least score that is drawn, 0 to 1 (default: the config's, or 0.5 if that is lower)",
    )
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
    args = parser.parse_args(arguments)
    output, threshold = args.output, args.confidence_threshold
    for name in ("resnest_d2", "fvcore", "detectron2"):
        setup_logger(name=name)
    with one_line_errors():
        require_alone()
        set_max_pixels(args.max_pixels)
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"--confidence-threshold must be between 0 and 1, got {threshold}")
        settings = Settings.of(load_config_of_weights(args.config_file, args.opts))
        files = list_inputs(args.input)
        output_paths(files, output)
        import_to_draw("detectron2.utils.visualizer")  # found missing before the model is loaded
        choose_device(settings)
        predictor = Predictor(settings, args.allow_untrained)
        least = 0.5 if threshold is None else threshold  # evaluation's low defaults would clutter
        set_score_threshold(predictor.model, least, only_raise=threshold is None)
        skipped = predict_inputs(predictor, files, output)
    print(f"{len(files) - len(skipped)} of {len(files)} inputs drawn to {output}")
    if skipped:
        print(f"Not drawn, or not to their end: {', '.join(map(str, skipped))}")
    return 1 if skipped else 0
