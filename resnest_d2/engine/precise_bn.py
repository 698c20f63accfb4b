"""Precise statistics of batch norms, in as many passes as the data and the run warrant."""

import logging
from collections.abc import Iterable

from detectron2.engine import hooks
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

logger = logging.getLogger(__name__)

LEAST_PASSES = 10  # over few images, whose crops and flips differ each time


class PreciseBN(hooks.PreciseBN):
    """Detectron2's hook with a progress bar, which goes over few images a few times only.

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
        data = loader
        while hasattr(data, "dataset"):  # Detectron2's loaders wrap what has a length
            data = data.dataset
        images = len(data) if hasattr(data, "__len__") else num_iter * batch
        self.passes = min(num_iter, max_iter, max(LEAST_PASSES, images // batch))
        self._model, self._batches = model, iter(loader)
        super().__init__(period, model, loader, self.passes)

    def update_stats(self) -> None:
        """Compute the statistics now."""
        if not get_bn_modules(self._model):
            return
        logger.info("Running precise-BN for %d iterations", self.passes)
        with EventStorage():  # what the passes log is not the training's
            update_bn_stats(self._model, self._batches, self.passes, progress="tqdm")
