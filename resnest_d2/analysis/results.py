"""One model's predictions on a data set, evaluated by hotcoco together with their errors."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import InputError, import_extra
from ..data.coco_json import CocoData
from ..data.rle import decode_counts
from ..data.values import identity, number, numbers

logger = logging.getLogger(__name__)

TASKS = {"bbox": "boxes", "segm": "masks"}
FIELDS = {"bbox": "bbox", "segm": "segmentation"}
LONGEST_NAME = 24  # characters of a class's name in charts


@dataclass
class Analysis:
    """The evaluation of one task, boxes or masks. All AP are in percent, None where undefined."""

    task: str
    data: CocoData
    threshold: float
    """The least score of predictions that count in single images and confusions."""
    found: Sequence[dict[str, Any]]
    """All predictions."""
    shown: Sequence[dict[str, Any]]
    """The predictions that reach the threshold."""
    evaluation: Any
    """``hotcoco.COCOeval`` of all predictions, finished."""
    evaluation_shown: Any
    """``hotcoco.COCOeval`` of :attr:`shown`."""

    @property
    def metrics(self) -> dict[str, float | None]:
        """COCO's twelve metrics by their names."""
        results = self.evaluation.get_results()
        return {name: _percent(results[name]) for name in self.evaluation.metric_keys()}

    @property
    def by_class(self) -> dict[int, list[Any]]:
        """Objects, AP, AP50, AP75 and AP of small, medium and large ones by category id."""
        params = self.evaluation.params
        objects = Counter(a["category_id"] for a in self.data.annotations if not a["iscrowd"])
        # Shape (IoU thresholds, recalls, classes, sizes); -1 where there is no ground truth.
        precision = np.asarray(self.evaluation.eval["precision"])[..., -1]
        at_50, at_75 = (np.isclose(params.iou_thrs, iou) for iou in (0.5, 0.75))
        found = {}
        for index, category in enumerate(params.cat_ids):
            every, *sizes = np.moveaxis(precision[:, :, index], -1, 0)
            means = (p.mean() for p in (every, every[at_50], every[at_75], *sizes))
            found[category] = [objects[category], *map(_percent, means)]
        return found

    @cached_property
    def diagnostics(self) -> dict[str, Any]:
        """The answer of ``hotcoco.COCOeval.image_diagnostics`` at the threshold and IoU 0.50."""
        return self.evaluation_shown.image_diagnostics()

    @property
    def images(self) -> dict[int, dict[str, Any]]:
        """Its "tp", "fp", "fn" and "f1" by image id, where there are objects or predictions."""
        summary = self.diagnostics["img_summary"]
        return {k: v for k, v in sorted(summary.items()) if v["tp"] + v["fp"] + v["fn"]}


def read_predictions(file: str | Path, data: CocoData) -> list[dict[str, Any]]:
    """Read results in COCO's format and check each against a data set.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is in another format, or a prediction is malformed, or of an image or
            category that the data set does not have; the message names it.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no file of predictions {file}")
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{file} does not hold COCO's results, a list of predictions")
    sizes = {image["id"]: [image["height"], image["width"]] for image in data.images}
    fields = [field for field in FIELDS.values() if any(field in one for one in found)]
    found = [_plain(one, data) for one in found]
    for index, one in enumerate(found, 1):
        if problem := _problem(one, fields, sizes, data):
            raise InputError(f"{file}: prediction {index} {problem}")
    if any("keypoints" in one for one in found):
        logger.warning("%s: keypoints are left out, only boxes and masks are looked at", file)
    if not found:
        logger.warning("%s: there are no predictions", file)
    return found


def _plain(one: dict[str, Any], data: CocoData) -> dict[str, Any]:
    """A prediction with numbers where they are written as text, and with the data set's ids."""
    known = {"image_id": data.image_ids, "category_id": data.category_ids}
    read = {key: ids.get(identity(one.get(key)), one.get(key)) for key, ids in known.items()}
    read["score"] = one.get("score") if (value := number(one.get("score"))) is None else value
    if (box := numbers(one.get("bbox"))) is not None:
        read["bbox"] = box
    return {**one, **read}


