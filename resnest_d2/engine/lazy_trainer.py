"""Training of LazyConfigs, with the hooks that YAML configs get."""

import logging
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import CfgNode, instantiate
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

from ..commands.errors import one_line_errors
from ..config.classes import num_classes_key
from ..config.lazy import select
from ..evaluation.evaluators import dataset_names
from ..modeling.build import build_detector
from .checkpoint import TrainingCheckpointer, class_metadata
from .checks import check_training
from .evaluate import evaluate_model

logger = logging.getLogger(__name__)


def scale_to_world_size(cfg: DictConfig, num_workers: int) -> None:
    """Fit batch, rate and length to the number of processes, in place.

    By the rule of Detectron2's ``DefaultTrainer.auto_scale_workers``; ``lr_multiplier`` counts in
    parts of the whole and stays.

    Raises:
        ValueError: ``train.reference_world_size`` does not divide the batch.
    """
    reference = select(cfg, "train.reference_world_size", 0)
    if reference in (0, num_workers):
        return
    loader = cfg.dataloader.train
    if loader.total_batch_size % reference:
        raise ValueError(
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
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    clip = select(cfg, "train.clip_gradients")
    if clip is not None and clip.enabled:
        settings = {key.upper(): value for key, value in clip.items()}
        clip_cfg = CfgNode({"SOLVER": {"CLIP_GRADIENTS": settings}})
        optimizer = maybe_add_gradient_clipping(clip_cfg, optimizer)
    loader = instantiate(cfg.dataloader.train)
    names = dataset_names(cfg, "train")[1]
    images = cfg.dataloader.train.total_batch_size // comm.get_world_size()
    check_training(
        model,
        images,
        names,
        num_classes_key(cfg),
    )
    parallel = create_ddp_model(model, **cfg.train.ddp)
    make = AMPTrainer if select(cfg, "train.amp.enabled", False) else SimpleTrainer
    return make(parallel, loader, optimizer)


def train(cfg: DictConfig, resume: bool = False) -> dict[str, Any]:
    """Train the model of a LazyConfig.

    Args:
        cfg: the config.
        resume: go on from the last checkpoint in ``train.output_dir``, if there is one.

    Returns:
        metrics of the last evaluation, by task.
    """
    results: dict[str, Any] = {}
    with one_line_errors():
        scale_to_world_size(cfg, comm.get_world_size())
        model = build_detector(cfg).train()
        trainer = build_trainer(cfg, model)
        checkpointer = TrainingCheckpointer(
            model,
            cfg.train.output_dir,
            class_metadata(dataset_names(cfg, "train")[1]),
            trainer=trainer,
        )
        trainer.register_hooks(_build_hooks(cfg, model, checkpointer, results))
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
        first = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(first, cfg.train.max_iter)
    return results


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
    if select(cfg, "train.precise_bn.enabled", False) and get_bn_modules(model):
        loader = instantiate(OmegaConf.merge(cfg.dataloader.train, {"num_workers": 0}))
        made.append(
            hooks.PreciseBN(options.eval_period, model, loader, options.precise_bn.num_iter)
        )
    if comm.is_main_process():
        made.append(hooks.PeriodicCheckpointer(checkpointer, **options.checkpointer))
    if dataset_names(cfg, "test")[1]:
        made.append(hooks.EvalHook(options.eval_period, evaluate_and_keep))
    if comm.is_main_process():
        writers = default_writers(options.output_dir, options.max_iter)
        made.append(hooks.PeriodicWriter(writers, period=options.log_period))
    return made
