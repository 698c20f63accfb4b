"""Draw what a detector looks at: its split-attention weights, and Grad-CAM of a detection."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from .. import data  # noqa: F401  (class names of the data sets that come with the package)
from ..config import InputError, did_you_mean, require_between, require_int
from ..data.images import read_image
from ..files import write_text
from ..inference import Predictor
from ..inference.attention import (
    choose_detection,
    draw_grad_cam,
    draw_weights,
    features_of,
    grad_cam,
    import_grad_cam,
    split_attention_weights,
    summarize,
)
from ..inference.files import output_paths
from ..modeling.split_attention import SplitAttentionConv2d
from . import add_model_arguments, load_predictor, setting_up, warnings_again

logger = logging.getLogger(__name__)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    which = parser.add_mutually_exclusive_group()
    text = "explain the N-th detection by score (default: 1, the best)"
    which.add_argument("--detection", type=int, default=1, metavar="N", help=text)
    text = "explain the best detection of this class"
    which.add_argument("--class", dest="name", default="", metavar="NAME", help=text)
    text = "feature of the backbone for Grad-CAM, such as res5 (default: the one that the score "
    add("--layer", default="", help=text + "depends on most)")
    text = "least score of a detection, 0 to 1 (default: 0.5)"
    add("--confidence-threshold", type=float, default=0.5, metavar="SCORE", help=text)
    add_model_arguments(parser)
    return parser


def load(args: argparse.Namespace) -> Predictor:
    """The detector.

    Raises:
        InputError: it is an exported file, or has no such class or feature, or as
            :class:`Predictor`.
    """
    predictor = load_predictor(args)
    if not isinstance(predictor.model, nn.Module):
        raise InputError(f"{args.model} is exported and cannot be looked into: give its checkpoint")
    predictor.set_score_threshold(args.confidence_threshold)
    if args.layer and args.layer not in (owners := features_of(predictor.model)):
        raise InputError(f"--layer {args.layer} is none of {', '.join(owners)}")
    known = predictor.metadata.get("thing_classes", None) or ()
    if args.name and args.name not in known:
        hint = did_you_mean(args.name, known)
        raise InputError(f"--class: the model knows no {args.name!r}{hint}")
    return predictor


def explain(
    predictor: Predictor, file: Path, image: np.ndarray, target: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Draw the figures of an image, and give their numbers.

    Raises:
        InputError: as :func:`grad_cam`.
    """
    with split_attention_weights(predictor.model) as weights:
        (result,) = predictor.run([image], [file])
    index = choose_detection(result, args.detection, args.name)
    numbers: dict[str, Any] = {"stages": summarize(weights), "detection": None}
    if weights:
        draw_weights(weights, target.with_name(f"{target.stem}_weights.png"))
    if index is None:
        what = f"detection of class {args.name!r}" if args.name else f"detection {args.detection}"
        logger.warning(
            "%s has no %s of score %g or more (it has %d in all), so there is no Grad-CAM",
            *(file, what, args.confidence_threshold, len(result.instances)),
        )
        return numbers
    found = result.instances[index]
    maps, layer = grad_cam(predictor, image, found, args.layer)
    box = found.pred_boxes.tensor[0].tolist()
    numbers["detection"] = {
        "class": result.names[index],
        "score": found.scores.item(),
        "box": box,
        "layer": layer,
        "share_in_box": {name: share_in_box(heat, box) for name, heat in maps.items()},
    }
    for name, heat in maps.items():
        if not heat.any():
            logger.warning("%s by %s: no part of %s raises the score", file, name, layer)
        drawn = draw_grad_cam(result, index, heat)
        Image.fromarray(drawn).save(target.with_name(f"{target.stem}_{name.lower()}.png"))
    return numbers


def share_in_box(heat: np.ndarray, box: Sequence[float]) -> float:
    """How much of a map lies in the pixels that a box touches, 0 to 1."""
    left, top, right, bottom = (int(side) for side in box)
    inside = heat[top : bottom + 1, left : right + 1]
    return float(inside.sum() / max(heat.sum(), 1e-9))


@warnings_again()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if an image has no detection to explain, 2 on wrong input."""
    args = make_parser().parse_args(arguments)
    with setting_up():
        require_int("--detection", args.detection, least=1)
        require_between("--confidence-threshold", args.confidence_threshold, 0, 1)
        targets = output_paths(args.images, args.output, drawn=False)
        images = [read_image(file) for file in args.images]
        import_grad_cam()
        predictor = load(args)
        radix = {m.radix for m in predictor.model.modules() if isinstance(m, SplitAttentionConv2d)}
        if not radix:
            logger.warning("The model has no split attention, so there are no weights to draw")
        if 1 in radix:
            logger.warning("RADIX 1 gates channels by a sigmoid: its weights do not sum to 1")
        args.output.mkdir(parents=True, exist_ok=True)
        numbers = {}
        for file, image, target in zip(args.images, images, targets, strict=True):
            numbers[str(file)] = explain(predictor, file, image, target, args)
            write_text(args.output / "attention.json", json.dumps(numbers, indent=1) + "\n")
    explained = sum(one["detection"] is not None for one in numbers.values())
    print(f"{explained} of {len(numbers)} detections explained in {args.output}")
    return 0 if explained == len(numbers) else 1
