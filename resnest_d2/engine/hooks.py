"""Hooks of training: ending it on a signal, keeping the best checkpoint, drawing curves."""

import importlib.util
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from types import FrameType
from typing import Any

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist
from detectron2.engine import TrainerBase, hooks
from torch import nn
from torch.utils.data import DataLoader

from ..config import FileError
from ..files import replacing, write_text
from .checkpoint import BEST, FINAL, TrainingCheckpointer
from .options import MAIN_METRICS

logger = logging.getLogger(__name__)

# A batch system sends these before it takes a machine away: Slurm SIGTERM, and SIGUSR1 where a job
# asks for it. SIGINT is Ctrl-C and SIGHUP a terminal that is closed.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
AGAIN = 1.0  # seconds within which launchers hand on a signal that the process has got already
# Whether this process is training; the processes of its loaders look at it.
TRAINING = RawValue("b", False)


class StopTraining(BaseException):
    """Training has come to an early end, and is saved; no error, and caught by the trainer.

    Attributes:
        exit_code: of the command: 0, or 128 and the signal's number.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


@contextmanager
def receiving_signals(receive: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals while the block runs, but for those that are ignored, as by nohup."""
    is_main = threading.current_thread() is threading.main_thread()  # Python asks for it
    heeded = [n for n in SIGNALS if is_main and signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignoring_signals(loader: Any) -> Any:
    """Let signals to a whole group of processes pass by those of a Detectron2 loader.

    The trainer saves, and ends its loaders; without it they end by themselves.
    """
    part = loader
    while part is not None:
        if isinstance(part, DataLoader):
            part.worker_init_fn = partial(_begin_worker, part.worker_init_fn, TRAINING)
        part = getattr(part, "dataset", None)
    return loader


def _begin_worker(begin: Callable[[int], None] | None, training: Any, worker: int) -> None:
    def receive(number: int, frame: FrameType | None) -> None:
        if not training.value:
            os._exit(0)

    for number in SIGNALS:
        signal.signal(number, receive)
    if begin is not None:
        begin(worker)


class Stop(hooks.HookBase):
    """Ends training after an iteration, in all processes at once, if one of them was told to.

    A signal does nothing but set a flag, which is looked at when an iteration ends and, in a
    process alone, before each batch of an evaluation. A second Ctrl-C ends the process. The hook
    stands behind those that move the schedule on and save checkpoints.

    Args:
        checkpointer: saves the weights if no other hook has done so at this iteration.
    """

    def __init__(self, checkpointer: TrainingCheckpointer) -> None:
        self._checkpointer = checkpointer
        self._code, self._reason, self._at = 0, "as the first process asked for", 0.0
        self._listening = ExitStack()

    def request(self, reason: str) -> None:
        """Have training end after this iteration or the next, without an error."""
        self._code, self._reason = max(self._code, 1), reason

    def before_train(self) -> None:
        """Listen to signals."""
        TRAINING.value = True
        look = self.trainer.model.register_forward_pre_hook(self._before_forward)
        self._listening.enter_context(look)
        self._listening.enter_context(receiving_signals(self._receive))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._code < 128:
            self._code, self._at = 128 + number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at > AGAIN:
            raise KeyboardInterrupt

    def _before_forward(self, model: nn.Module, inputs: Any) -> None:
        if self._code >= 128 and not model.training and comm.get_world_size() == 1:
            self._end(self._code)

    def after_step(self) -> None:
        """End training if a process has been told to.

        Raises:
            StopTraining: the checkpoint is saved.
        """
        if code := self._agree():
            self._end(code)

    def _end(self, code: int) -> None:
        iteration, is_signal = self.trainer.iter, code >= 128
        name = f"model_{iteration:07d}" if is_signal else FINAL
        if not (is_signal and Path(self._checkpointer.get_checkpoint_file()).stem == name):
            self._checkpointer.save(name, iteration=iteration)
        comm.synchronize()
        done = f"training stopped after iteration {iteration}"
        if is_signal:
            name = signal.Signals(code - 128).name
            raise StopTraining(f"{name}: {done}; the same command with --resume goes on", code)
        raise StopTraining(f"{done}: {self._reason}", 0)

    def _agree(self) -> int:
        """The greatest of all processes' codes."""
        if comm.get_world_size() == 1:
            return self._code
        device = next(self.trainer.model.parameters()).device
        code = torch.tensor(self._code, device=device)
        dist.all_reduce(code, dist.ReduceOp.MAX)
        return int(code)

    def after_train(self) -> None:
        """Let signals do what they did before; all that follows is evaluation."""
        self._listening.close()


def is_evaluated(trainer: TrainerBase, period: int) -> bool:
    """Whether Detectron2's ``EvalHook`` of this period has just run, before the end of training."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done < trainer.max_iter


class KeepBest(hooks.BestCheckpointer):
    """Detectron2's ``BestCheckpointer``, which knows the best of the run that is resumed.

    It stands behind the evaluation, in the first process. After ``patience`` evaluations without a
    gain ``stop`` ends training; 0 trains on.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: TrainingCheckpointer,
        metric: str,
        patience: int,
        stop: Stop,
    ) -> None:
        super().__init__(eval_period, checkpointer, metric, file_prefix=BEST)
        self._note = Path(checkpointer.save_dir) / f"{BEST}.json"
        self._metric, self._evaluations = metric, eval_period
        self._patience, self._stop = patience, stop

    def before_train(self) -> None:
        """Go on from the best of the run that is resumed."""
        if self.trainer.start_iter and self._note.is_file():
            noted = json.loads(self._note.read_text())
            if noted["metric"] == self._metric:
                self.best_metric, self.best_iter = noted["value"], noted["iteration"]

    def after_step(self) -> None:
        """Keep the weights if they are the best so far, and stop if nothing was gained for long."""
        super().after_step()
        if is_evaluated(self.trainer, self._evaluations):
            self._write_note()
            best = -1 if self.best_iter is None else self.best_iter
            number = (self.trainer.iter - best) // self._evaluations
            if 0 < self._patience <= number:
                self._stop.request(f"{number} evaluations without a gain in {self._metric}")

    def after_train(self) -> None:
        """Look at the evaluation at the end."""
        super().after_train()
        self._write_note()

    def _write_note(self) -> None:
        if self.best_iter is not None:
            note = {"metric": self._metric, "value": self.best_metric, "iteration": self.best_iter}
            write_text(self._note, json.dumps(note) + "\n")


