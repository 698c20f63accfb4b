"""Evaluators by data set type, and the check that a data set is there at all."""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from ..config import ConfigError, MissingFileError, MissingPackageError, did_you_mean
from ..data.images import read_labels
from .coco import COCO_DETECTIONS, CocoEvaluator, load_truth

logger = logging.getLogger(__name__)

# Metadata of Detectron2's data sets that are paths.
PATHS = ("json_file", "panoptic_json", "image_root", "panoptic_root", "sem_seg_root")


def _coco(name: str, folder: str, detections: int, **options: Any) -> DatasetEvaluator:
    number = COCO_DETECTIONS if name.startswith("coco_") else max(COCO_DETECTIONS, detections)
    if number > COCO_DETECTIONS:
        logger.info("AP on data set %r counts %d detections an image", name, number)
    return CocoEvaluator(name, folder, detections=number, **options)


def _sem_seg(name: str, folder: str) -> DatasetEvaluator:
    # Detectron2's own reader of maps fails with NumPy 2.
    read = read_labels
    return SemSegEvaluator(name, distributed=True, output_dir=folder, sem_seg_loading_fn=read)


INSTANCES, PIXELS = ("bbox", "segm", "keypoints"), ("sem_seg",)
# By the type of a data set, MetadataCatalog.get(name).evaluator_type: tasks, as metrics name them,
# and what evaluates them.
EVALUATORS: dict[str, dict[tuple[str, ...], Callable[..., DatasetEvaluator]]] = {
    "coco": {INSTANCES: _coco},
    "coco_panoptic_seg": {
        PIXELS: _sem_seg,
        INSTANCES: _coco,
        ("panoptic_seg",): COCOPanopticEvaluator,
    },
    "sem_seg": {PIXELS: _sem_seg},
    "lvis": {INSTANCES[:2]: lambda name, folder: LVISEvaluator(name, output_dir=folder)},
    "pascal_voc": {INSTANCES[:1]: lambda name, folder: PascalVOCDetectionEvaluator(name)},
    "cityscapes_instance": {("segm",): lambda name, folder: CityscapesInstanceEvaluator(name)},
    "cityscapes_sem_seg": {PIXELS: lambda name, folder: CityscapesSemSegEvaluator(name)},
}


def tasks_of(dataset_name: str) -> list[str]:
    """The tasks that a data set is evaluated by, as metrics name them.

    Raises:
        ConfigError: the data set has no evaluator type, or one that is not known.
    """
    return [task for tasks in _evaluators(dataset_name) for task in tasks]


def build_evaluator(
    dataset_name: str,
    output_dir: str,
    instances_only: bool = False,
    keypoint_sigmas: Sequence[float] = (),
    detections_per_image: int = COCO_DETECTIONS,
) -> DatasetEvaluator:
    """Make the evaluator that the data set's type asks for.

    Args:
        dataset_name: a registered data set.
        output_dir: where predictions and results are written.
        instances_only: of a panoptic data set, evaluate boxes and masks only.
        keypoint_sigmas: of OKS, one a keypoint; none for COCO's 17.
        detections_per_image: so many of the most confident ones are counted in an image, COCO's 100
            at least; on COCO's own data sets these are counted.

    Raises:
        ConfigError: the data set has no evaluator type, or one that is not known.
    """
    factories = list(_evaluators(dataset_name).values())
    if instances_only and _coco in factories:
        factories = [_coco]
    options = {_coco: {"detections": detections_per_image, "keypoint_sigmas": keypoint_sigmas}}
    evaluators = [make(dataset_name, output_dir, **options.get(make, {})) for make in factories]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _evaluators(dataset_name: str) -> dict[tuple[str, ...], Callable[..., DatasetEvaluator]]:
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind not in EVALUATORS:
        raise ConfigError(
            f"data set {dataset_name!r} has evaluator_type {kind!r} in its metadata; known are "
            f"{', '.join(EVALUATORS)}"
        )
    return EVALUATORS[kind]


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """See that the data sets of a config are registered and on disk, before anything is built.

    Args:
        cfg: a config, whose test sets are looked at.
        train: look at its training sets too.

    Raises:
        ConfigError: a name is not registered, none is given where one is needed, there is no
            evaluator for a test set, or it cannot evaluate its file.
        MissingFileError: a file or folder of a data set is missing.
        MissingPackageError: panoptic quality is to be computed, and panopticapi is not installed.
    """
    for split in ("TRAIN", "TEST") if train else ("TEST",):
        key, names = f"DATASETS.{split}", cfg.DATASETS[split]
        if not names and (split == "TRAIN" or not train):
            raise ConfigError(f"{key} is empty; it must name at least one data set")
        for name in names:
            _check_dataset(key, name)
            if split == "TEST":
                _check_evaluation(name)


def _check_dataset(key: str, name: str) -> None:
    if name not in DatasetCatalog:
        hint = did_you_mean(name, DatasetCatalog.list())
        raise ConfigError(f"{key}: data set {name!r} is not registered{hint}")
    metadata = MetadataCatalog.get(name)
    if metadata.get("made_on_first_use", False):
        return
    for attribute in PATHS:
        path = metadata.get(attribute, None)
        if path is not None and "://" not in path and not os.path.exists(path):
            root = os.getenv("DETECTRON2_DATASETS", "datasets")
            raise MissingFileError(
                f"{key}: data set {name!r} needs {path}, which does not exist; "
                f"DETECTRON2_DATASETS is {root!r}"
            )


def _check_evaluation(name: str) -> None:
    evaluators = _evaluators(name).values()
    if COCOPanopticEvaluator in evaluators and not importlib.util.find_spec("panopticapi"):
        raise MissingPackageError(
            "panoptic quality is computed by panopticapi, which is not installed: pip install "
            "--no-deps panopticapi-lite"
        )
    file = MetadataCatalog.get(name).get("json_file", None)
    if _coco in evaluators and file and os.path.isfile(file):
        load_truth(Path(file))
