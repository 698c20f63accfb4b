"""Training of LazyConfigs, with the hooks that YAML configs get."""

import logging
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import get_cfg, instantiate
from detectron2.engine import hooks
from detectron2.solver.build import maybe_add_gradient_clipping
from omegaconf import DictConfig
from torch.optim import Optimizer

from ..config.settings import Settings
from ..modeling.detector import build_detector
from ..processes import require_alone
from ..weights.stored_config import config_text
from .evaluate import evaluate_model
from .hooks import build_hooks, build_saver, build_writers
from .loop import build_loop
from .options import TrainingOptions
from .stopping import early_end, leave_signals_to_the_trainer
from .trainer import check_training, needs_scaling, prepare_to_train

logger = logging.getLogger(__name__)


def scale_to_world_size(cfg: DictConfig, num_workers: int) -> None:
    """Fit batch, rate and length to the number of processes, in place.

    The rule is that of Detectron2's ``DefaultTrainer.auto_scale_workers``; ``lr_multiplier`` counts
    in parts of the whole and stays.

    Raises:
        ConfigError: ``train.reference_world_size`` does not divide the batch.
    """
    if not needs_scaling(Settings.of(cfg), num_workers):
        return
    train, loader = cfg.train, cfg.dataloader.train
    factor = num_workers / train.reference_world_size
    loader.total_batch_size = round(loader.total_batch_size * factor)
    cfg.optimizer.lr *= factor
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


class LazyTrainer:
    """Trains the model of a LazyConfig as :class:`Trainer` trains that of a YAML config.

    Args:
        cfg: the config; batch, rate and length are fitted to the number of processes.
        options: how training saves, stops and goes on.

    Raises:
        ConfigError: the config lacks a key, or cannot be trained.
        InputError: torchrun started several processes that have not joined each other.
    """

    def __init__(self, cfg: DictConfig, options: TrainingOptions | None = None) -> None:
        self.options = options or TrainingOptions()
        require_alone()
        settings = Settings.of(cfg)
        settings.require_for_training()
        text = config_text(settings)
        scale_to_world_size(cfg, self.options.scaled_to or comm.get_world_size())
        self.cfg = cfg
        self.model = prepare_to_train(settings, build_detector(settings).train())
        self.results: dict[str, Any] = {}
        self.start_iter = 0
        optimizer = self._build_optimizer()
        loader = leave_signals_to_the_trainer(instantiate(cfg.dataloader.train))
        check_training(settings, self.model)
        self.loop = build_loop(settings, self.options, self.model, loader, optimizer)
        self.checkpointer, self.saver = build_saver(
            settings, self.options, self.model, loader, self.loop, text
        )
        self.loop.max_iter = cfg.train.max_iter
        self.loop.register_hooks(self._build_hooks())

    def _build_optimizer(self) -> Optimizer:
        self.cfg.optimizer.params.model = self.model
        clipping = Settings.of(self.cfg).get("train.clip_gradients") or {}
        clip_cfg = get_cfg()
        clip_cfg.SOLVER.CLIP_GRADIENTS.update({key.upper(): clipping[key] for key in clipping})
        return maybe_add_gradient_clipping(clip_cfg, instantiate(self.cfg.optimizer))

    def _build_hooks(self) -> list[hooks.HookBase]:
        cfg, settings = self.cfg, Settings.of(self.cfg)
        options = cfg.train
        evaluations = []
        if settings.datasets("test")[1]:
            evaluations.append(hooks.EvalHook(options.eval_period, self._evaluate))
        return build_hooks(
            settings,
            self.options,
            self.saver,
            self.model,
            lambda alone: instantiate(alone.dataloader.train),
            schedule=hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            evaluations=evaluations,
            writers=lambda: build_writers(options.output_dir, self.start_iter, options.max_iter),
            log_period=options.log_period,
        )

    def _evaluate(self) -> dict[str, Any]:
        self.results.update(evaluate_model(self.cfg, self.model))
        return self.results

    def resume_or_load(self, resume: bool = False) -> None:
        """Load ``train.init_checkpoint`` or, with ``resume``, the last checkpoint if there is one.

        Raises:
            FileNotFoundError, ValueError: as :meth:`TrainingCheckpointer.resume_or_load`.
        """
        self.checkpointer.resume_or_load(self.cfg.train.init_checkpoint, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.loop.iter + 1

    def train(self) -> dict[str, Any]:
        """Train to ``train.max_iter``, or to where ``--patience`` or a signal stops it.

        Returns:
            metrics of the last evaluation, by task.

        Raises:
            SystemExit: as :meth:`Trainer.train`.
        """
        with early_end(self.loop):
            self.loop.train(self.start_iter, self.cfg.train.max_iter)
        return self.results
