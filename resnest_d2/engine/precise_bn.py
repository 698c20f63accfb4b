"""Precise statistics of batch norms, in as many passes as the data and the run warrant."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from ..config.settings import Config, Settings
from ..data.loader import layers, refit
from .loop import NonFiniteError, others_wait
from .stopping import kept_random_states

logger = logging.getLogger(__name__)

LEAST_PASSES = 10  # over few images, whose crops and flips differ each time


def build_precise_bn(
    settings: Settings,
    model: nn.Module,
    build_loader: Callable[[Config], Iterable],
    skipped: Path | None,
) -> "PreciseBN | None":
    """Make the hook if the config asks for it and the model has batch norms.

    Args:
        settings: of the config.
        model: as Detectron2's hook takes it.
        build_loader: makes a loader of the training set from a config.
        skipped: as ``data.loader.TrainingImages``.
    """
    if not (settings.precise_bn and get_bn_modules(model)):
        return None
    alone = settings.copy()
    alone.num_workers = 0
    loader = build_loader(alone.cfg)
    refit(loader, settings.datasets("train")[1], seed=None, skipped=skipped)
    size = {"batch": settings.images_per_batch, "max_iter": settings.max_iter}
    passes = settings.precise_bn_passes
    return PreciseBN(settings.evaluation_period, model, loader, passes, **size)


class PreciseBN(hooks.PreciseBN):
    """Detectron2's hook with a progress bar, which goes over few images a few times only.

    Training goes on as if there had been no passes. Batches that are not finite are left out. Norms
    that no pass reaches keep the statistics of training; where some become NaN or infinite, all do.

    Args:
        period: as Detectron2's.
        model: as Detectron2's.
        loader: endless, of the training set.
        num_iter: the most passes.
        batch: images of a pass in all processes.
        max_iter: of the run, which does not make more passes than iterations.
    """

    def __init__(
        self,
        period: int,
        model: nn.Module,
        loader: Iterable,
        num_iter: int,
        *,
        batch: int,
        max_iter: int,
    ) -> None:
        *_, data = layers(loader)
        images = len(data) if hasattr(data, "__len__") else num_iter * batch
        self.passes = min(num_iter, max_iter, max(LEAST_PASSES, images // batch))
        self._model, self._batches = model, iter(loader)
        self._before: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
        super().__init__(period, model, loader, self.passes)

    def update_stats(self) -> None:
        """Compute the statistics now.

        Raises:
            NonFiniteError: proposals of this process are not finite, and other processes wait.
        """
        logger.info("Running precise-BN for %d iterations", self.passes)
        norms = get_bn_modules(self._model)
        self._before = [(n, n.running_mean.clone(), n.running_var.clone()) for n in norms]
        with EventStorage(), kept_random_states():  # what the passes log is not the training's
            update_bn_stats(_Passes(self._model), self._batches, self.passes, progress="tqdm")
        if all(n.running_mean.isfinite().all() and n.running_var.isfinite().all() for n in norms):
            # fvcore gives a norm that no pass has reached the mean 0 and the variance 0.
            self._before = [
                one
                for one in self._before
                if not (one[0].running_mean.any() or one[0].running_var.any())
            ]
        else:
            logger.warning(
                "Precise BN gives statistics that are not finite: those of training stay"
            )
        self.undo()
        self._before = []

    def undo(self) -> None:
        """Put the statistics of training back if it is computing."""
        for norm, mean, variance in self._before:
            norm.running_mean, norm.running_var = mean, variance


class _Passes(nn.Module):
    """A model of which a pass may fail by numbers that are not finite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> None:
        try:
            self.model(inputs)
        except FloatingPointError as error:  # Detectron2's, of proposals
            if others_wait(self.model):
                raise NonFiniteError(f"a pass of precise BN is not finite: {error}") from error
            logger.warning("A batch is left out of precise BN: %s", error)
