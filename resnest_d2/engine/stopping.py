"""Ends of training before its last iteration, which save what has been learned."""

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
import torch
from detectron2.engine import TrainerBase, hooks
from torch import nn
from torch.utils.data import DataLoader

from ..data.loader import layers
from ..processes import kept_handlers

logger = logging.getLogger(__name__)

# A batch system sends these before it takes a machine away: Slurm SIGTERM, and SIGUSR1 where a job
# asks for it. SIGINT is Ctrl-C and SIGHUP a terminal that is closed.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Seconds that an iteration or an evaluation may go on before it is cut short. Batch systems and
# torchrun kill after 30.
PATIENCE = 10
# Whether this process is training; the processes of its loaders look at it.
TRAINING = RawValue("b", False)
# Launchers hand on a signal that the process has got already; after these seconds it is a user.
AGAIN = 2


class StopTraining(BaseException):
    """Training has come to an early end, and is saved; no error, and caught by the trainers.

    Attributes:
        exit_code: of the command: 0, or 128 and the signal's number.
    """

    def __init__(self, reason: str, exit_code: int = 0) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


@contextmanager
def early_end(loop: TrainerBase) -> Iterator[None]:
    """Log why training has stopped; afterwards signals do what they did before.

    The processes of the loader end then, or with this one if an error holds the loader.

    Args:
        loop: Detectron2's, which has the loader.

    Raises:
        SystemExit: a signal was the reason.
    """
    with kept_handlers(*SIGNALS, signal.SIGALRM):
        try:
            yield
        except StopTraining as stop:
            logger.info("%s", stop)
            if stop.exit_code:
                raise SystemExit(stop.exit_code) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.alarm(0)
            TRAINING.value, loop._data_loader_iter_obj = False, None


def leave_signals_to_the_trainer(loader: Any) -> Any:
    """Have the processes of a Detectron2 loader outlast the trainer's last iteration, no more.

    Signals are sent to whole groups of processes.

    Returns:
        the loader.
    """
    for layer in layers(loader):
        if isinstance(layer, DataLoader):
            layer.worker_init_fn = partial(_begin_worker, layer.worker_init_fn, TRAINING)
    return loader


def _begin_worker(begin: Callable[[int], Any] | None, training: Any, number: int) -> None:
    def receive(*_: Any) -> None:
        signal.alarm(PATIENCE + 5) if training.value else os._exit(0)

    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    for received in SIGNALS:
        signal.signal(received, receive)
    if begin is not None:
        begin(number)


class StopOnSignal(hooks.HookBase):
    """Saves a checkpoint and stops in all processes when one of them gets a signal.

    It stands behind the hooks of an iteration that move the schedule on. A process whose torchrun
    has died stops likewise.

    Args:
        save: writes the checkpoint; it takes the number of the iteration that is done, and whether
            all processes call it.
        undo: called before it where an iteration or what follows is cut short.
    """

    def __init__(self, save: Callable[[int, bool], Any], undo: Callable[[], Any]) -> None:
        self._save, self._undo = save, undo
        self._received: int = 0
        self._at = 0.0
        self._is_updating = False
        self._handled: list[int] = []
        self._done = -1
        self._hook: Any = None

    def before_train(self) -> None:
        TRAINING.value = True
        self._done = self.trainer.iter - 1
        self._parent = os.getppid()
        # Weights, momentum and rate must stay of one iteration.
        optimizer = self.trainer.optimizer
        self._hook = optimizer.register_step_pre_hook(
            lambda *_: setattr(self, "_is_updating", True)
        )
        if threading.current_thread() is not threading.main_thread():
            return  # where Python allows no handlers
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does
                signal.signal(number, self._receive)
                self._handled.append(number)
        signal.signal(signal.SIGALRM, self._cut_short)

    def after_train(self) -> None:
        """Have signals end what comes behind the last iteration, which is evaluation."""
        if self._hook is not None:
            self._hook.remove()
        is_done = self._done + 1 >= self.trainer.max_iter
        for number in self._handled:
            signal.signal(number, self._leave if is_done else signal.SIG_IGN)
        if self._handled:
            signal.alarm(0)
            if is_done and self._received:
                self._leave(self._received)

    def _leave(self, number: int, frame: FrameType | None = None) -> None:
        for handled in self._handled:  # the same signal may come twice
            signal.signal(handled, signal.SIG_IGN)
        said = f"{signal.Signals(number).name}: training is done and saved, evaluation is cut short"
        raise StopTraining(f"{said}; --eval-only evaluates", 128 + number)

    def after_step(self) -> None:
        self._is_updating, self._done = False, self.trainer.iter
        if os.getppid() != self._parent and torch.distributed.is_torchelastic_launched():
            self._received = self._received or signal.SIGHUP
        received = max(comm.all_gather(self._received))
        if received and self.trainer.iter + 1 < self.trainer.max_iter:
            if self._handled:
                signal.alarm(0)
            self._stop(received, together=True)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; where it is Python's turn only after a while, cut that short."""
        now = time.monotonic()
        if not self._received:
            self._received, self._at = number, now
            signal.alarm(PATIENCE)
        elif number == signal.SIGINT and now - self._at > AGAIN:
            signal.default_int_handler(number, frame)  # a user who does not want to wait

    def _cut_short(self, number: int, frame: FrameType | None) -> None:
        if self._is_updating:
            signal.alarm(1)
        else:
            self._undo()
            self._stop(self._received, together=False)

    def _stop(self, received: int, together: bool) -> None:
        self.trainer.iter = self._done
        if self._done >= self.trainer.start_iter:
            self._save(self._done, together)
        name = signal.Signals(received).name
        done = f"{name}: training stopped after iteration {self._done}"
        raise StopTraining(f"{done}; the same command with --resume goes on", 128 + received)


class RandomStates:
    """The states of all random number generators, of each process, as checkpoints keep them.

    Args:
        model: what the numbers are drawn for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.gathered: list[dict[str, Any]] = []
        self._model = model

    def gather(self) -> None:
        """Note the states now, in all processes at once."""
        self.gathered = comm.gather(_states())

    def state_dict(self) -> list[dict[str, Any]]:
        return self.gathered

    def load_state_dict(self, gathered: list[dict[str, Any]]) -> None:
        """Set the generators before the next batch, if there are as many processes as there were.

        Not now, because a loader that begins draws numbers too.
        """
        if len(gathered) == comm.get_world_size():
            states = gathered[comm.get_rank()]
            hook = self._model.register_forward_pre_hook(lambda *_: _set(states) or hook.remove())


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Have the generators go on afterwards as if nothing had been drawn."""
    states = _states()
    try:
        yield
    finally:
        _set(states)


def _states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set(states: dict[str, Any]) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
