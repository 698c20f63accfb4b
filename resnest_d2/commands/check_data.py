"""Check a data set in COCO's format, and read every picture of it."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from ..config import InputError
from ..data.coco_json import CocoData, read_coco
from ..data.images import PixelRange, read_image, set_max_pixels
from ..data.options import Options
from ..files import check_writable, make_folder
from . import add_max_pixels, running


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Define and read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True, metavar="FILE", help="annotations")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--boxes", action="store_true", help="a model of boxes needs no masks")
    parser.add_argument("--keypoints", action="store_true", help="check keypoints, too")
    text = "values of pictures of 16 or 32 bits that become 0 to 255, as INPUT.PIXEL_RANGE"
    parser.add_argument("--pixel-range", nargs=2, default=[], metavar=("LOW", "HIGH"), help=text)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write what was read, repaired")
    Options.add_arguments(parser)
    add_max_pixels(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if a picture cannot be read, 2 if the annotations are wrong."""
    args = parse_args(arguments)
    with running("resnest_d2"):
        set_max_pixels(args.max_pixels)
        pixel_range = PixelRange.of(args.pixel_range)
        if args.output is not None:
            if args.output.resolve() == Path(args.json).resolve():
                raise InputError(f"--output: {args.output} is --json's file")
            make_folder(args.output.parent)
            check_writable(args.output)
        data = read_coco(
            args.json,
            args.images,
            masks=not args.boxes,
            keypoints=args.keypoints,
            options=replace(Options.of(args), skip_bad_images=True, has_range=bool(pixel_range)),
            refuse=False,
        )
        broken = data.unreadable + find_broken(data, pixel_range)
        if args.output is not None and not data.errors:
            data.write(args.output)
    print(describe(data))
    if data.errors:
        print(data.describe_errors(shown=None))
    for problem in broken:
        print(problem)
    number = len(data.images) + len(data.unreadable)
    print(f"{len(broken)} of {number} images cannot be read")
    return 2 if data.errors else int(bool(broken))


def find_broken(data: CocoData, pixel_range: PixelRange | None = None) -> list[str]:
    """Read every picture, with a progress bar.

    Returns:
        what is wrong with those that cannot be read, a sentence each.
    """
    broken = []
    for image in tqdm(data.images, "images", unit="image"):
        try:
            read_image(image["file_name"], pixel_range=pixel_range)
        except InputError as error:
            broken.append(str(error))
    return broken


def describe(data: CocoData) -> str:
    """Tell how many annotations each class has, and in how many images."""
    counts = Counter(a["category_id"] for a in data.annotations)
    images = Counter(c for c, _ in {(a["category_id"], a["image_id"]) for a in data.annotations})
    rows = [[name, counts[key], images[key]] for key, name in data.categories.items()]
    names = ["class", "annotations", "images"]
    return tabulate(rows, names, "pipe", disable_numparse=[0]) if rows else ""  # "007" is a name
