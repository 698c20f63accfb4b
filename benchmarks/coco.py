"""COCO's metrics by pycocotools and by hotcoco."""

import argparse
import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .timing import Found, Progress, Section, at_least, measure, summarize, table

HEIGHT, WIDTH = 480, 640
CLASSES = 80
OBJECTS = 7  # an image, as in COCO's val2017
PYCOCOTOOLS, HOTCOCO = "pycocotools", "hotcoco"
Annotation = dict[str, Any]


def random_set(images: int, detections: int) -> tuple[Annotation, list[Annotation]]:
    """Ground truth in COCO's format, a fiftieth of it crowds, and detections near it, with masks.

    Args:
        images: how many.
        detections: of each image.
    """
    random = np.random.RandomState(0)
    truth: list[Annotation] = []
    found: list[Annotation] = []
    for image_id in range(1, images + 1):
        for _ in range(OBJECTS):
            w, h = random.uniform(8, WIDTH / 2), random.uniform(8, HEIGHT / 2)
            box = [random.uniform(0, WIDTH - w), random.uniform(0, HEIGHT - h), w, h]
            one = _annotation(image_id, int(random.randint(1, CLASSES + 1)), box)
            truth.append({**one, "id": len(truth) + 1, "iscrowd": int(random.rand() < 0.02)})
        for _ in range(detections):
            near = truth[-1 - random.randint(OBJECTS)]
            x, y, w, h = near["bbox"] + random.normal(size=4) * 4
            x, y = np.clip(x, 0, WIDTH - 9), np.clip(y, 0, HEIGHT - 9)
            box = [x, y, np.clip(w, 4, WIDTH - x), np.clip(h, 4, HEIGHT - y)]
            is_right = random.rand() < 0.5
            category = near["category_id"] if is_right else int(random.randint(1, CLASSES + 1))
            found.append({**_annotation(image_id, category, box), "score": float(random.rand())})
    pictures = [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)]
    categories = [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)]
    facts = {"info": {}, "images": pictures, "categories": categories}
    return facts | {"annotations": truth}, found


def _annotation(image_id: int, category: int, box: Sequence[float]) -> Annotation:
    """With an ellipse in the box as its mask."""
    x, y, w, h = box
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], 1)
    (rle,) = mask_util.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)
    mask = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    facts = {"image_id": image_id, "category_id": category, "segmentation": mask}
    return facts | {"bbox": [float(v) for v in box], "area": float(w * h)}


def evaluate(
    make: tuple[Callable[..., Any], Callable[..., Any]],
    file: Path,
    detections: list[Annotation],
    metrics: list[float],
) -> None:
    """Evaluate boxes and masks with an implementation's classes; the metrics go into a list."""
    metrics.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = make[0](str(file))
        for task in ("bbox", "segm"):
            found = copy.deepcopy(detections)
            for one in found if task == "segm" else ():
                del one["bbox"]  # or masks would not be loaded
            evaluation = make[1](truth, truth.loadRes(found), task)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            metrics += [float(value) for value in evaluation.stats[:12]]


def measure_coco(args: argparse.Namespace, _: Progress) -> Found:
    """Evaluate boxes and masks of a random set, from the file of annotations to 24 "metrics"."""
    dataset, detections = random_set(args.images, args.detections)
    kinds = {PYCOCOTOOLS: (COCO, COCOeval), HOTCOCO: (hotcoco.COCO, hotcoco.COCOeval)}
    metrics: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "truth.json"
        file.write_text(json.dumps(dataset))
        runs = {
            name: (lambda make=make, out=metrics[name]: evaluate(make, file, detections, out))
            for name, make in kinds.items()
        }
        times = measure(runs, args.rounds, warmup=0)
    case = f"{args.images} images of {args.detections} detections"
    return {"case": case, "times": summarize(times, PYCOCOTOOLS), "metrics": metrics}


def render(found: Found) -> list[str]:
    """A table, and the greatest difference of the metrics."""
    gaps = np.subtract(found["metrics"][HOTCOCO], found["metrics"][PYCOCOTOOLS])
    last = f"The greatest difference of 24 metrics is {np.abs(gaps).max():.1e}."
    return [*table(f"COCO's metrics, {found['case']}", found["times"], PYCOCOTOOLS), "", last]


SECTION = Section(
    measure_coco,
    render,
    {
        "--images": {"type": at_least(1), "default": 2000, "help": "of the random set"},
        "--detections": {"type": at_least(1), "default": 100, "help": "of each image"},
    },
)
