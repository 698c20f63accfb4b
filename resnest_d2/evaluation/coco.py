"""COCO's metrics by hotcoco, which gives pycocotools' numbers in a fraction of its time."""

import argparse
import importlib.util
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import COCOEvaluator

from ..config import InputError
from ..data.rle import encode_masks
from ..files import write_text

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("hotcoco", "pycocotools")
_chosen = ""  # the implementation that this process was told to take


def choose_implementation(name: str | None = None) -> str:
    """Set or look up the implementation of COCO's metrics in this process.

    Args:
        name: one of :data:`IMPLEMENTATIONS`, from now on; None looks up the one that was chosen,
            by default hotcoco if it is installed.

    Raises:
        InputError: there is no such implementation, or it is not installed.
    """
    global _chosen
    is_installed = importlib.util.find_spec("hotcoco") is not None
    if name:
        if name not in IMPLEMENTATIONS:
            listed = ", ".join(IMPLEMENTATIONS)
            raise InputError(f"--coco-eval must be one of {listed}, got {name!r}")
        if name == "hotcoco" and not is_installed:
            raise InputError("--coco-eval hotcoco: it is not installed: pip install hotcoco")
        _chosen = name
    return _chosen or ("hotcoco" if is_installed else "pycocotools")


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--coco-eval`` to a command line; :func:`choose_implementation` takes its value."""
    parser.add_argument(
        "--coco-eval",
        choices=IMPLEMENTATIONS,
        help="what computes COCO's metrics (default: hotcoco, if it is installed)",
    )


class FastCOCOEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` with hotcoco in place of pycocotools.

    Same arguments, files, metrics and tables; only the evaluation itself is another's, and masks
    are encoded faster. Ground truth and predictions are read by hotcoco from the dicts that
    pycocotools would get.
    """

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep what was found on some images, in COCO's format.

        Args:
            inputs: of the model, with "image_id".
            outputs: of the model; "instances" with boxes, and masks of shape (N, H, W).
        """
        for one, output in zip(inputs, outputs, strict=True):
            if "instances" not in output or not output["instances"].has("pred_masks"):
                super().process([one], [output])
                continue
            instances = output["instances"].to(self._cpu_device)
            # BitMasks and arrays, too, as Detectron2 takes them.
            pred_masks = getattr(instances.pred_masks, "tensor", instances.pred_masks)
            masks = encode_masks(torch.as_tensor(pred_masks).bool())
            instances.remove("pred_masks")
            super().process([one], [{**output, "instances": instances}])
            found = self._predictions[-1]["instances"]
            for detection, mask in zip(found, masks, strict=True):
                detection["segmentation"] = mask

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None
    ) -> None:
        if not self._do_evaluation or not self._read_ground_truth():
            super()._eval_predictions(predictions, img_ids)
            return
        found = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        tasks = self._tasks or self._tasks_from_predictions(found)
        self._to_dataset_categories(found)
        if self._output_dir:
            file = Path(self._output_dir) / "coco_instances_results.json"
            write_text(file, json.dumps(found))
            self._logger.info("Results in COCO's format are in %s", file)
        self._logger.info("Evaluating with hotcoco ...")
        self._check_images(found)
        any_images = img_ids is None or len(img_ids) > 0  # of none, hotcoco evaluates all
        for task in sorted(tasks):
            self._check_fields(found, task)
            evaluation = self._evaluate(found, task, img_ids) if found and any_images else None
            self._results[task] = self._derive_coco_results(
                evaluation, task, class_names=self._metadata.get("thing_classes")
            )

    def _read_ground_truth(self) -> bool:
        """Give hotcoco the data set; False if it holds what only pycocotools takes."""
        import hotcoco

        if not hasattr(self, "_ground_truth"):
            # Licences, file names and the like are left out: they are of any type.
            parts = ("annotations", "categories")
            data = {k: v for k, v in self._coco_api.dataset.items() if k in parts}
            images = self._coco_api.dataset["images"]
            sizes = ("id", "width", "height")
            data["images"] = [{k: one[k] for k in sizes if k in one} for one in images]
            try:
                self._ground_truth = hotcoco.COCO(data)
            except ValueError as error:  # ids that are strings or negative
                self._logger.warning(
                    "Evaluating with pycocotools, since hotcoco cannot read the annotations of "
                    "data set %r: %s",
                    *(self._metadata.name, error),
                )
                self._ground_truth = None
        return self._ground_truth is not None

    def _check_images(self, found: list[dict[str, Any]]) -> None:
        known = {image["id"] for image in self._coco_api.dataset["images"]}
        strange = next((d["image_id"] for d in found if d["image_id"] not in known), None)
        if strange is not None:
            raise InputError(
                f"a prediction is of image {strange!r}, which data set {self._metadata.name!r} "
                "does not have"
            )

    def _check_fields(self, found: list[dict[str, Any]], task: str) -> None:
        """Refuse what pycocotools would stumble over and hotcoco would count as a miss."""
        field = "segmentation" if task == "segm" else task
        if any(field not in detection for detection in found):
            raise InputError(f"the predictions have no {field!r}, which task {task!r} evaluates")
        for annotation in self._coco_api.dataset["annotations"]:
            if task == "segm" and not annotation.get("segmentation"):
                raise InputError(
                    f"annotation {annotation['id']!r} of data set {self._metadata.name!r} has no "
                    f"'segmentation', which task {task!r} evaluates"
                )

    def _to_dataset_categories(self, found: list[dict[str, Any]]) -> None:
        """Back from contiguous class numbers to the data set's category ids, in place."""
        numbers = self._metadata.get("thing_dataset_id_to_contiguous_id", None)
        if numbers is None:
            return
        by_class = {v: k for k, v in numbers.items()}
        for detection in found:
            number = detection["category_id"]
            if number not in by_class:
                raise InputError(
                    f"a prediction is of class {number}, but data set {self._metadata.name!r} has "
                    f"classes 0 to {len(by_class) - 1}"
                )
            detection["category_id"] = by_class[number]

    def _evaluate(
        self, found: list[dict[str, Any]], task: str, img_ids: Sequence[int] | None
    ) -> Any:
        """A finished ``hotcoco.COCOeval``; it has pycocotools' ``stats`` and ``eval``."""
        import hotcoco

        if task == "segm":
            # Where there is a box, its area and not the mask's would decide what is small or large.
            found = [{k: v for k, v in d.items() if k != "bbox"} for d in found]
        evaluation = hotcoco.COCOeval(self._ground_truth, self._ground_truth.load_res(found), task)
        if task == "keypoints":
            self._set_keypoints(evaluation, found)
        elif self._max_dets_per_image is not None:
            # Per class the last one counts; pycocotools sorts them.
            evaluation.params.max_dets = sorted(self._max_dets_per_image)
        if img_ids is not None:
            evaluation.params.img_ids = list(img_ids)
        evaluation.run()
        return evaluation

    def _set_keypoints(self, evaluation: Any, found: list[dict[str, Any]]) -> None:
        if self._kpt_oks_sigmas:
            evaluation.params.kpt_oks_sigmas = list(self._kpt_oks_sigmas)
        sigmas = len(evaluation.params.kpt_oks_sigmas)
        annotations = self._coco_api.dataset["annotations"]
        numbers = (len(a["keypoints"]) // 3 for a in annotations if "keypoints" in a)
        annotated = next(numbers, sigmas)
        predicted = len(found[0]["keypoints"]) // 3
        if not sigmas == annotated == predicted:
            raise InputError(
                f"TEST.KEYPOINT_OKS_SIGMAS has {sigmas} values, the annotations {annotated} "
                f"keypoints and the predictions {predicted}; they must be as many"
            )
