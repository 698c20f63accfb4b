"""COCO's metrics by pycocotools and by hotcoco."""

import argparse
import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .timing import Found, Section, measure, summarize, table

HEIGHT, WIDTH = 480, 640
CLASSES = 80
OBJECTS, DETECTIONS = 7, 100  # an image; as many objects as in COCO's val2017
PYCOCOTOOLS = "pycocotools"
Annotation = dict[str, Any]


def random_set(images: int) -> tuple[Annotation, list[Annotation]]:
    """Ground truth, a fiftieth of it crowds, and detections near it, all with masks."""
    random = np.random.RandomState(0)
    truth: list[Annotation] = []
    found: list[Annotation] = []
    for image_id in range(1, images + 1):
        for _ in range(OBJECTS):
            w, h = random.uniform(8, WIDTH / 2), random.uniform(8, HEIGHT / 2)
            box = [random.uniform(0, WIDTH - w), random.uniform(0, HEIGHT - h), w, h]
            one = _annotation(image_id, int(random.randint(1, CLASSES + 1)), box)
            truth.append({**one, "id": len(truth) + 1, "iscrowd": int(random.rand() < 0.02)})
        for _ in range(DETECTIONS):
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
    read: Callable[..., Any], make: Callable[..., Any], file: Path, detections: list[Annotation]
) -> None:
    """Evaluate boxes and masks by a library's ``COCO`` and ``COCOeval``."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = read(str(file))
        for task in ("bbox", "segm"):
            found = copy.deepcopy(detections)
            for one in found if task == "segm" else ():
                del one["bbox"]  # or masks would not be loaded
            evaluation = make(truth, truth.loadRes(found), task)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()


def measure_coco(args: argparse.Namespace) -> Found:
    """Evaluate boxes and masks of a random set, from the file of annotations to the metrics."""
    dataset, detections = random_set(args.images)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "truth.json"
        file.write_text(json.dumps(dataset))
        runs = {
            PYCOCOTOOLS: partial(evaluate, COCO, COCOeval, file, detections),
            "hotcoco": partial(evaluate, hotcoco.COCO, hotcoco.COCOeval, file, detections),
        }
        times = measure(runs, args.rounds, warmup=0)
    return {"images": args.images, "times": summarize(times, PYCOCOTOOLS)}


def render(found: Found) -> list[str]:
    """A table."""
    title = f"COCO's metrics, {found['images']} images of {DETECTIONS} detections"
    return table(title, found["times"], PYCOCOTOOLS)


SECTION = Section(
    measure_coco,
    render,
    {"--images": {"type": int, "default": 2000, "help": "of the random set"}},
)
