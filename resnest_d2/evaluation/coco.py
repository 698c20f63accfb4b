"""COCO's metrics of boxes, masks and keypoints, by hotcoco or pycocotools alike."""

import contextlib
import importlib.util
import io
import itertools
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.logger import create_small_table

from ..config import ConfigError, InputError
from ..data.rle import encode_masks
from ..files import make_folder, write_text

logger = logging.getLogger(__name__)

COCO_DETECTIONS = 100  # so many detections an image COCO's AP counts
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
# COCO's metrics by the index of their IoU threshold (None: the mean of all ten) and of their range
# of areas; of keypoints there is none of small objects.
METRICS = {"AP": (None, 0), "AP50": (0, 0), "AP75": (5, 0)}
AREAS = {"bbox": ("APs", "APm", "APl"), "segm": ("APs", "APm", "APl"), "keypoints": ("APm", "APl")}


def implementation() -> str:
    """The library that computes COCO's metrics: hotcoco if it is installed, else pycocotools."""
    return "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"


class CocoEvaluator(DatasetEvaluator):
    """COCO's metrics of a registered data set, under the names of Detectron2's ``COCOEvaluator``.

    hotcoco and pycocotools get the same annotations and detections, and the metrics are means over
    the table of precisions that both compute, so that they do not depend on which is installed.
    What the two read differently, such as two annotations of one id, is refused.

    Args:
        dataset_name: a registered data set. One without a ``json_file`` gets one.
        output_dir: folder for ``coco_instances_results.json``.
        keypoint_sigmas: of OKS, one a keypoint; none for COCO's 17.
        detections: so many of the most confident ones count in an image.
        library: of :func:`implementation`, by default its answer.

    Raises:
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
        file = self._metadata.get("json_file", None)
        if file is None:
            file = str(self.folder / f"{dataset_name}_coco_format.json")
            make_folder(self.folder)
            # An earlier run's may be of other data.
            convert_to_coco_json(dataset_name, file, allow_cached=False)
        self._truth: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        self._file = file
        self._library = library or implementation()
        if any(not isinstance(image["id"], int) for image in self._truth["images"]):
            self._library = "pycocotools"  # hotcoco takes no other ids
        _check_annotations(file, self._truth.get("annotations", ()))
        self._found: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget what was found."""
        self._found = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep what was found on some images.

        Args:
            inputs: of the model, with "image_id".
            outputs: of the model; "instances" with boxes, and masks of shape (N, H, W).
        """
        for given, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                continue
            instances, masks = output["instances"].to("cpu"), None
            if instances.has("pred_masks"):
                # BitMasks and arrays, too, as Detectron2 takes them.
                pred_masks = getattr(instances.pred_masks, "tensor", instances.pred_masks)
                masks = encode_masks(torch.as_tensor(pred_masks).bool())
                instances.remove("pred_masks")
            found = instances_to_coco_json(instances, given["image_id"])
            for detection, mask in zip(found, masks or (), strict=False):
                detection["segmentation"] = mask
            self._found += found

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]] | None:
        """Compute the metrics, in the first process.

        Args:
            img_ids: images to look at, by default all.

        Returns:
            percentages by task; NaN where there is nothing to find.

        Raises:
            InputError: a detection is of an image or a class that the data set does not have.
        """
        comm.synchronize()
        found = list(itertools.chain.from_iterable(comm.gather(self._found, dst=0)))
        if not comm.is_main_process():
            return None
        found = self._with_dataset_ids(found)
        make_folder(self.folder)
        write_text(self.folder / "coco_instances_results.json", json.dumps(found))
        if "annotations" not in self._truth:
            logger.info("%s has no annotations: its results are in %s", self._file, self.folder)
            return {}
        tasks = sorted(t for t, field in FIELDS.items() if any(field in one for one in found[:1]))
        results = {task: self._metrics(found, task, img_ids) for task in tasks or ["bbox"]}
        for task, metrics in results.items():
            overall = {k: v for k, v in metrics.items() if not k.startswith("AP-")}
            classes = [f"{k[3:]} {v:.1f}" for k, v in metrics.items() if k.startswith("AP-")]
            table = f"{create_small_table(overall)}\nAP by class: {', '.join(classes)}"
            logger.info("%s on %s by %s:\n%s", task, self.name, self._library, table)
        return results

    def _with_dataset_ids(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Turn contiguous class numbers into the data set's category ids."""
        numbers = self._metadata.get("thing_dataset_id_to_contiguous_id", None)
        ids = {index: number for number, index in numbers.items()} if numbers else None
        images = {image["id"] for image in self._truth["images"]}
        for detection in found:
            if detection["image_id"] not in images:
                raise InputError(
                    f"a prediction is of image {detection['image_id']!r}, which {self._file} lacks"
                )
            if ids is not None and detection["category_id"] not in ids:
                raise InputError(
                    f"a prediction is of class {detection['category_id']}, but data set "
                    f"{self.name!r} has classes 0 to {len(ids) - 1}"
                )
        if ids is None:
            return [dict(detection) for detection in found]
        return [{**detection, "category_id": ids[detection["category_id"]]} for detection in found]

    def _metrics(
        self, found: list[dict[str, Any]], task: str, img_ids: Sequence[int] | None
    ) -> dict[str, float]:
        """COCO's metrics of a task, and the AP of each class if there are several."""
        categories = self._truth["categories"]
        names = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
        areas = {name: (None, number) for number, name in enumerate(AREAS[task], 1)}
        wanted = {**METRICS, **areas}
        if not found or (img_ids is not None and not len(img_ids)):
            return dict.fromkeys(wanted, float("nan"))
        precision = self._precision(found, task, img_ids)
        metrics = {name: _mean(precision, *index) for name, index in wanted.items()}
        if len(names) > 1:
            by_class = np.moveaxis(precision, 2, 0)[:, :, :, None]
            metrics |= {f"AP-{n}": _mean(p) for n, p in zip(names, by_class, strict=True)}
        return metrics

    def _precision(
        self, found: list[dict[str, Any]], task: str, img_ids: Sequence[int] | None
    ) -> np.ndarray:
        """Precision at (IoU threshold, recall, class, area, number of detections), -1 if none."""
        field = FIELDS[task]
        if any(field not in one for one in found):
            raise InputError(f"the predictions have no {field!r}, which task {task!r} evaluates")
        for one in self._truth["annotations"]:
            if not one.get(field):
                raise InputError(
                    f"annotation {one['id']} of {self._file} has no {field!r}, which task {task!r} "
                    "evaluates"
                )
        if task == "segm":
            # Where there is a box, its area and not the mask's would decide what is small or large.
            found = [{k: v for k, v in one.items() if k != "bbox"} for one in found]
        evaluation = self._begin(found, task)
        if task == "keypoints":
            self._set_sigmas(evaluation.params, len(found[0]["keypoints"]) // 3)
        else:
            _set(evaluation.params, "maxDets", [1, 10, self._detections])
        if img_ids is not None:
            _set(evaluation.params, "imgIds", list(img_ids))
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])

    def _begin(self, found: list[dict[str, Any]], task: str) -> Any:
        # Licences, file names and the like are left out: hotcoco wants them of certain types.
        keys = ("id", "width", "height")
        images = [{k: one[k] for k in keys if k in one} for one in self._truth["images"]]
        truth = {"images": images, "categories": self._truth["categories"]}
        truth["annotations"] = self._truth["annotations"]
        if self._library == "hotcoco":
            hotcoco: ModuleType = importlib.import_module("hotcoco")
            coco = hotcoco.COCO(truth)
            return hotcoco.COCOeval(coco, coco.load_res(found), task)
        with contextlib.redirect_stdout(io.StringIO()):
            coco = pycocotools.coco.COCO()
            coco.dataset = truth
            coco.createIndex()
            return pycocotools.cocoeval.COCOeval(coco, coco.loadRes(found), task)

    def _set_sigmas(self, params: Any, predicted: int) -> None:
        if self._sigmas:
            _set(params, "kpt_oks_sigmas", np.array(self._sigmas))
        sigmas = len(params.kpt_oks_sigmas)
        annotated = (
            len(a["keypoints"]) // 3 for a in self._truth["annotations"] if "keypoints" in a
        )
        number = next(annotated, sigmas)
        if not sigmas == number == predicted:
            raise ConfigError(
                f"TEST.KEYPOINT_OKS_SIGMAS has {sigmas} values, the annotations {number} keypoints "
                f"and the predictions {predicted}; they must be as many"
            )


