"""COCO's metrics of boxes, masks and keypoints, by hotcoco or pycocotools alike."""

import contextlib
import importlib.util
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.logger import create_small_table

from ..config import ConfigError, InputError
from ..data.schema import load_json, some
from ..files import make_folder, write_text

logger = logging.getLogger(__name__)

COCO_DETECTIONS = 100  # so many detections an image COCO's AP counts
# What a task compares, in annotations and in the output of a model.
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
PREDICTED = {"bbox": "pred_boxes", "segm": "pred_masks", "keypoints": "pred_keypoints"}
# COCO's metrics by the index of their IoU threshold (None: the mean of all ten) and of their range
# of areas; of keypoints there is none of small objects.
METRICS = {"AP": (None, 0), "AP50": (0, 0), "AP75": (5, 0)}
AREAS = {"bbox": ("APs", "APm", "APl"), "segm": ("APs", "APm", "APl"), "keypoints": ("APm", "APl")}
# What both libraries need of each entry, and the types that they read alike.
REQUIRED: dict[str, dict[str, Any]] = {
    "images": {"id": int | str, "width": int, "height": int},
    "categories": {"id": int, "name": str},
    "annotations": {
        **{"image_id": int | str, "category_id": int, "area": int | float, "iscrowd": int},
    },
}


