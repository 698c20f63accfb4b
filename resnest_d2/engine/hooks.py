"""Hooks of training: ending it on a signal, and keeping the best checkpoint."""

import json
import logging
import os
import signal
import threading
import time
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from types import FrameType
from typing import Any

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist
from detectron2.engine import hooks
from torch import nn

from ..files import write_text
from .checkpoint import BEST, FINAL, TrainingCheckpointer

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


def ignore_signals(training: Any = TRAINING) -> None:
    """Let signals to a whole group of processes pass by a loader's process while training goes on.

    The trainer saves and ends its loaders; without it they end by themselves.

    Args:
        training: the trainer's own value; a loader's process that is no fork has another one.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        if not training.value:
            os._exit(0)

    for number in SIGNALS:
        signal.signal(number, receive)


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
        self._code, self._reason, self._at = 0, "", 0.0
        self._before: dict[int, Any] = {}

    def request(self, reason: str) -> None:
        """Have training end after this iteration or the next, without an error."""
        self._code, self._reason = max(self._code, 1), reason

    def before_train(self) -> None:
        """Listen to signals, but for those that are ignored, as by nohup."""
        TRAINING.value = True
        self._look = self.trainer.model.register_forward_pre_hook(self._before_forward)
        if threading.current_thread() is threading.main_thread():  # else Python allows no handlers
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_again = self._code >= 128 and time.monotonic() - self._at > AGAIN
        if is_again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._code < 128:
            self._code, self._at = 128 + number, time.monotonic()

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
        if iteration + 1 >= self.trainer.max_iter:
            # The hook before this one has saved. Others evaluate what has come to its last
            # iteration, and that shall not begin.
            self.trainer.max_iter += 1
        elif not (is_signal and Path(self._checkpointer.get_checkpoint_file()).stem == name):
            self._checkpointer.save(name, iteration=iteration)
        comm.synchronize()
        done = f"training stopped after iteration {iteration}"
        if is_signal:
            name = signal.Signals(code - 128).name
            raise StopTraining(f"{name}: {done}; the same command with --resume goes on", code)
        raise StopTraining(f"{done}: {self._reason or 'as another process asked for'}", 0)

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
        self._look.remove()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class KeepBest(hooks.BestCheckpointer):
    """Detectron2's ``BestCheckpointer``, which remembers the best over a resumed run.

    It stands behind the evaluation, in the first process.

    Args:
        eval_period: as ``EvalHook``'s.
        checkpointer: writes ``model_best.pth``.
        metric: as "bbox/AP".
        patience: evaluations without a gain after which training stops; 0 trains on.
        stop: ends training.
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
        self._metric, self._stop = metric, stop
        self._evaluations, self._patience = eval_period, patience
        self._noted: int | None = None

    def before_train(self) -> None:
        """Go on from the best of the run that is resumed."""
        if self.trainer.start_iter and self._note.is_file():
            noted = json.loads(self._note.read_text())
            if noted["metric"] == self._metric:
                self.best_metric, self.best_iter = noted["value"], noted["iteration"]
                self._noted = self.best_iter

    def after_step(self) -> None:
        """Keep the weights if they are the best so far, and stop if nothing was gained for long."""
        super().after_step()
        self._write_note()
        done = self.trainer.iter + 1
        if self._patience and done % self._evaluations == 0:
            best = -1 if self.best_iter is None else self.best_iter
            number = (self.trainer.iter - best) // self._evaluations
            if number >= self._patience:
                self._stop.request(f"{number} evaluations without a gain in {self._metric}")

    def after_train(self) -> None:
        """Look at the evaluation at the end."""
        super().after_train()
        self._write_note()

    def _write_note(self) -> None:
        if self.best_iter != self._noted:
            note = {"metric": self._metric, "value": self.best_metric, "iteration": self.best_iter}
            write_text(self._note, json.dumps(note) + "\n")
            self._noted = self.best_iter
