"""Training of LazyConfigs, with the hooks that YAML configs get."""

import logging
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import get_cfg, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    default_writers,
    hooks,
)
from detectron2.solver.build import maybe_add_gradient_clipping
from fvcore.nn.precise_bn import get_bn_modules
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..config import ConfigError
from ..config.settings import Settings
from ..modeling.detector import build_detector
from .checkpoint import TrainingCheckpointer, class_metadata
from .evaluate import evaluate_model
from .trainer import check_training, prepare_to_train

logger = logging.getLogger(__name__)


def scale_to_world_size(cfg: DictConfig, num_workers: int) -> None:
    """Fit batch, rate and length to the number of processes, in place.

    The rule is that of Detectron2's ``DefaultTrainer.auto_scale_workers``; ``lr_multiplier`` counts
    in parts of the whole and stays.

    Raises:
        ConfigError: ``train.reference_world_size`` does not divide the batch.
    """
    reference = Settings.of(cfg).reference_world_size
    if reference in (0, num_workers):
        return
    loader = cfg.dataloader.train
    if loader.total_batch_size % reference:
        raise ConfigError(
            f"dataloader.train.total_batch_size {loader.total_batch_size} must be a multiple of "
            f"train.reference_world_size {reference}; 0 for the latter scales nothing"
        )
    factor = num_workers / reference
    loader.total_batch_size = round(loader.total_batch_size * factor)
    cfg.optimizer.lr *= factor
    train = cfg.train
    train.max_iter = round(train.max_iter / factor)
    train.eval_period = round(train.eval_period / factor)
    train.checkpointer.period = round(train.checkpointer.period / factor)
    train.reference_world_size = num_workers
    logger.info(
        "Scaled to %d processes: total_batch_size=%d, lr=%g, max_iter=%d",
        num_workers,
        loader.total_batch_size,
        cfg.optimizer.lr,
        train.max_iter,
    )


def build_trainer(cfg: DictConfig, model: nn.Module) -> TrainerBase:
    """Make the loop that trains ``model``, without hooks."""
    settings = Settings.of(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    clipping = settings.get("train.clip_gradients") or {}
    clip_cfg = get_cfg()
    clip_cfg.SOLVER.CLIP_GRADIENTS.update({key.upper(): clipping[key] for key in clipping})
    optimizer = maybe_add_gradient_clipping(clip_cfg, optimizer)
    loader = instantiate(cfg.dataloader.train)
    check_training(settings, model)
    parallel = create_ddp_model(model, **cfg.train.ddp)
    make = AMPTrainer if settings.amp else SimpleTrainer
    return make(parallel, loader, optimizer)


class LazyTrainer:
    """Trains the model of a LazyConfig as :class:`Trainer` trains that of a YAML config.

    Args:
        cfg: the config; batch, rate and length are fitted to the number of processes.

    Raises:
        ConfigError: the config lacks a key, or cannot be trained.
    """

    def __init__(self, cfg: DictConfig) -> None:
        Settings.of(cfg).require_for_training()
        scale_to_world_size(cfg, comm.get_world_size())
        self.cfg = cfg
        model = prepare_to_train(Settings.of(cfg), build_detector(cfg).train())
        self.results: dict[str, Any] = {}
        self.loop = build_trainer(cfg, model)
        self.checkpointer = TrainingCheckpointer(
            model,
            cfg.train.output_dir,
            class_metadata(Settings.of(cfg).datasets("train")[1]),
            trainer=self.loop,
        )
        self.loop.register_hooks(_build_hooks(cfg, model, self.checkpointer, self.results))
        self.start_iter = 0

    def resume_or_load(self, resume: bool = False) -> None:
        """Load ``train.init_checkpoint`` or, with ``resume``, the last checkpoint if there is one.

        Raises:
            FileNotFoundError, ValueError: as :meth:`TrainingCheckpointer.resume_or_load`.
        """
        self.checkpointer.resume_or_load(self.cfg.train.init_checkpoint, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.loop.iter + 1

    def train(self) -> dict[str, Any]:
        """Train to ``train.max_iter``.

        Returns:
            metrics of the last evaluation, by task.
        """
        self.loop.train(self.start_iter, self.cfg.train.max_iter)
        return self.results


def _build_hooks(
    cfg: DictConfig,
    model: nn.Module,
    checkpointer: TrainingCheckpointer,
    results: dict[str, Any],
) -> list[hooks.HookBase]:
    """The hooks of ``DefaultTrainer``, in its order; evaluations are kept in ``results``."""

    def evaluate_and_keep() -> dict[str, Any]:
        results.update(evaluate_model(cfg, model))
        return results

    options = cfg.train
    scheduler = instantiate(cfg.lr_multiplier)
    made = [hooks.IterationTimer(), hooks.LRScheduler(scheduler=scheduler)]
    if Settings.of(cfg).get("train.precise_bn.enabled", False) and get_bn_modules(model):
        loader = instantiate(OmegaConf.merge(cfg.dataloader.train, {"num_workers": 0}))
        made.append(
            hooks.PreciseBN(options.eval_period, model, loader, options.precise_bn.num_iter)
        )
    if comm.is_main_process():
        made.append(hooks.PeriodicCheckpointer(checkpointer, **options.checkpointer))
    if Settings.of(cfg).datasets("test")[1]:
        made.append(hooks.EvalHook(options.eval_period, evaluate_and_keep))
    if comm.is_main_process():
        writers = default_writers(options.output_dir, options.max_iter)
        made.append(hooks.PeriodicWriter(writers, period=options.log_period))
    return made