def _problem(
    one: dict[str, Any], fields: list[str], sizes: dict[int, list[int]], data: CocoData
) -> str:
    """Tell what is wrong with a prediction; empty if nothing is."""
    for key, known in (("image_id", sizes), ("category_id", data.categories)):
        if type(one[key]) is not int or one[key] not in known:
            return f"has {key} {one.get(key)!r}, which {data.file} does not have"
    lacking = [field for field in fields or FIELDS.values() if field not in one]
    if lacking:
        return f"has no {' and no '.join(map(repr, lacking))}{', as others have' if fields else ''}"
    score, box = number(one.get("score")), numbers(one.get("bbox", [0] * 4))
    if score is None or not 0 <= score <= 1:
        return f"must have a score from 0 to 1, got {one.get('score')!r}"
    if box is None or len(box) != 4 or min(box[2:]) < 0:
        return f"must have a box of x, y, width and height, got {one['bbox']!r}"
    size = sizes[one["image_id"]]
    if "segmentation" in fields and not _is_mask(one["segmentation"], size):
        given = f"{one['segmentation']!r}"[:60]
        return f"must have compressed RLE of its image's size, {size}, as a mask, got {given}"
    return ""


def _is_mask(value: Any, size: list[int]) -> bool:
    try:
        runs = decode_counts(value["counts"])
        return value["size"] == size and min(runs) >= 0 and sum(runs) == size[0] * size[1]
    except (KeyError, TypeError, ValueError):
        return False


def analyze(
    data: CocoData,
    found: Sequence[dict[str, Any]],
    threshold: float = 0.5,
    max_detections: int = 100,
) -> list[Analysis]:
    """Evaluate boxes, and masks where predictions and annotations all have them.

    Args:
        data: the ground truth.
        found: what :func:`read_predictions` returns.
        threshold: the least score that counts in single images and confusions; AP, error kinds
            and calibration take all predictions.
        max_detections: so many of the most confident ones count in an image.

    Raises:
        ImportError: hotcoco is not installed.
        InputError: there are only masks, and annotations have none.
    """
    hotcoco = import_extra("hotcoco", "predictions are analysed by hotcoco, which", "fast-eval")
    tasks = [task for task, field in FIELDS.items() if found and field in found[0]] or ["bbox"]
    without = len(data.annotations) - data.num_masks
    if "segm" in tasks and without:
        message = f"masks cannot be evaluated: {without} annotations of {data.file} have none"
        if tasks == ["segm"]:
            raise InputError(message)
        logger.warning(message)
        tasks.remove("segm")
    most = max(Counter(one["image_id"] for one in found).values(), default=0)
    if most > max_detections:
        message = "an image has %d predictions, of which %d count; --max-detections counts more"
        logger.warning(message, most, max_detections)
    keys = ("id", "width", "height")
    content = {
        "images": [{key: image[key] for key in keys} for image in data.images],
        "annotations": data.annotations,
        # Charts show these names.
        "categories": [
            {"id": key, "name": name[:LONGEST_NAME]} for key, name in data.categories.items()
        ],
    }
    truth = hotcoco.COCO(content)

    def evaluate(task: str, chosen: Sequence[dict[str, Any]]) -> Any:
        # Beside a mask, the box's area would decide what is small or large.
        keys = ("image_id", "category_id", "score", FIELDS[task])
        results = truth.load_res([{key: one[key] for key in keys} for one in chosen])
        evaluation = hotcoco.COCOeval(truth, results, task)
        evaluation.params.max_dets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summary_lines()  # as summarize, without printing
        return evaluation

    shown = [one for one in found if one["score"] >= threshold]
    return [
        Analysis(task, data, threshold, found, shown, evaluate(task, found), evaluate(task, shown))
        for task in tasks
    ]


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * float(value)
