"""Checkpoints on the disk: which are written, which stay, and which is which."""

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
from detectron2.engine import hooks
from fvcore.common.checkpoint import Checkpointer

from ..config import did_you_mean
from ..files import write_text
from ..processes import in_first_process
from .checkpoint import BEST
from .loop import NonFiniteError
from .options import TrainingOptions
from .stopping import RandomStates, StopTraining

logger = logging.getLogger(__name__)

FINAL = "model_final"


class Record:
    """``results.json`` of an output folder: its checkpoints and evaluations.

    Args:
        folder: the output folder.
        metric: that tells which evaluation is the best.
    """

    def __init__(self, folder: str, metric: str = "") -> None:
        self.file = Path(folder) / "results.json"
        self.metric = metric
        self.last = ""
        self.checkpoints: list[str] = []
        self.best: dict[str, Any] | None = None
        self.evaluations: list[dict[str, Any]] = []

    def resume(self, iteration: int) -> None:
        """Take over what an earlier run has noted, evaluations from before an iteration."""
        try:
            content = json.loads(self.file.read_text())
            self.last, self.checkpoints = content["last"], content["checkpoints"]
            if self.metric in ("", content["metric"]):  # without one, for a later run
                self.metric = content["metric"]
                self.best = content["best"]
                notes = content["evaluations"]
                self.evaluations = [note for note in notes if note["iteration"] < iteration]
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is not what training writes, and is written anew", self.file)

    def write(self) -> None:
        """Write the file."""
        content = {name: value for name, value in vars(self).items() if name != "file"}
        write_text(self.file, json.dumps(content, indent=1) + "\n")

    @property
    def without_gain(self) -> int:
        """How many evaluations have followed the best one."""
        after = self.best["iteration"] if self.best else -1
        return sum(note["iteration"] > after for note in self.evaluations)


class SaveCheckpoints(hooks.HookBase):
    """Saves checkpoints as Detectron2's ``PeriodicCheckpointer``, in all processes or none.

    Args:
        checkpointer: writes them.
        period: of iterations.
        record: of the output folder.
        states: of the random numbers, which ``checkpointer`` saves too.
        options: which checkpoints stay, and what to do where one cannot be written.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        period: int,
        record: Record,
        states: RandomStates,
        options: TrainingOptions,
    ) -> None:
        self.record = record
        self._checkpointer = checkpointer
        self._period = period
        self._states = states
        self._options = options
        self._has_failed = False

    def before_train(self) -> None:
        if self.trainer.start_iter and comm.is_main_process():
            self.record.resume(self.trainer.start_iter)

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if (iteration + 1) % self._period == 0:
            self.save(_name(iteration), iteration)
        if iteration + 1 >= self.trainer.max_iter:
            self.save(FINAL, iteration)

    def save(self, name: str, iteration: int, **notes: Any) -> None:
        """Save a checkpoint, in all processes at once.

        Args:
            name: of the file, without its ending.
            iteration: that is done.
            notes: fields of the record to set with it.

        Raises:
            OSError: it cannot be written, and ``on_save_error`` is "stop" or it is the final one.
            NonFiniteError: a weight is NaN or infinite.
        """
        self._states.gather()
        self.write(partial(self._save, name, iteration, notes), name == FINAL)

    def write(self, work: Callable[[], Any], is_needed: bool = False) -> None:
        """Do what writes, in all processes at once.

        Raises:
            OSError: it cannot, and ``on_save_error`` is "stop" or the work is needed.
            NonFiniteError: as :meth:`save`.
        """
        try:
            in_first_process(work)
        except (OSError, NonFiniteError) as error:
            last = f"; the last whole checkpoint is {self.record.last}" if self.record.last else ""
            is_needed = is_needed or isinstance(error, NonFiniteError)
            if is_needed or self._options.on_save_error == "stop":
                raise type(error)(f"{error}{last}") from error
            if not self._has_failed:
                logger.warning("%s%s; training goes on", error, last)
            self._has_failed = True

    def save_stopped(self, iteration: int, together: bool) -> None:
        """Save where training is stopped between two checkpoints, in all processes or in one."""
        name = FINAL if iteration + 1 >= self.trainer.max_iter else _name(iteration)
        if together and comm.all_gather(self.record.last)[0] != f"{name}.pth":
            self.save(name, iteration)
        elif not together and comm.is_main_process():
            self._save(name, iteration, {})

    def _save(self, name: str, iteration: int, notes: dict[str, Any]) -> None:
        record, file = self.record, f"{name}.pth"
        self._checkpointer.save(name, iteration=iteration)
        if name != BEST:
            kept = [one for one in record.checkpoints if one != file]
            notes = {"last": file, "checkpoints": [*kept, file], **notes}
        vars(record).update(notes)
        numbered = [one for one in record.checkpoints if one != f"{FINAL}.pth"]
        superfluous = numbered[: -self._options.keep_last] if self._options.keep_last else []
        record.checkpoints = [one for one in record.checkpoints if one not in superfluous]
        record.write()
        for old in superfluous:
            (record.file.parent / old).unlink(missing_ok=True)


def _name(iteration: int) -> str:
    return f"model_{iteration:07d}"  # as Detectron2


class KeepBest(hooks.BestCheckpointer):
    """Detectron2's ``BestCheckpointer``, over resumed runs, which can stop training.

    Args:
        eval_period: as ``EvalHook``'s, which comes before.
        saver: writes ``model_best.pth``.
        metric: as "bbox/AP".
        patience: evaluations without a gain after which training stops; 0 trains on.
    """

    def __init__(self, eval_period: int, saver: SaveCheckpoints, metric: str, patience: int):
        super().__init__(eval_period, saver, metric)
        self._saver, self._patience = saver, patience

    def _best_checking(self) -> None:
        record, iteration = self._saver.record, min(self.trainer.iter, self.trainer.max_iter - 1)
        best = None
        if comm.is_main_process() and (value := self._value()) is not None:
            earlier = [note for note in record.evaluations if note["iteration"] < iteration]
            record.evaluations = [*earlier, {"iteration": iteration, "value": value}]
            if record.best is None or value > record.best["value"]:
                logger.info("%s %.4f is the best so far", self._val_metric, value)
                best = {"file": f"{BEST}.pth", "iteration": iteration, "value": value}
        if best := comm.all_gather(best)[0]:
            self._saver.save(BEST, iteration, best=best)
        else:
            self._saver.write(record.write)
        number = comm.all_gather(record.without_gain)[0]
        if self._patience and number >= self._patience and iteration + 1 < self.trainer.max_iter:
            self._saver.save(FINAL, iteration)
            raise StopTraining(
                f"{number} evaluations without a gain in {self._val_metric}: training stopped "
                f"after iteration {iteration}"
            )

    def _value(self) -> float | None:
        """The metric's latest value, None if it is not there or no number."""
        metrics = self.trainer.storage.latest()
        if self._val_metric not in metrics:
            names = [name for name in metrics if "/" in name]
            hint = did_you_mean(self._val_metric, names) or f"; there are {', '.join(names)}"
            logger.warning("--keep-best: there is no metric %r%s", self._val_metric, hint)
            return None
        value = metrics[self._val_metric][0]
        return value if math.isfinite(value) else None
