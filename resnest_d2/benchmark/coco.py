"""COCO evaluation by its implementations, and what is around it."""

import argparse
import contextlib
import copy
import importlib.util
import io
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..engine.rle import encode_masks
from .timing import Report, measure

HEIGHT, WIDTH = 480, 640
CLASSES = 80
OBJECTS = 7  # an image, as in COCO's val2017
Parts = dict[str, float]


class RandomSet:
    """Ground truth and detections near it, with masks.

    Args:
        images: how many.
        detections: of each image.
        seed: of what is drawn.

    Raises:
        ValueError: no images or no detections.
    """

    def __init__(self, images: int, detections: int, seed: int = 0) -> None:
        if images < 1 or detections < 1:
            raise ValueError(
                f"--images and --detections must be at least 1, got {images} and {detections}"
            )
        self.random = np.random.RandomState(seed)
        ids = range(1, images + 1)
        self.dataset: dict[str, Any] = {
            "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in ids],
            "categories": [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)],
            "annotations": [],
        }
        self.detections: list[dict[str, Any]] = []
        for image_id in ids:
            objects = [self._object(image_id) for _ in range(OBJECTS)]
            self.dataset["annotations"] += objects
            self.detections += [self._detection(image_id, objects) for _ in range(detections)]

    def _object(self, image_id: int) -> dict[str, Any]:
        w, h = self.random.uniform(8, WIDTH / 2), self.random.uniform(8, HEIGHT / 2)
        x, y = self.random.uniform(0, WIDTH - w), self.random.uniform(0, HEIGHT - h)
        return {
            "id": len(self.dataset["annotations"]) + self.random.randint(1 << 40),
            "image_id": image_id,
            "category_id": int(self.random.randint(1, CLASSES + 1)),
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": int(self.random.rand() < 0.02),
            "segmentation": self._mask([x, y, w, h]),
        }

    def _detection(self, image_id: int, objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
        near = objects[self.random.randint(len(objects))]
        x, y, w, h = near["bbox"] + self.random.normal(size=4) * 4
        x, y = float(np.clip(x, 0, WIDTH - 9)), float(np.clip(y, 0, HEIGHT - 9))
        box = [x, y, float(np.clip(w, 4, WIDTH - x)), float(np.clip(h, 4, HEIGHT - y))]
        known = self.random.rand() < 0.5
        return {
            "image_id": image_id,
            "category_id": near["category_id"] if known else int(self.random.randint(1, 81)),
            "bbox": box,
            "score": float(self.random.rand()),
            "segmentation": self._mask(box),
        }

    def _mask(self, box: Sequence[float]) -> dict[str, Any]:
        """An ellipse in the box, as RLE."""
        x, y, w, h = box
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], 1)
        (rle,) = mask_util.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)
        return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def implementations() -> dict[str, tuple[Callable, Callable]]:
    """Class of data set and evaluator of each implementation that is installed."""

    def plain(dataset: dict[str, Any]) -> COCO:
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        return truth

    found: dict[str, tuple[Callable, Callable]] = {"pycocotools": (plain, COCOeval)}
    if importlib.util.find_spec("hotcoco"):
        import hotcoco

        found["hotcoco"] = (hotcoco.COCO, hotcoco.COCOeval)
    if importlib.util.find_spec("faster_coco_eval"):
        import faster_coco_eval

        found["faster-coco-eval"] = (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster)
    return found


def measure_evaluation(
    data: RandomSet, rounds: int
) -> tuple[dict[str, list[Parts]], dict[str, list[float]]]:
    """Time each implementation, in turn, and keep its metrics.

    Returns:
        seconds of each part in each round, and all metrics of boxes and masks, by implementation.
    """
    kinds = implementations()
    times: dict[str, list[Parts]] = {name: [] for name in kinds}
    metrics: dict[str, list[float]] = {}
    for _, (name, (dataset, evaluator)) in itertools.product(range(rounds), kinds.items()):
        parts: Parts = {}
        metrics[name] = []
        with contextlib.redirect_stdout(io.StringIO()):
            with _timed(parts, "read ground truth"):
                truth = dataset(data.dataset)
            for task in ("bbox", "segm"):
                found = copy.deepcopy(data.detections)
                if task == "segm":
                    for detection in found:
                        del detection["bbox"]
                with _timed(parts, f"{task}: read detections"):
                    loaded = truth.loadRes(found)
                evaluation = evaluator(truth, loaded, task)
                with _timed(parts, f"{task}: evaluate and accumulate"):
                    evaluation.evaluate()
                    evaluation.accumulate()
                evaluation.summarize()
                metrics[name] += [float(value) for value in evaluation.stats[:12]]
        times[name].append(parts)
    return times, metrics


def measure_surroundings(images: int, detections: int) -> Parts:
    """Seconds of what comes before: masks to RLE in Detectron2's way and ours, writing JSON."""
    parts: Parts = {}
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 10, 300, 200]]).repeat(detections, 1))
    instances.scores = torch.rand(detections)
    instances.pred_classes = torch.zeros(detections, dtype=torch.long)
    masks = torch.zeros(detections, HEIGHT, WIDTH, dtype=torch.bool)
    masks[:, 10:200, 10:300] = True
    instances.pred_masks = masks
    found: list[dict[str, Any]] = []
    ways = {
        "masks to RLE (Detectron2)": lambda: instances_to_coco_json(instances, 1),
        "masks to RLE (resnest_d2)": lambda: encode_masks(masks),
    }
    for name, times in measure(ways, rounds=images).items():
        parts[name] = sum(times.seconds)
    for image_id in range(images):
        found += instances_to_coco_json(instances, image_id)
    with _timed(parts, "JSON"):
        json.dumps(found)
    return parts


@contextlib.contextmanager
def _timed(parts: Parts, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    parts[name] = time.perf_counter() - start


def run(args: argparse.Namespace) -> Report:
    """The section "coco" of ``tools/benchmark.py``: boxes and masks of a random set."""
    data = RandomSet(args.images, args.detections)
    times, metrics = measure_evaluation(data, args.rounds)
    around = measure_surroundings(min(args.images, 50), args.detections)
    parts = list(next(iter(times.values()))[0])
    medians = {
        name: {part: statistics.median(r[part] for r in rounds) for part in parts}
        for name, rounds in times.items()
    }
    lines = [f"## COCO evaluation, {args.images} images of {args.detections} detections", ""]
    lines += [f"| seconds | {' | '.join(times)} |", f"|---|{'---:|' * len(times)}"]
    for part in parts:
        cells = " | ".join(f"{medians[name][part]:.3f}" for name in times)
        lines.append(f"| {part} | {cells} |")
    plain = [sum(v for k, v in r.items() if "evaluate" in k) for r in times["pycocotools"]]
    for name, rounds in times.items():
        own = [sum(v for k, v in r.items() if "evaluate" in k) for r in rounds]
        ratio = statistics.median(a / b for a, b in zip(plain, own, strict=True))
        gap = np.abs(np.array(metrics[name]) - np.array(metrics["pycocotools"])).max()
        lines += ["", f"{name}: evaluates {ratio:.1f} times as fast as pycocotools; the greatest"]
        lines[-1] += f" difference of its 24 metrics is {gap:.1e}."
    factor = args.images / min(args.images, 50)
    scaled = {name: seconds * factor for name, seconds in around.items()}
    listed = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in scaled.items())
    lines += ["", f"Around it, for as many images: {listed}."]
    return lines, {"seconds": times, "metrics": metrics, "around": scaled}
