"""Detectron2's default trainer, with what ResNeSt detectors and Detectron2's projects need."""

import logging
import os
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, PanopticFPN
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import EventWriter
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..config import ConfigError
from ..config.settings import Settings
from ..data.mapper import Mapper, large_scale_jitter
from ..evaluation import build_evaluator
from ..modeling.detector import checked
from ..modeling.resnest import ResNeSt
from ..modeling.split_attention import SplitAttentionConv2d
from ..modeling.sync_batchnorm import CpuSyncBatchNorm, replace_sync_batchnorm
from ..processes import require_alone
from ..weights.stored_config import config_text
from .hooks import build_hooks, build_saver, build_writers
from .loop import build_loop
from .options import TrainingOptions
from .stopping import early_end, leave_signals_to_the_trainer

logger = logging.getLogger(__name__)


def with_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return a detector, or the part of a panoptic model that detects, with augmentation.

    Raises:
        ConfigError: Detectron2 has no test-time augmentation for this model.
    """
    model = getattr(model, "module", model)  # DistributedDataParallel's
    if isinstance(model, PanopticFPN):
        # Detectron2's augmentation trips over its inference(), which takes no boxes.
        detector = GeneralizedRCNN(
            backbone=model.backbone,
            proposal_generator=model.proposal_generator,
            roi_heads=model.roi_heads,
            pixel_mean=model.pixel_mean.flatten().tolist(),
            pixel_std=model.pixel_std.flatten().tolist(),
            input_format=model.input_format,
        )
        model = detector.to(model.device).train(model.training)
    try:
        return GeneralizedRCNNWithTTA(cfg, model)
    except AssertionError as error:
        raise ConfigError(
            f"TEST.AUG.ENABLED: Detectron2 has no augmentation for this model: {error}"
        ) from error


def prepare_to_train(settings: Settings, model: nn.Module) -> nn.Module:
    """Fit a model to the processes and options that it is trained with.

    On CPUs and in a process alone, its SyncBN becomes one that works there. ``MODEL.COMPILE``
    compiles the backbone in place: for the first size of batch as it is, for the second with
    symbols for what differs, as is ``torch.compile``'s default.

    Raises:
        ConfigError: a setting that has no effect on this model, or two that exclude each other.
    """
    if settings.device.startswith("cpu") or comm.get_world_size() == 1:
        model = replace_sync_batchnorm(model)
    checkpointed = settings.get("MODEL.RESNETS.GRAD_CHECKPOINT", False)
    if checkpointed and not any(isinstance(module, ResNeSt) for module in model.modules()):
        raise ConfigError(
            "MODEL.RESNETS.GRAD_CHECKPOINT saves nothing with MODEL.BACKBONE.NAME "
            f"{settings.get('MODEL.BACKBONE.NAME')!r}: only ResNeSt backbones have it"
        )
    if settings.get("MODEL.COMPILE", False):
        if checkpointed:
            raise ConfigError(
                "MODEL.COMPILE and MODEL.RESNETS.GRAD_CHECKPOINT cannot both be True: a graph "
                "cannot span blocks that are computed twice; choose speed or memory"
            )
        model.backbone.compile()
        logger.info("The backbone is compiled in the first iterations, which takes minutes")
    return model


def check_training(settings: Settings, model: nn.Module) -> None:
    """See that a model can be trained on data sets that are loaded.

    Raises:
        ConfigError: one image a process, where the attention's batch norm needs more; more classes
            in the data than in the model.
    """
    model = getattr(model, "module", model)  # DistributedDataParallel's
    has = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    for name in settings.datasets("train")[1]:
        needs = len(MetadataCatalog.get(name).get("thing_classes", None) or [])
        if has is not None and needs > has:
            key = settings.num_classes_key
            raise ConfigError(f"{key} is {has}, but data set {name!r} has {needs} classes")
    world = comm.get_world_size()
    if settings.images_per_batch // world > 1:
        return
    synchronised = (CpuSyncBatchNorm, nn.SyncBatchNorm) if world > 1 else ()
    for norm in (m.bn1 for m in model.modules() if isinstance(m, SplitAttentionConv2d)):
        if isinstance(norm, _BatchNorm) and norm.training and not isinstance(norm, synchronised):
            raise ConfigError(
                f"{type(norm).__name__.removeprefix('Cpu')} cannot be trained on one value per "
                "channel: the attention's batch norm sees a 1x1 map and the batch size of this "
                "process is 1. Use at least two images a process "
                f"({settings.key('images_per_batch')} over the number of processes), or "
                'MODEL.RESNETS.NORM "SyncBN" over several processes, or MODEL.RESNETS.NORM '
                '"FrozenBN" or "GN"'
            )


def needs_scaling(settings: Settings, num_workers: int) -> bool:
    """Whether batch, rate and length are meant for another number of processes.

    Raises:
        ConfigError: that number does not divide the batch.
    """
    reference, images = settings.reference_world_size, settings.images_per_batch
    if reference in (0, num_workers):
        return False
    if images % reference:
        key = settings.key("reference_world_size")
        raise ConfigError(
            f"{settings.key('images_per_batch')} {images} must be a multiple of {key} {reference}, "
            f"the number of processes that it is meant for; with {key} 0 nothing is scaled and "
            "every number means what it says"
        )
    return True


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` for ResNeSt detectors.

    It chooses evaluators by ``evaluator_type``, evaluates with test-time augmentation at the end
    of training if ``TEST.AUG.ENABLED``, keeps class names in its checkpoints, and brings DeepLab's
    crops and polynomial schedule.
    """

    def __init__(self, cfg: CfgNode, options: TrainingOptions | None = None) -> None:
        """Build model, optimizer and loader.

        Args:
            cfg: the config; batch, rate and length are fitted to the number of processes.
            options: how training saves, stops and goes on.

        Raises:
            ConfigError: as :func:`check_training`, :func:`needs_scaling` and, if ``TEST.AUG`` is
                enabled, :func:`with_augmentation`.
            InputError: torchrun started several processes that have not joined each other.
        """
        # Detectron2's own __init__ makes a DistributedDataParallel that is for GPUs alone.
        super(DefaultTrainer, self).__init__()
        self.options = options or TrainingOptions()
        require_alone()
        text = config_text(cfg)
        # Detectron2's own check is an assertion that names half of it.
        world = self.options.scaled_to or comm.get_world_size()
        if needs_scaling(Settings.of(cfg), world):
            cfg = self.auto_scale_workers(cfg, world)
        settings = Settings.of(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._trainer = build_loop(settings, self.options, model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer, self.saver = build_saver(
            settings, self.options, self.model, loader, weakref.proxy(self), text
        )
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())
        if cfg.TEST.AUG.ENABLED:
            with_augmentation(cfg, self.model)
        check_training(settings, self.model)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build ``cfg.MODEL``, ready for the processes that train it."""
        with checked(Settings.of(cfg)):
            model = super().build_model(cfg)
        return prepare_to_train(Settings.of(cfg), model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """Detectron2's loader; a semantic segmentor gets DeepLab's augmentations."""
        augmentations = large_scale_jitter(cfg)
        if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor" and not augmentations:
            from ..modeling.deeplab import semantic_augmentations

            augmentations["augmentations"] = semantic_augmentations(cfg)
        mapper = Mapper(cfg, is_train=True, **augmentations)
        return leave_signals_to_the_trainer(build_detection_train_loader(cfg, mapper=mapper))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """Detectron2's loader, with this package's reader of pictures."""
        mapper = Mapper(cfg, is_train=False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        return leave_signals_to_the_trainer(loader)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """Detectron2's optimizer; the bottom-up network learns by ``SOLVER.BACKBONE_MULTIPLIER``.

        Raises:
            ConfigError: the factor is negative.
        """
        optimizer = super().build_optimizer(cfg, model)
        factor = cfg.SOLVER.get("BACKBONE_MULTIPLIER", 1.0)
        if not factor >= 0:
            raise ConfigError(f"SOLVER.BACKBONE_MULTIPLIER must be 0 or more, got {factor}")
        if factor == 1:
            return optimizer
        prefix = "backbone.bottom_up." if hasattr(model.backbone, "bottom_up") else "backbone."
        groups = get_default_optimizer_params(
            model,
            cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            lr_factor_func=lambda name: factor if name.startswith(prefix) else 1.0,
        )
        optimizer.param_groups.clear()
        for group in groups:
            optimizer.add_param_group(group)
        return optimizer

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
            detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate with ``TEST.AUG``'s scales and flips; the results' names get ``_TTA``.

        Augmentation is for instances: of a panoptic model, boxes and masks are evaluated.

        Raises:
            ConfigError: as :func:`with_augmentation`.
        """
        logger.info("Running inference with test-time augmentation ...")
        model = with_augmentation(cfg, model)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [
            build_evaluator(
                name,
                folder,
                instances_only=True,
                detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            )
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, model, evaluators)
        return {f"{name}_TTA": value for name, value in results.items()}

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's hooks, those that save and stop, and the evaluation with augmentation."""
        cfg = self.cfg
        evaluations = [hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)]
        if cfg.TEST.AUG.ENABLED:
            augmented = partial(self.test_with_TTA, cfg, self.model)
            evaluations.append(hooks.EvalHook(0, augmented))
        return build_hooks(
            Settings.of(cfg),
            self.options,
            self.saver,
            self.model,
            self.build_train_loader,
            schedule=hooks.LRScheduler(),
            evaluations=evaluations,
            writers=self.build_writers,
            log_period=20,
        )

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's writers, without what a resumed run writes again."""
        return build_writers(self.cfg.OUTPUT_DIR, self.start_iter, self.max_iter)

    def _evaluate(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def train(self) -> dict[str, Any] | None:
        """Train to the end, or to where ``--patience`` or a signal stops it.

        Returns:
            metrics of the last evaluation by task, if the config expects some.

        Raises:
            SystemExit: a signal stopped it; the exit code is 128 and the signal's number.
        """
        with early_end(self._trainer):
            return super().train()