class DrawCurves(hooks.HookBase):
    """Draws ``curves.png`` of a folder after each evaluation and at the end, over all resumed runs.

    It draws what ``metrics.json`` has, behind the hook that writes it. Without Matplotlib it draws
    nothing.
    """

    def __init__(self, period: int, folder: str | Path) -> None:
        self._period, self._folder = period, Path(folder)

    def after_step(self) -> None:
        """Draw behind an evaluation."""
        if is_evaluated(self.trainer, self._period):
            self.after_train()

    def after_train(self) -> None:
        """Draw."""
        file = self._folder / "metrics.json"
        if file.is_file() and importlib.util.find_spec("matplotlib"):
            try:
                plot_curves(read_metrics(file), self._folder / "curves.png")
            except FileError as error:  # a picture is no reason to end training
                logger.warning("%s", error)


def read_metrics(file: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read each metric's (iteration, value) pairs from a file of Detectron2's ``JSONWriter``.

    Where a resumed run began at an earlier iteration than the one before had reached, its values
    count.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for line in Path(file).read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut off where a machine died
            continue
        iteration = entry.pop("iteration")
        for name, value in entry.items():
            if isinstance(value, (int, float)):
                points = series.setdefault(name, [])
                while points and points[-1][0] >= iteration:
                    points.pop()
                points.append((iteration, value))
    return series


def plot_curves(series: Mapping[str, Sequence[tuple[int, float]]], picture: Path) -> None:
    """Draw losses and metrics, as of :func:`read_metrics`, to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    losses, metrics = figure.subplots(1, 2, sharex=True)
    for name in sorted(series):
        if name.startswith(("loss_", "total_loss")):
            width = 2.0 if name == "total_loss" else 1.0
            losses.plot(*zip(*series[name], strict=True), label=name, linewidth=width)
        elif name.rpartition("/")[2] in (*MAIN_METRICS, "AP50"):
            metrics.plot(*zip(*series[name], strict=True), label=name, marker="o")
    losses.set(title="training loss", xlabel="iteration", ylabel="loss", yscale="log")
    metrics.set(title="validation", xlabel="iteration", ylabel="%", ylim=(0, 100))
    for axes in (losses, metrics):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
