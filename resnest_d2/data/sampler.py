"""The order of training images, which goes on where an earlier run stopped."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detectron2.data.samplers import TrainingSampler

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """Numbers that decide which images a run has trained on."""

    iterations: int
    world_size: int
    batch_size: int
    """Images of one process in an iteration."""
    num_workers: int
    """Workers of a process's loader, which take turns."""


class Position(int):
    """The number of an image that knows its place in the endless stream of them."""

    position: int


class ResumableSampler(TrainingSampler):
    """Detectron2's ``TrainingSampler``, which leaves out what earlier runs have trained on.

    An endless shuffled stream is the same for all processes, and each takes its share of it. Which
    part of it a run has trained on follows from the number of its iterations; loaders that wait
    with images until a batch of one aspect ratio is full do not hold them back in order. Earlier
    runs may have had other numbers of processes, images and workers.

    Args:
        dicts: of each image, with its width and height; None if batches are not grouped by which of
            them is greater.
        size: number of images.
        seed: of the shuffle; None draws one that all processes share.
    """

    def __init__(
        self, dicts: Sequence[dict[str, Any]] | None, size: int, seed: int | None = None
    ) -> None:
        super().__init__(size, seed=seed)
        self._dicts = dicts
        self._is_wide: dict[int, bool] = {}
        self.earlier: list[Run] = []

    def _infinite_indices(self) -> Iterator[int]:
        stream = enumerate(super()._infinite_indices())
        for run in self.earlier:
            stream = self._rest(stream, run)
        for position, index in stream:
            number = Position(index)
            number.position = position
            yield number

    def _rest(self, stream: Iterator[tuple[int, int]], run: Run) -> Iterator[tuple[int, int]]:
        """Leave out of a stream of positions and images what a run has trained on."""
        number = run.iterations * run.batch_size
        processes = [_Process(self, run) for _ in range(run.world_size)]
        working = itertools.cycle(processes)
        left: list[tuple[int, int]] = []
        while any(process.trained < number for process in processes):
            for process in itertools.islice(working, run.world_size):
                process.take(next(stream), number)
        for process in processes:
            left += process.waiting[0] + process.waiting[1] + process.block
        return itertools.chain(sorted(left), stream)

    @property
    def is_grouped(self) -> bool:
        """Whether images wait for others of their aspect ratio."""
        return self._dicts is not None

    def is_wide(self, index: int) -> bool:
        """Whether an image is batched with those that are wider than high."""
        if not self.is_grouped:
            return False
        if index not in self._is_wide:
            image = self._dicts[index]
            self._is_wide[index] = image["width"] > image["height"]
        return self._is_wide[index]

    def state_dict(self, run: Run) -> dict[str, Any]:
        """Return what a later run needs to go on after the given one."""
        runs = [asdict(one) for one in (*self.earlier, run)]
        return {"size": self._size, "seed": self._seed, "runs": runs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the runs of a state stopped; other data begin anew, with a warning."""
        if state["size"] != self._size:
            logger.warning(
                "The data have %d images, those of the run that is resumed had %d: their order "
                "begins anew",
                self._size,
                state["size"],
            )
            return
        self._seed = state["seed"]
        self.earlier = [Run(**run) for run in state["runs"] if run["iterations"]]


class _Process:
    """A process of a run: the images that Detectron2's loader gives to it, and those it holds back.

    Its workers get batches of the process's share in turn. If images are grouped by aspect ratio,
    workers give one each in turn, which waits until a batch of its kind is full.
    """

    def __init__(self, sampler: ResumableSampler, run: Run) -> None:
        self._sampler, self._size = sampler, run.batch_size
        self._workers = max(run.num_workers, 1) if sampler.is_grouped else 1
        self.block: list[tuple[int, int]] = []
        self.waiting: tuple[list, list] = ([], [])
        self.trained = 0

    def take(self, item: tuple[int, int], number: int) -> None:
        """Train on an image, or hold it back, until a number has been trained on."""
        self.block.append(item)
        if self.trained >= number or len(self.block) < self._workers * self._size:
            return
        in_turn = [one for j in range(self._size) for one in self.block[j :: self._size]]
        self.block = []
        for one in in_turn:
            batch = self.waiting[self._sampler.is_wide(one[1])]
            batch.append(one)
            if len(batch) == self._size and self.trained < number:
                self.trained += self._size
                batch.clear()