def _set(params: Any, name: str, value: Any) -> None:
    """Set a parameter of either library; hotcoco spells pycocotools' names with underscores."""
    known = {"maxDets": "max_dets", "imgIds": "img_ids"}
    name = name if hasattr(params, name) else known[name]
    setattr(params, name, value if hasattr(params, "maxDets") else list(value))


def _mean(precision: np.ndarray, threshold: int | None = None, area: int = 0) -> float:
    """Average precision in percent: the mean over what is defined, NaN where nothing is."""
    values = precision[..., area, -1]
    values = values if threshold is None else values[threshold]
    values = values[values > -1]
    return float(values.mean() * 100) if values.size else float("nan")


def _check_annotations(file: str, annotations: Sequence[dict[str, Any]]) -> None:
    """Refuse what hotcoco and pycocotools read differently.

    Raises:
        ConfigError: the message names the annotations.
    """
    counts = Counter(annotation.get("id") for annotation in annotations)
    problems = {
        "have an id that others have": [n for n, count in counts.items() if count > 1],
        "have an id that is no positive integer": [
            n for n in counts if not isinstance(n, int) or isinstance(n, bool) or n < 1
        ],
        "have no 'area'": [a.get("id") for a in annotations if "area" not in a],
        "have no 'iscrowd'": [a.get("id") for a in annotations if "iscrowd" not in a],
    }
    for problem, which in problems.items():
        if which:
            some = ", ".join(map(str, which[:5])) + (", ..." if len(which) > 5 else "")
            raise ConfigError(
                f"{file}: {len(which)} annotations {problem} ({some}), on which AP would depend on "
                "the library that computes it; `resnest-d2 check-data --json ... --output FILE` "
                "writes them anew"
            )
