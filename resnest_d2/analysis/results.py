"""One model's predictions on a data set, evaluated by hotcoco together with their errors."""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import InputError
from ..data.coco_json import CocoData
from ..data.rle import decode_counts
from ..data.values import number, numbers

logger = logging.getLogger(__name__)

TASKS = {"bbox": "boxes", "segm": "masks"}
FIELDS = {"bbox": "bbox", "segm": "segmentation"}


@dataclass
class Analysis:
    """The evaluation of one task, boxes or masks. All AP are in percent, None where undefined."""

    task: str
    data: CocoData
    threshold: float
    """The least score of the predictions that count in single pictures and confusions."""
    evaluation: Any
    """``hotcoco.COCOeval`` of all predictions, finished."""
    shown: list[dict[str, Any]]
    """The predictions of at least that score."""
    evaluation_shown: Any
    """``hotcoco.COCOeval`` of these."""

    @property
    def metrics(self) -> dict[str, float | None]:
        """COCO's twelve metrics by their names."""
        results = self.evaluation.get_results()
        return {name: _percent(results[name]) for name in self.evaluation.metric_keys()}

    @property
    def by_class(self) -> dict[int, list[float | None]]:
        """AP, AP50, AP75 and AP of small, medium and large objects by category id."""
        params = self.evaluation.params
        # Shape (IoU thresholds, recalls, classes, sizes); -1 where there is no ground truth.
        precision = np.asarray(self.evaluation.eval["precision"])[..., -1]
        at = [int(np.abs(np.asarray(params.iou_thrs) - iou).argmin()) for iou in (0.5, 0.75)]
        found = {}
        for index, category in enumerate(params.cat_ids):
            of_class = precision[:, :, index]
            parts = [of_class[..., 0], *(of_class[i, :, 0] for i in at)]
            parts += [of_class[..., size] for size in (1, 2, 3)]
            found[category] = [_percent(p.mean() if p.min() >= 0 else -1) for p in parts]
        return found

    @property
    def objects(self) -> Counter[int]:
        """Numbers of annotated objects, without crowds, by category id."""
        return Counter(a["category_id"] for a in self.data.annotations if not a["iscrowd"])

    @cached_property
    def diagnostics(self) -> dict[str, Any]:
        """What ``hotcoco.COCOeval.image_diagnostics`` tells at the threshold and an IoU of 0.5."""
        return self.evaluation_shown.image_diagnostics()

    @property
    def images(self) -> dict[int, dict[str, Any]]:
        """Counts "tp", "fp", "fn" and score "f1" by image id, where there is an object or prediction."""
        summary = self.diagnostics["img_summary"]
        return {k: v for k, v in sorted(summary.items()) if v["tp"] + v["fp"] + v["fn"]}


def read_predictions(file: str | Path, data: CocoData) -> list[dict[str, Any]]:
    """Read results in COCO's format and check each against a data set.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is in another format, or a prediction is malformed, or of an image or
            category that the data set does not have; the message names it.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of predictions {file}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        kind = "annotations" if isinstance(found, dict) and "images" in found else "another format"
        raise InputError(f"{file} holds {kind}, not COCO's results, a list with an object for each")
    sizes = {image["id"]: [image["height"], image["width"]] for image in data.images}
    fields = [field for field in FIELDS.values() if any(field in one for one in found)]
    for index, one in enumerate(found, 1):
        if problem := _problem(one, fields, sizes, data):
            raise InputError(f"{file}: prediction {index} {problem}")
    if any("keypoints" in one for one in found):
        logger.warning("%s: keypoints are left out; boxes and masks are evaluated", file)
    if not found:
        logger.warning("%s: there are no predictions", file)
    return found


def _problem(
    one: dict[str, Any], fields: list[str], sizes: dict[int, list[int]], data: CocoData
) -> str:
    """Tell what is wrong with a prediction; empty if nothing is."""
    for key, known in (("image_id", sizes), ("category_id", data.categories)):
        if not isinstance(one.get(key), int) or one[key] not in known:
            return f"has {key} {one.get(key)!r}, which {data.file} does not have"
    if not fields:
        return "has neither 'bbox' nor 'segmentation'"
    missing = next((field for field in fields if field not in one), None)
    if missing:
        return f"has no {missing!r}, which others have"
    score = number(one.get("score"))
    if score is None or not 0 <= score <= 1:
        return f"must have a score from 0 to 1, got {one.get('score')!r}"
    if "bbox" in fields:
        box = numbers(one["bbox"])
        if box is None or len(box) != 4 or min(box[2:]) < 0:
            return f"must have a box of x, y, width and height, got {one['bbox']!r}"
    if "segmentation" in fields and not _is_mask(one["segmentation"], sizes[one["image_id"]]):
        height, width = sizes[one["image_id"]]
        return f"must have a mask in compressed RLE of its image's size, {height} x {width}"
    return ""


def _is_mask(value: Any, size: list[int]) -> bool:
    if not isinstance(value, dict) or value.get("size") != size:
        return False
    try:
        runs = decode_counts(value["counts"])
    except (KeyError, TypeError, ValueError):
        return False
    return min(runs, default=-1) >= 0 and sum(runs) == size[0] * size[1]


def analyze(
    data: CocoData,
    found: list[dict[str, Any]],
    threshold: float = 0.5,
    max_detections: int = 100,
) -> list[Analysis]:
    """Evaluate boxes, and masks where predictions and annotations all have them.

    Args:
        data: the ground truth.
        found: what :func:`read_predictions` returns.
        threshold: the least score that counts in single pictures and confusions; AP, error kinds
            and calibration take all predictions.
        max_detections: so many of the most confident ones count in an image.

    Raises:
        ImportError: hotcoco is not installed.
        InputError: there are masks only, and the annotations have none.
    """
    try:
        import hotcoco
    except ModuleNotFoundError as error:
        raise ImportError(
            "predictions are analysed by hotcoco, which is not installed: "
            "pip install 'resnest_d2[fast-eval]'"
        ) from error
    tasks = [task for task, field in FIELDS.items() if found and field in found[0]] or ["bbox"]
    without = len(data.annotations) - data.num_masks
    if "segm" in tasks and without:
        message = f"masks are not evaluated: {without} annotations of {data.file} have none"
        if tasks == ["segm"]:
            raise InputError(message)
        logger.warning(message)
        tasks.remove("segm")
    most = max(Counter(one["image_id"] for one in found).values(), default=0)
    if most > max_detections:
        message = "%d predictions in one image, of which %d count; --max-detections counts more"
        logger.warning(message, most, max_detections)
    keys = ("id", "width", "height")
    truth = hotcoco.COCO(
        {
            "images": [{key: image[key] for key in keys} for image in data.images],
            "annotations": data.annotations,
            "categories": [{"id": key, "name": name} for key, name in data.categories.items()],
        }
    )

    def evaluate(task: str, chosen: list[dict[str, Any]]) -> Any:
        # With a box, its area and not the mask's would decide what is small or large.
        other = "bbox" if task == "segm" else "segmentation"
        chosen = [{k: v for k, v in one.items() if k not in (other, "keypoints")} for one in chosen]
        evaluation = hotcoco.COCOeval(truth, truth.load_res(chosen), task)
        evaluation.params.max_dets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summary_lines()  # as summarize, without printing
        return evaluation

    shown = [one for one in found if one["score"] >= threshold]
    return [
        Analysis(task, data, threshold, evaluate(task, found), shown, evaluate(task, shown))
        for task in tasks
    ]


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * float(value)
