"""What running a detector needs to know of its config, whichever kind that is."""

from dataclasses import dataclass

import detectron2.data.transforms as T
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import PanopticFPN
from omegaconf import DictConfig
from torch import nn

from .lazy import require_keys, select


@dataclass(frozen=True)
class InferenceSettings:
    """Input, weights and data set of a config."""

    weights: str
    input_format: str
    augmentation: T.Augmentation
    dataset: str | None
    """Whose class names are used if the checkpoint has none."""

    @classmethod
    def of(cls, cfg: CfgNode | DictConfig) -> "InferenceSettings":
        """Read them.

        Raises:
            ValueError: a LazyConfig without the keys that the commands read.
        """
        if isinstance(cfg, CfgNode):
            return cls(
                cfg.MODEL.WEIGHTS,
                cfg.INPUT.FORMAT,
                T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST),
                next(iter(cfg.DATASETS.TEST or cfg.DATASETS.TRAIN), None),
            )
        mapper = "dataloader.test.mapper"
        keys = ("train.init_checkpoint", "model.input_format", f"{mapper}.augmentations")
        require_keys(cfg, keys)
        names = select(cfg, "dataloader.test.dataset.names", [])
        augmentations = [instantiate(a) for a in select(cfg, f"{mapper}.augmentations")]
        return cls(
            cfg.train.init_checkpoint,
            cfg.model.input_format,
            T.AugmentationList(augmentations),
            names if isinstance(names, str) else next(iter(names), None),
        )


def set_score_threshold(model: nn.Module, threshold: float, only_raise: bool = False) -> None:
    """Set the least score of a detection in heads of every kind.

    Args:
        model: the model, changed in place.
        threshold: the score, 0 to 1.
        only_raise: leave what is higher already.
    """
    for module in model.modules():
        attributes = ["combine_instances_score_thresh"] if isinstance(module, PanopticFPN) else []
        # FastRCNNOutputLayers, of each stage in a cascade, and dense detectors.
        attributes += ["test_score_thresh"] if hasattr(module, "test_score_thresh") else []
        for name in attributes:
            setattr(
                module, name, max(getattr(module, name), threshold) if only_raise else threshold
            )