class CocoEvaluator(DatasetEvaluator):
    """COCO's metrics of a registered data set, under the names of Detectron2's ``COCOEvaluator``.

    hotcoco and pycocotools get the same annotations and detections, and the metrics are means over
    the table of precisions that both compute, so that they do not depend on which is installed.
    What the two read differently, such as annotations without an area, is refused.

    Args:
        dataset_name: a registered data set. One without a ``json_file`` gets one.
        output_dir: folder for ``coco_instances_results.json``.
        keypoint_sigmas: of OKS, one a keypoint; none for COCO's 17.
        detections: so many of the most confident ones count in an image.
        library: "pycocotools" or "hotcoco", by default the latter if it is installed.

    Raises:
        FileError, InputError: the annotations cannot be read, or are not in COCO's format.
        ConfigError: the annotations are not what both libraries read alike.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str,
        keypoint_sigmas: Sequence[float] = (),
        detections: int = COCO_DETECTIONS,
        library: str = "",
    ) -> None:
        self.name, self.folder = dataset_name, Path(output_dir)
        self._sigmas, self._detections = list(keypoint_sigmas), detections
        self._metadata = MetadataCatalog.get(dataset_name)
        has_hotcoco = importlib.util.find_spec("hotcoco") is not None
        self._library = library or ("hotcoco" if has_hotcoco else "pycocotools")
        self._found: list[dict[str, Any]] = []
        self._tasks: set[str] = set()
        if not comm.is_main_process():
            return
        file = self._metadata.get("json_file", None)
        if file is None:
            file = str(self.folder / f"{dataset_name}_coco_format.json")
            make_folder(self.folder)
            # An earlier run's may be of other data.
            convert_to_coco_json(dataset_name, file, allow_cached=False)
        self._file, self._truth = file, load_truth(Path(file))
        if any(not isinstance(image["id"], int) for image in self._truth["images"]):
            self._library = "pycocotools"  # hotcoco takes no other ids

    def reset(self) -> None:
        """Forget what was found."""
        self._found, self._tasks = [], set()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep what was found on some images."""
        for given, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                instances = output["instances"].to("cpu")
                self._tasks |= {task for task, field in PREDICTED.items() if instances.has(field)}
                self._found += instances_to_coco_json(instances, given["image_id"])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compute the metrics, in the first process.

        Returns:
            percentages by task; NaN where there is nothing to find.

        Raises:
            InputError: a detection is of an image or a class that the data set does not have.
        """
        comm.synchronize()
        gathered = comm.gather((self._found, self._tasks), dst=0)
        if not comm.is_main_process():
            return None
        found = self._with_dataset_ids([one for found, _ in gathered for one in found])
        make_folder(self.folder)
        write_text(self.folder / "coco_instances_results.json", json.dumps(found))
        if self._truth.get("annotations") is None:
            logger.info("%s has no annotations: its results are in %s", self._file, self.folder)
            return {}
        tasks = sorted(set().union(*(tasks for _, tasks in gathered)))
        results = {task: self._metrics(found, task) for task in tasks}
        for task, metrics in results.items():
            overall = {k: v for k, v in metrics.items() if not k.startswith("AP-")}
            classes = [f"{k[3:]} {v:.1f}" for k, v in metrics.items() if k.startswith("AP-")]
            table = create_small_table(overall)
            if classes:  # else the one class's AP is in the table
                table += f"\nAP by class: {', '.join(classes)}"
            logger.info("%s on %s by %s:\n%s", task, self.name, self._library, table)
        return results

    def _with_dataset_ids(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Turn contiguous class numbers into the data set's category ids."""
        numbers = self._metadata.get("thing_dataset_id_to_contiguous_id", None)
        if numbers is None:  # the classes of the model are the ids themselves
            numbers = {one["category_id"]: one["category_id"] for one in found}
        ids = {index: number for number, index in numbers.items()}
        images = {image["id"] for image in self._truth["images"]}
        for one in found:
            if one["image_id"] not in images or one["category_id"] not in ids:
                raise InputError(
                    f"a prediction is of image {one['image_id']!r} and class {one['category_id']}, "
                    f"which data set {self.name!r} does not both have"
                )
        return [{**one, "category_id": ids[one["category_id"]]} for one in found]

    def _metrics(self, found: list[dict[str, Any]], task: str) -> dict[str, float]:
        """COCO's metrics of a task, and the AP of each class if there are several."""
        categories = self._truth["categories"]
        names = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
        areas = {name: (None, number) for number, name in enumerate(AREAS[task], 1)}
        wanted = {**METRICS, **areas}
        precision = self._precision(found, task)
        metrics = {name: _mean(precision, *index) for name, index in wanted.items()}
        if len(names) > 1:
            by_class = np.moveaxis(precision, 2, 0)
            metrics |= {f"AP-{n}": _mean(p) for n, p in zip(names, by_class, strict=True)}
        return metrics

    def _precision(self, found: list[dict[str, Any]], task: str) -> np.ndarray:
        """Precision at (IoU threshold, recall, class, area, number of detections), -1 if none."""
        field = FIELDS[task]
        lacking = [one["image_id"] for one in self._truth["annotations"] if not one.get(field)]
        if lacking:
            raise InputError(
                f"{len(lacking)} annotations of {self._file} have no {field!r}, which {task!r} "
                f"evaluates, of images {some(lacking)}"
            )
        if task == "segm":
            # Where there is a box, its area and not the mask's would decide what is small or large.
            found = [{k: v for k, v in one.items() if k != "bbox"} for one in found]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = self._begin(found, task)
            if task == "keypoints":
                self._set_sigmas(evaluation.params, found)
            else:
                evaluation.params.maxDets = [1, 10, self._detections]
            evaluation.evaluate()
            evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])

    def _begin(self, found: list[dict[str, Any]], task: str) -> Any:
        # Licences, file names and the like are left out: hotcoco wants them of certain types.
        keys = ("id", "width", "height")
        truth = self._truth | {"images": [{k: i[k] for k in keys} for i in self._truth["images"]]}
        truth = {key: truth[key] for key in REQUIRED}
        if self._library == "hotcoco":
            hotcoco = importlib.import_module("hotcoco")
            coco = hotcoco.COCO(truth)
            return hotcoco.COCOeval(coco, coco.load_res(found), task)
        coco = pycocotools.coco.COCO()
        coco.dataset = truth
        coco.createIndex()
        # loadRes takes no empty list.
        results = coco.loadRes(found) if found else pycocotools.coco.COCO()
        return pycocotools.cocoeval.COCOeval(coco, results, task)

    def _set_sigmas(self, params: Any, found: list[dict[str, Any]]) -> None:
        if self._sigmas:
            params.kpt_oks_sigmas = np.array(self._sigmas)
        sigmas = len(params.kpt_oks_sigmas)
        annotated = (len(a["keypoints"]) // 3 for a in self._truth["annotations"])
        number = next(annotated, sigmas)
        predicted = len(found[0]["keypoints"]) // 3 if found else number
        if not sigmas == number == predicted:
            raise ConfigError(
                f"TEST.KEYPOINT_OKS_SIGMAS has {sigmas} values, the annotations {number} keypoints "
                f"and the predictions {predicted}; they must be as many"
            )


def _mean(precision: np.ndarray, threshold: int | None = None, area: int = 0) -> float:
    """Average precision in percent: the mean over what is defined, NaN where nothing is."""
    values = precision[..., area, -1]
    values = values if threshold is None else values[threshold]
    values = values[values > -1]
    return float(values.mean() * 100) if values.size else float("nan")


def load_truth(file: Path) -> dict[str, Any]:
    """Load annotations, numbered anew, and refuse what hotcoco and pycocotools do not read alike.

    Raises:
        FileError, InputError: the file cannot be read, or is not in COCO's format.
        ConfigError: the message names the entries.
    """
    truth = load_json(file, annotated=False)
    wrong = [
        f"{field!r} of {key} number {at}"
        for key, fields in REQUIRED.items()
        for at, entry in enumerate(truth.get(key) or (), 1)
        for field, kind in fields.items()
        if not (isinstance(entry, dict) and isinstance(entry.get(field), kind))
    ]
    if wrong:
        raise ConfigError(
            f"{file}: absent or of another type are {some(wrong)}. AP would depend on the library "
            "that computes it; `resnest-d2 check-data --json ... --output FILE` mends the file"
        )
    # Of annotations with one id, and of the id 0, the libraries count different ones.
    for number, annotation in enumerate(truth.get("annotations") or (), 1):
        annotation["id"] = number
    return truth
