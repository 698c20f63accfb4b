"""Detectron2's default trainer with evaluators, test-time augmentation and SyncBN on any device."""

import logging
import os
from collections import OrderedDict
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn

from ..norm import check_batch_statistics, convert_sync_batchnorm
from ..split_attention import SplitAttentionConv2d
from ..weights import checkpoint_errors
from .evaluation import build_evaluator

logger = logging.getLogger(__name__)


def _with_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    try:
        return GeneralizedRCNNWithTTA(cfg, model)
    except AssertionError as error:
        raise ValueError(
            f"TEST.AUG.ENABLED: Detectron2 has no augmentation for this model: {error}"
        ) from error


def check_num_classes(cfg: CfgNode) -> None:
    """See that the model has a class for every one in the training data, once that is loaded.

    Raises:
        ValueError: it has fewer; the message names the key.
    """
    key = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    has = cfg.MODEL[key].NUM_CLASSES
    for name in cfg.DATASETS.TRAIN:
        needs = len(MetadataCatalog.get(name).get("thing_classes", None) or [])
        if needs > has:
            raise ValueError(
                f"MODEL.{key}.NUM_CLASSES is {has}, but data set {name!r} has {needs} classes"
            )


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` for ResNeSt detectors.

    It chooses evaluators by ``evaluator_type``, evaluates with test-time augmentation at the end
    of training if ``TEST.AUG.ENABLED``, and lets SyncBN in the heads run on CPUs too.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build model, optimizer and loader.

        Raises:
            ValueError: one image a process, where the attention's batch norm needs more; more
                classes in the data than in the model; no test-time augmentation for the model.
        """
        super().__init__(cfg)
        check_num_classes(self.cfg)
        if self.cfg.TEST.AUG.ENABLED:
            _with_augmentation(self.cfg, self.model)
        images = self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        for module in self.model.modules():
            if isinstance(module, SplitAttentionConv2d):
                check_batch_statistics(module.bn1, images)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build ``cfg.MODEL``; the whole model's SyncBN works on any device."""
        return convert_sync_batchnorm(super().build_model(cfg))

    def resume_or_load(self, resume: bool = True) -> None:
        """Load as ``DefaultTrainer`` does.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        last = resume and self.checkpointer.has_checkpoint()
        path = self.checkpointer.get_checkpoint_file() if last else self.cfg.MODEL.WEIGHTS
        with checkpoint_errors(path):
            super().resume_or_load(resume)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """Evaluator of a data set; it writes to ``OUTPUT_DIR/inference`` if no folder is given."""
        return build_evaluator(
            dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        )

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate with ``TEST.AUG``'s scales and flips; the results' names get ``_TTA``.

        Raises:
            ValueError: Detectron2 has no test-time augmentation for this meta-architecture.
        """
        logger.info("Running inference with test-time augmentation ...")
        model = _with_augmentation(cfg, model)
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference_TTA"))
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, model, evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's hooks and, if asked for, the evaluation with augmentation at the end."""
        all_hooks = super().build_hooks()
        if self.cfg.TEST.AUG.ENABLED:
            evaluate = hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model))
            # Before the writers, so that they record its results.
            writers = sum(isinstance(hook, hooks.PeriodicWriter) for hook in all_hooks)
            all_hooks.insert(len(all_hooks) - writers, evaluate)
        return all_hooks
