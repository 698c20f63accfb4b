"""COCO evaluation by its implementations, and what is around it."""

import argparse
import contextlib
import copy
import importlib.util
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnest_d2.data.rle import encode_masks
from resnest_d2.evaluation.coco import FastCOCOEvaluator

from .timing import Report, Times, as_json, measure

HEIGHT, WIDTH = 480, 640
CLASSES = 80
OBJECTS = 7  # an image, as in COCO's val2017
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # of Detectron2's results
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


def measure_whole(images: int, detections: int) -> dict[str, dict[str, Any]]:
    """An evaluation by Detectron2's evaluator and ours, from instances with masks to metrics.

    Returns:
        "seconds" of images' processing ("process") and of the rest ("evaluate"), and "metrics", by
        evaluator.
    """
    name = "resnest_d2_benchmark"
    data = RandomSet(images, detections)
    by_image: dict[int, list[dict[str, Any]]] = {}
    for detection in data.detections:
        by_image.setdefault(detection["image_id"], []).append(detection)
    seconds: dict[str, Parts] = {}
    metrics: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "truth.json"
        file.write_text(json.dumps({"info": {}, **data.dataset}))
        metadata = MetadataCatalog.get(name)
        metadata.set(
            json_file=str(file),
            evaluator_type="coco",
            thing_classes=[str(i) for i in range(1, CLASSES + 1)],
            thing_dataset_id_to_contiguous_id={i: i - 1 for i in range(1, CLASSES + 1)},
        )
        try:
            for key, kind in (("Detectron2", COCOEvaluator), ("resnest_d2", FastCOCOEvaluator)):
                # Detectron2's own compiled evaluation is not in every installation.
                options = {"use_fast_impl": False} if key == "Detectron2" else {}
                with contextlib.redirect_stdout(io.StringIO()):
                    evaluator = kind(name, output_dir=folder, **options)
                    evaluator.reset()
                    parts: Parts = {"process": 0.0}
                    for image_id, found in by_image.items():
                        output = _instances(found)
                        with _timed(parts, "one image"):
                            evaluator.process([{"image_id": image_id}], [{"instances": output}])
                        parts["process"] += parts.pop("one image")
                    with _timed(parts, "evaluate"):
                        results = evaluator.evaluate()
                seconds[key] = parts
                metrics[key] = [results[task][m] for task in ("bbox", "segm") for m in METRICS]
        finally:
            MetadataCatalog.pop(name)
    return {"seconds": seconds, "metrics": metrics}


def _instances(found: Sequence[dict[str, Any]]) -> Instances:
    """Of one image, with masks of its size, as a detector gives them."""
    instances = Instances((HEIGHT, WIDTH))
    boxes = torch.tensor([detection["bbox"] for detection in found])
    instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
    instances.scores = torch.tensor([detection["score"] for detection in found])
    instances.pred_classes = torch.tensor([detection["category_id"] - 1 for detection in found])
    masks = mask_util.decode([detection["segmentation"] for detection in found])
    instances.pred_masks = torch.from_numpy(masks.transpose(2, 0, 1).copy()).bool()
    return instances


@contextlib.contextmanager
def _timed(parts: Parts, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    parts[name] = time.perf_counter() - start


def run(args: argparse.Namespace) -> Report:
    """The section "coco" of ``python -m benchmarks``: boxes and masks of a random set."""
    data = RandomSet(args.images, args.detections)
    times, metrics = measure_evaluation(data, args.rounds)
    around = measure_surroundings(min(args.images, 50), args.detections)
    parts = list(next(iter(times.values()))[0])
    summary = {
        part: as_json(
            {name: Times(tuple(r[part] for r in rounds)) for name, rounds in times.items()},
            "pycocotools",
        )
        for part in parts
    }
    lines = [f"## COCO evaluation, {args.images} images of {args.detections} detections", ""]
    lines += [f"| seconds | {' | '.join(times)} |", f"|---|{'---:|' * len(times)}"]
    for part in parts:
        cells = " | ".join(f"{found['median']:.3f}" for found in summary[part].values())
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
    whole = measure_whole(args.images, args.detections)
    lines += ["", "| whole evaluation | processing images (s) | the rest (s) | together (s) |"]
    lines.append("|---|---:|---:|---:|")
    for name, parts in whole["seconds"].items():
        a, b = parts["process"], parts["evaluate"]
        lines.append(f"| {name} | {a:.1f} | {b:.1f} | {a + b:.1f} |")
    return lines, {"times": summary, "metrics": metrics, "around": scaled, "whole": whole}
