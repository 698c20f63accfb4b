"""Detectron2's default trainer with evaluators, test-time augmentation and SyncBN on any device."""

import copy
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, PanopticFPN
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..config.classes import num_classes_key
from ..evaluation.evaluators import build_evaluator
from ..modeling.norm import convert_sync_batchnorm
from .checkpoint import TrainingCheckpointer, class_metadata
from .checks import check_grad_checkpoint, check_training
from .compile import compile_for_training

logger = logging.getLogger(__name__)


def with_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The detector with test-time augmentation; of a panoptic model, the part that detects.

    Raises:
        ValueError: Detectron2 has no test-time augmentation for this model.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if isinstance(model, PanopticFPN):
        # Detectron2's augmentation trips over its inference(), which takes no boxes.
        model = copy.copy(model)
        model.__class__ = GeneralizedRCNN
    try:
        return GeneralizedRCNNWithTTA(cfg, model)
    except AssertionError as error:
        raise ValueError(
            f"TEST.AUG.ENABLED: Detectron2 has no augmentation for this model: {error}"
        ) from error


def _check_world_size(cfg: CfgNode) -> None:
    """Detectron2's own check of this is an assertion that names half of it."""
    reference, images = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference not in (0, comm.get_world_size()) and images % reference:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {images} must be a multiple of SOLVER.REFERENCE_WORLD_SIZE "
            f"{reference}, the number of processes that it is meant for; with "
            "SOLVER.REFERENCE_WORLD_SIZE 0 nothing is scaled and every number means what it says"
        )


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` for ResNeSt detectors.

    It chooses evaluators by ``evaluator_type``, evaluates with test-time augmentation at the end
    of training if ``TEST.AUG.ENABLED``, lets SyncBN in the heads run on CPUs too, and brings what
    Detectron2's projects train with: DeepLab's crops and polynomial schedule.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build model, optimizer and loader.

        Raises:
            ValueError: one image a process, where the attention's batch norm needs more; more
                classes in the data than in the model; no test-time augmentation for the model; a
                batch size that ``SOLVER.REFERENCE_WORLD_SIZE`` does not divide.
        """
        _check_world_size(cfg)
        super().__init__(cfg)
        if self.cfg.TEST.AUG.ENABLED:
            with_augmentation(self.cfg, self.model)
        check_training(
            self.model,
            self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
            self.cfg.DATASETS.TRAIN,
            num_classes_key(self.cfg),
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build ``cfg.MODEL``; the whole model's SyncBN works on any device."""
        model = convert_sync_batchnorm(super().build_model(cfg))
        check_grad_checkpoint(cfg, model)
        compile_for_training(cfg, model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """Detectron2's loader; a semantic segmentor gets DeepLab's augmentations."""
        mapper = None
        if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
            from ..modeling.deeplab import semantic_augmentations

            mapper = DatasetMapper(cfg, is_train=True, augmentations=semantic_augmentations(cfg))
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """Detectron2's schedules and DeepLab's ``WarmupPolyLR``."""
        if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR":
            from ..modeling.deeplab import build_lr_scheduler

            return build_lr_scheduler(cfg, optimizer)
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """Evaluator of a data set; it writes to ``OUTPUT_DIR/inference`` if no folder is given."""
        return build_evaluator(
            dataset_name,
            output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"),
            keypoint_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        )

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate with ``TEST.AUG``'s scales and flips; the results' names get ``_TTA``.

        Augmentation is for instances: of a panoptic model, boxes and masks are evaluated.

        Raises:
            ValueError: Detectron2 has no test-time augmentation for this meta-architecture.
        """
        logger.info("Running inference with test-time augmentation ...")
        model = with_augmentation(cfg, model)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [
            build_evaluator(name, folder, instances_only=True) for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, model, evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's hooks and, if asked for, the evaluation with augmentation at the end."""
        # Detectron2's is made in the base's __init__, which calls this.
        self.checkpointer = TrainingCheckpointer(
            self.checkpointer.model,
            self.cfg.OUTPUT_DIR,
            class_metadata(self.cfg.DATASETS.TRAIN),
            trainer=weakref.proxy(self),
        )
        all_hooks = super().build_hooks()
        if self.cfg.TEST.AUG.ENABLED:
            evaluate = hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model))
            # Before the writers, so that they record its results.
            writers = sum(isinstance(hook, hooks.PeriodicWriter) for hook in all_hooks)
            all_hooks.insert(len(all_hooks) - writers, evaluate)
        return all_hooks
