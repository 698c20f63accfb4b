"""Detectron2's loader, fitted for training: order over stops, fixed augmentation, bad images."""

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import Dataset

from ..config import InputError
from .sampler import Position, ResumableSampler

logger = logging.getLogger(__name__)

# A picture that cannot be read, or is not what its annotations are for, raises one of these.
UNREADABLE = (InputError, SizeMismatchError, OSError)


class TrainingImages(Dataset):
    """A data set whose images are read and augmented, as Detectron2's ``MapDataset``.

    Args:
        images: reads and augments one.
        names: of the registered data sets.
        seed: of the augmentations, which then depend on an image's place in the training alone, not
            on the loader's processes; None leaves them to the generators of each process.
        skipped: the file that lists images which cannot be read, and which others stand in for;
            None raises the error.
    """

    def __init__(
        self, images: Dataset, names: Sequence[str], seed: int | None, skipped: Path | None
    ) -> None:
        self.images, self.seed, self.skipped = images, seed, skipped
        metadata = map(MetadataCatalog.get, names)
        self.files = {m.get("json_file", None) or m.name: m.get("image_root", "") for m in metadata}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.seed is None or not isinstance(index, Position):
            return self._read(index)
        states = random.getstate(), np.random.get_state()
        drawn = np.random.SeedSequence([self.seed, index.position]).generate_state(2)
        random.seed(int(drawn[0]))
        np.random.seed(drawn[1])
        try:
            return self._read(index)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

    def _read(self, index: int) -> dict[str, Any]:
        for step in range(len(self)):
            try:
                return self.images[(index + step) % len(self)]
            except UNREADABLE as error:
                message = f"{error} (an image of {self._annotations(str(error))})"
                if self.skipped is None:
                    raise InputError(message) from error
                with self.skipped.open("a") as stream:  # of several processes, a line each time
                    stream.write(message.replace("\n", " ") + "\n")
        raise InputError("no image of the training data can be read")

    def _annotations(self, message: str) -> str:
        """The annotation file of the image that a message is about, or all there are."""
        own = [file for file, root in self.files.items() if root and root in message]
        return " or ".join(own or self.files)


def layers(loader: Any) -> Iterator[Any]:
    """Yield a loader of Detectron2, what it wraps, what that wraps, and so on."""
    while loader is not None:
        yield loader
        loader = getattr(loader, "dataset", getattr(loader, "_dataset", None))


def refit(
    loader: Any, names: Sequence[str], *, seed: int | None, skipped: Path | None
) -> ResumableSampler | None:
    """Fit a loader of Detectron2 for training, in place.

    Args:
        loader: as ``build_detection_train_loader`` returns it.
        names: as :class:`TrainingImages`.
        seed: as :class:`TrainingImages`.
        skipped: as :class:`TrainingImages`.

    Returns:
        its sampler, if it is one whose order can be resumed: Detectron2's ``TrainingSampler``.
    """
    grouped = any(isinstance(layer, AspectRatioGroupedDataset) for layer in layers(loader))
    loader = next((one for one in layers(loader) if isinstance(one, ToIterableDataset)), None)
    if loader is None:
        return None
    dicts = getattr(loader.dataset, "_dataset", None)
    loader.dataset = TrainingImages(loader.dataset, names, seed, skipped)
    if type(loader.sampler) is not TrainingSampler or not loader.sampler._shuffle:
        return None
    loader.sampler = ResumableSampler(
        dicts if grouped else None, loader.sampler._size, loader.sampler._seed
    )
    return loader.sampler


def report_skipped(file: Path) -> None:
    """Warn of the images that training has left out."""
    lines = file.read_text().splitlines() if file.is_file() else []
    if lines:
        images = sorted(set(lines))
        message = "%d image(s) were left out, %d times in all (%s): %s"
        logger.warning(message, len(images), len(lines), file, "; ".join(images[:5]))
