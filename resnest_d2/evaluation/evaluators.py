"""Evaluators by data set type, and the check that a data set is there at all."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig
from PIL import Image

from ..config import ConfigError, did_you_mean
from ..config.settings import Settings
from .coco import FastCOCOEvaluator, choose_implementation

# Metadata of Detectron2's data sets that are paths.
LAYOUT = ("json_file", "panoptic_json", "image_root", "panoptic_root", "sem_seg_root")

EvaluatorFactory = Callable[[str, str], DatasetEvaluator]


def _coco(name: str, folder: str, sigmas: Sequence[float] = ()) -> DatasetEvaluator:
    fast = choose_implementation() == "hotcoco"
    evaluator = FastCOCOEvaluator if fast else COCOEvaluator
    # A set without a file in COCO's format gets one; one from an earlier run may be of other data.
    return evaluator(name, output_dir=folder, allow_cached_coco=False, kpt_oks_sigmas=sigmas)


def _read_map(filename: str, dtype: type = int) -> np.ndarray:
    """Class indices of shape (H, W); Detectron2's own reader fails with NumPy 2."""
    with PathManager.open(filename, "rb") as stream, Image.open(stream) as image:
        return np.array(image, dtype=dtype)


def _sem_seg(name: str, folder: str) -> DatasetEvaluator:
    return SemSegEvaluator(name, distributed=True, output_dir=folder, sem_seg_loading_fn=_read_map)


def _require_panopticapi() -> None:
    if importlib.util.find_spec("panopticapi") is None:
        raise ImportError(
            "panoptic quality is computed by panopticapi, which is not installed: pip install "
            "--no-deps panopticapi-lite"
        )


def _panoptic(name: str, folder: str) -> DatasetEvaluator:
    _require_panopticapi()
    return COCOPanopticEvaluator(name, folder)


def _lvis(name: str, folder: str) -> DatasetEvaluator:
    return LVISEvaluator(name, output_dir=folder)


# Detectron2's evaluator types, MetadataCatalog.get(name).evaluator_type.
EVALUATORS: dict[str, tuple[EvaluatorFactory, ...]] = {
    "coco": (_coco,),
    "coco_panoptic_seg": (_sem_seg, _coco, _panoptic),
    "sem_seg": (_sem_seg,),
    "lvis": (_lvis,),
    "pascal_voc": (lambda name, folder: PascalVOCDetectionEvaluator(name),),
    "cityscapes_instance": (lambda name, folder: CityscapesInstanceEvaluator(name),),
    "cityscapes_sem_seg": (lambda name, folder: CityscapesSemSegEvaluator(name),),
}


def build_evaluator(
    dataset_name: str,
    output_dir: str,
    instances_only: bool = False,
    keypoint_sigmas: Sequence[float] = (),
) -> DatasetEvaluator:
    """Make the evaluator that the data set's type asks for.

    Args:
        dataset_name: a registered data set.
        output_dir: where predictions and results are written.
        instances_only: of a panoptic data set, evaluate boxes and masks only.
        keypoint_sigmas: of OKS, one a keypoint; none for COCO's 17.

    Raises:
        ConfigError: the data set has no evaluator type, or one that is not known.
    """
    factories = EVALUATORS[_evaluator_type(dataset_name)]
    if instances_only and _coco in factories:
        factories = (_coco,)
    if keypoint_sigmas:
        factories = [partial(_coco, sigmas=keypoint_sigmas) if f is _coco else f for f in factories]
    evaluators = [make(dataset_name, output_dir) for make in factories]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _evaluator_type(dataset_name: str) -> str:
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind not in EVALUATORS:
        raise ConfigError(
            f"data set {dataset_name!r} has evaluator_type {kind!r} in its metadata; known are "
            f"{', '.join(EVALUATORS)}"
        )
    return kind


def check_datasets(cfg: CfgNode | DictConfig | Settings, train: bool = True) -> None:
    """See that the data sets of a config are registered and on disk, before anything is built.

    Args:
        cfg: a config of either kind; its test sets and, for training, its training sets are
            looked at.
        train: whether the training sets are needed.

    Raises:
        ConfigError: a name is not registered, none is given where one is needed, an annotation file
            is truncated, or there is no evaluator for a test set.
        FileNotFoundError: a file or folder of a data set is missing; the message tells the layout.
        ImportError: panoptic quality is to be computed, and panopticapi is not installed.
    """
    for split in ("train", "test") if train else ("test",):
        key, names = Settings.of(cfg).datasets(split)
        if not names and (split == "train" or not train):
            raise ConfigError(f"{key} is empty; it must name at least one data set")
        for name in names:
            _check_dataset(key, name)
            if split == "test" and _panoptic in EVALUATORS[_evaluator_type(name)]:
                _require_panopticapi()


def _check_dataset(key: str, name: str) -> None:
    if name not in DatasetCatalog:
        hint = did_you_mean(name, DatasetCatalog.list())
        raise ConfigError(f"{key}: data set {name!r} is not registered{hint}")
    metadata = MetadataCatalog.get(name)
    if metadata.get("made_on_first_use", False):
        return
    for attribute in LAYOUT:
        path = metadata.get(attribute, None)
        if path is None or "://" in path:
            continue
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"{key}: data set {name!r} needs {path}, which does not exist{_hint(metadata)}"
            )
        if attribute in ("json_file", "panoptic_json"):
            _check_json(key, name, path)


def _hint(metadata: Any) -> str:
    """For the data sets that Detectron2 looks for itself, where and in which layout."""
    root = os.getenv("DETECTRON2_DATASETS", "datasets")
    absolute = os.path.abspath(os.path.expanduser(root))
    parts = []
    for attribute in LAYOUT:
        path = metadata.get(attribute, None)
        if path is not None:
            below = os.path.relpath(os.path.abspath(path), absolute)
            if below.startswith(".."):
                return ""
            parts.append(below if attribute in ("json_file", "panoptic_json") else below + "/")
    return (
        f"; set the environment variable DETECTRON2_DATASETS (now {root!r}) to the folder that "
        f"holds {' and '.join(dict.fromkeys(parts))}"
    )


def _check_json(key: str, name: str, path: str) -> None:
    """See that an annotation file ends as JSON does; to parse it all can take a minute."""
    with open(path, "rb") as stream:
        stream.seek(max(os.path.getsize(path) - 64, 0))
        if not stream.read().rstrip().endswith((b"}", b"]")):
            raise ConfigError(f"{key}: {path} of data set {name!r} is truncated or no JSON")
