"""Detectron2's default trainer, with what ResNeSt detectors and Detectron2's projects need."""

import copy
import errno
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
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, PanopticFPN
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..config import ConfigError, FileError, InputError
from ..data.mapper import Mapper, large_scale_jitter
from ..evaluation import build_evaluator
from ..modeling.detector import build_detector
from ..modeling.sync_batchnorm import replace_sync_batchnorm
from ..weights import Checkpoint, load_weights
from ..weights.stored_config import config_text
from .checkpoint import TrainingCheckpointer, class_metadata, follow_changes
from .hooks import TRAINING, DrawCurves, KeepBest, Stop, StopTraining, ignoring_signals
from .options import TrainingOptions
from .terminal import Announce, ProgressBar

logger = logging.getLogger(__name__)

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` for ResNeSt detectors.

    It evaluates with test-time augmentation at the end if ``TEST.AUG.ENABLED``, keeps class names
    and config in its checkpoints, saves and ends on a signal, and brings DeepLab's crops and
    polynomial schedule.
    """

    def __init__(self, cfg: CfgNode, options: TrainingOptions | None = None) -> None:
        """Build model, optimizer and loader.

        Args:
            cfg: the config; batch, rate and length are fitted to the number of processes where
                ``SOLVER.REFERENCE_WORLD_SIZE`` says so.
            options: how training saves, ends and shows itself.

        Raises:
            InputError: as :meth:`TrainingOptions.check` and :func:`check_classes`.
        """
        # Detectron2's own __init__ makes a DistributedDataParallel that is for GPUs alone.
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            for name in ("detectron2", "resnest_d2"):
                setup_logger(name=name)
        self.options = options or TrainingOptions()
        self.options.check(cfg)
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        build = self.build_train_loader
        if self.options.skip_bad_images:
            build = partial(build, skip_bad_images=True)
        # A user's own builder too, and also for precise BN.
        self.build_train_loader = lambda cfg: ignoring_signals(build(cfg))
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self.cfg = _limit_precise_bn(cfg, loader)
        devices = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        loop = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = loop(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        classes = class_metadata(cfg.DATASETS.TRAIN)
        self.checkpointer = TrainingCheckpointer(
            model, cfg.OUTPUT_DIR, classes, config_text(cfg), trainer=weakref.proxy(self)
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self._last_eval_results: dict[str, Any] | None = None
        self.register_hooks(self.build_hooks())
        if cfg.TEST.AUG.ENABLED:
            with_augmentation(cfg, model)
        check_classes(cfg, model)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build ``cfg.MODEL``, ready for the processes that train it."""
        model = build_detector(cfg)
        logging.getLogger("detectron2").info("Model:\n%s", model)
        return prepare_to_train(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, skip_bad_images: bool = False) -> Iterable:
        """Detectron2's loader; a semantic segmentor gets DeepLab's augmentations."""
        augmentations = large_scale_jitter(cfg)
        if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor" and not augmentations:
            from ..modeling.deeplab import semantic_augmentations

            augmentations["augmentations"] = semantic_augmentations(cfg)
        mapper = Mapper(cfg, is_train=True, skip_bad_images=skip_bad_images, **augmentations)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """Detectron2's loader, with this package's reader of pictures."""
        mapper = Mapper(cfg, is_train=False)
        return ignoring_signals(build_detection_test_loader(cfg, dataset_name, mapper=mapper))

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
        """
        logger.info("Running inference with test-time augmentation ...")
        model = with_augmentation(cfg, model)
        folder, limit = os.path.join(cfg.OUTPUT_DIR, "inference_TTA"), cfg.TEST.DETECTIONS_PER_IMAGE
        evaluators = [
            build_evaluator(name, folder, instances_only=True, detections_per_image=limit)
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, model, evaluators)
        return {f"{name}_TTA": value for name, value in results.items()}

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's hooks, and those that stop training, keep the best and show progress."""
        made = [hook for hook in super().build_hooks() if hook is not None]
        for hook in made:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.max_to_keep = self.options.keep_last or None
        stop = Stop(self.checkpointer)
        at = next(i for i, hook in enumerate(made) if isinstance(hook, hooks.EvalHook))
        more: list[hooks.HookBase] = []
        if self.cfg.TEST.AUG.ENABLED:
            more.append(hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model)))
        if comm.is_main_process():
            period, metric = self.cfg.TEST.EVAL_PERIOD, self.options.keep_best
            best = None
            if metric:
                patience = self.options.patience
                best = KeepBest(period, self.checkpointer, metric, patience, stop)
                more.append(best)
            more.append(Announce(period, best))
            made = [ProgressBar(self.options.progress), *made]
            made.append(DrawCurves(period, self.cfg.OUTPUT_DIR))
            at += 1
        return [*made[:at], stop, made[at], *more, *made[at + 1 :]]

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS`` or, with ``resume``, the last checkpoint if there is one.

        Raises:
            InputError: as :meth:`TrainingCheckpointer.resume_or_load`.
        """
        groups = copy.deepcopy([{**group, "params": []} for group in self.optimizer.param_groups])
        schedule = self.scheduler.state_dict()
        super().resume_or_load(resume)
        if self.start_iter:
            changed = self.checkpointer.changes
            follow_changes(self.optimizer, self.scheduler, groups, schedule, changed)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what a checkpoint holds; what it lacks, as the scaler of AMP, begins anew.

        Raises:
            InputError: the optimizer has other groups of parameters.
        """
        loop = {**self._trainer.state_dict(), **state_dict["_trainer"]}
        states = (loop["optimizer"], self.optimizer.state_dict())
        theirs, ours = ([len(g["params"]) for g in state["param_groups"]] for state in states)
        if theirs != ours:
            changed = ", ".join(self.checkpointer.changes)
            raise InputError(
                f"--resume: the optimizer has groups of {ours} parameters, the checkpoint's has "
                f"{theirs}, by other settings ({changed}): train with MODEL.WEIGHTS in a new folder"
            )
        super().load_state_dict({**state_dict, "_trainer": loop})

    def train(self) -> dict[str, Any] | None:
        """Train to the end, or to where ``--patience`` or a signal stops it.

        Returns:
            metrics of the last evaluation by task, None if there was none.

        Raises:
            FileError: the disk is full, or was made read-only.
            SystemExit: a signal stopped it; the exit code is 128 and the signal's number.
        """
        try:
            super().train()
        except OSError as error:
            if isinstance(error, FileError) or error.errno not in UNWRITABLE:
                raise
            # Hooks that end a training write, too, and hide the file that was not written first.
            first = error.__context__
            reason = first if isinstance(first, FileError) else error.strerror
            raise FileError(f"training stopped: {self.cfg.OUTPUT_DIR}: {reason}") from error
        except StopTraining as stop:
            logger.info("%s", stop)
            if stop.exit_code:
                raise SystemExit(stop.exit_code) from None
        finally:
            TRAINING.value = False
            self._trainer.reset_data_loader(lambda: ())  # its processes end
        return self._last_eval_results


def _limit_precise_bn(cfg: CfgNode, loader: Any) -> CfgNode:
    """Let precise BN go over the data of a loader once, and make no more passes than the run."""
    cfg = cfg.clone()
    cfg.defrost()
    while (inner := getattr(loader, "dataset", None)) is not None:
        loader = inner
    limits = [cfg.TEST.PRECISE_BN.NUM_ITER, cfg.SOLVER.MAX_ITER]
    if hasattr(loader, "__len__"):
        limits.append(max(1, len(loader) // cfg.SOLVER.IMS_PER_BATCH))
    cfg.TEST.PRECISE_BN.NUM_ITER = min(limits)
    cfg.freeze()
    return cfg


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


def prepare_to_train(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Fit a model to the processes and options that it is trained with.

    On CPUs and in a process alone, its SyncBN becomes one that works there. ``MODEL.COMPILE``
    compiles the backbone in place.

    Raises:
        ConfigError: two settings exclude each other.
    """
    if cfg.MODEL.DEVICE.startswith("cpu") or comm.get_world_size() == 1:
        model = replace_sync_batchnorm(model)
    if cfg.MODEL.get("COMPILE", False):
        if cfg.MODEL.RESNETS.get("GRAD_CHECKPOINT", False):
            raise ConfigError(
                "MODEL.COMPILE and MODEL.RESNETS.GRAD_CHECKPOINT cannot both be True: a graph "
                "cannot span blocks that are computed twice; choose speed or memory"
            )
        model.backbone.compile()
        logger.info("The backbone is compiled in the first iterations, which takes minutes")
    return model


def check_classes(cfg: CfgNode, model: nn.Module) -> None:
    """See that a model has the classes of data sets that are loaded.

    Raises:
        ConfigError: it has fewer, which Detectron2 finds on a GPU by a CUDA assert.
    """
    model = getattr(model, "module", model)  # DistributedDataParallel's
    has = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    for name in cfg.DATASETS.TRAIN:
        needs = len(MetadataCatalog.get(name).get("thing_classes", None) or [])
        if has is not None and needs > has:
            head = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
            raise ConfigError(
                f"MODEL.{head}.NUM_CLASSES is {has}, but data set {name!r} has {needs} classes"
            )


def load_for_evaluation(cfg: CfgNode, checkpoint: Checkpoint | str) -> nn.Module:
    """Build a config's model and load weights.

    Raises:
        InputError: as :func:`~resnest_d2.weights.load_weights`.
    """
    model = build_detector(cfg).eval()
    if cfg.TEST.AUG.ENABLED:
        with_augmentation(cfg, model)  # fail before the evaluation that comes first
    load_weights(model, checkpoint)
    return model


def evaluate_model(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """Evaluate on a config's test sets, and again with ``TEST.AUG`` if that is enabled.

    Returns:
        metrics by task.
    """
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
