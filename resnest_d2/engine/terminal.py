"""What a training shows on the terminal: few lines and a bar; ``log.txt`` has all."""

import logging
import shutil
import sys
import time

import detectron2.utils.comm as comm
from detectron2.engine import hooks
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from ..config import InputError
from .hooks import KeepBest, is_evaluated
from .options import MAIN_METRICS

logger = logging.getLogger(__name__)

LOGGERS = ("detectron2", "fvcore", "resnest_d2")
PROGRESS = "detectron2.utils.events"
SECONDS = 30  # between two lines of progress
RESULTS = ("resnest_d2.evaluation", "detectron2.evaluation")
CSV = "detectron2.evaluation.testing"
# The names of tasks in a line of metrics.
TASKS = {"bbox": "box", "segm": "mask", "bbox_TTA": "box TTA", "segm_TTA": "mask TTA"}


def set_up_log(folder: str, evaluates_only: bool) -> None:
    """Log everything to ``log.txt`` in a folder, and to the terminal what :class:`Short` shows."""
    rank = comm.get_rank()
    # These are the calls of Detectron2's default_setup, which then finds its loggers set up.
    setup_logger(folder, distributed_rank=rank, name="fvcore")
    setup_logger(folder, distributed_rank=rank)
    is_shown = bool(logging.getLogger("resnest_d2").handlers)
    setup_logger(folder, rank, name="resnest_d2", configure_stdout=not is_shown)
    for handler in terminal_handlers():
        for old in [one for one in handler.filters if isinstance(one, Short)]:
            handler.removeFilter(old)
        handler.addFilter(Short(evaluates_only))


def terminal_handlers() -> list[logging.Handler]:
    """The handlers that write to standard output or error."""
    streams = (sys.stdout, sys.stderr)
    handlers = {handler for name in LOGGERS for handler in logging.getLogger(name).handlers}
    return [handler for handler in handlers if getattr(handler, "stream", None) in streams]


class Short(logging.Filter):
    """Lets warnings and this package's sentences pass, and a line of progress now and then.

    Args:
        evaluates_only: whether tables of results pass, too; a training has a line for each.
    """

    def __init__(self, evaluates_only: bool) -> None:
        super().__init__()
        self._evaluates_only, self._last = evaluates_only, time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the terminal shows a record."""
        if record.exc_info and isinstance(record.exc_info[1], InputError):
            return False  # the command ends in its message
        if record.levelno >= logging.WARNING:
            return True
        if record.name == PROGRESS:
            return self._is_due()
        if record.levelno < logging.INFO or record.name == CSV:
            return False
        if record.name.startswith(RESULTS):
            return self._evaluates_only
        return record.name.startswith("resnest_d2")

    def _is_due(self) -> bool:
        """Whether a line of progress may pass: seldom, and never beside the bar of a terminal."""
        if sys.stderr.isatty() or time.monotonic() - self._last < SECONDS:
            return False
        self._last = time.monotonic()
        return True


class ProgressBar(hooks.HookBase):
    """Shows iterations, time left and the loss on standard error, below the lines of the log.

    Time left counts evaluations in. If ``show`` is None, a terminal gets the bar.
    """

    def __init__(self, show: bool | None = None) -> None:
        self._show = show

    def before_train(self) -> None:
        """Open the bar, and have messages make room for it."""
        self._bar = tqdm(
            desc="train",
            unit="it",
            initial=self.trainer.start_iter,
            total=self.trainer.max_iter,
            ncols=shutil.get_terminal_size().columns,  # never 0, as terminals in containers say
            smoothing=0,
            miniters=1,
            disable=None if self._show is None else not self._show,
        )
        # tqdm's own redirection of a log forgets the levels and filters of its handlers.
        self._handlers = [] if self._bar.disable else terminal_handlers()
        for handler in self._handlers:
            handler.addFilter(self._make_room)

    def _make_room(self, record: logging.LogRecord) -> bool:
        self._bar.clear()
        return True

    def after_step(self) -> None:
        """Move the bar on."""
        if loss := self.trainer.storage.histories().get("total_loss"):
            self._bar.set_postfix(loss=f"{loss.median(20):.3f}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Close the bar."""
        for handler in self._handlers:
            handler.removeFilter(self._make_room)
        self._bar.close()


def metric_label(name: str) -> str:
    """What a metric is called in a line, "mask" for ``segm/AP``; "" if it has no place there."""
    *sets, task, metric = ("", *name.split("/"))[-3:]
    if metric not in MAIN_METRICS or not task:
        return ""
    return " ".join(filter(None, (*sets, TASKS.get(task, task) if metric == "AP" else metric)))


class Announce(hooks.HookBase):
    """Says each evaluation's metrics in one line: ``iter 300  box 21.8  mask 20.5  best``.

    It stands behind the evaluation and ``best``, in the first process.

    Args:
        period: of evaluations, in iterations; 0 is only at the end.
        best: keeps the best checkpoint; None if nothing does.
    """

    def __init__(self, period: int, best: KeepBest | None) -> None:
        self._period, self._best = period, best

    def after_step(self) -> None:
        """Say what has just been measured."""
        if is_evaluated(self.trainer, self._period):
            self._announce(self.trainer.iter + 1)

    def after_train(self) -> None:
        """Say what was measured at the end, if training reached it."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._announce(self.trainer.max_iter)

    def _announce(self, done: int) -> None:
        storage, words = self.trainer.storage, []
        for name, (value, iteration) in storage.latest().items():
            if iteration == storage.iter and (label := metric_label(name)):
                words.append(f"{label} {value:.1f}")
        if words and self._best and self._best.best_iter == storage.iter:
            words.append("best")
        if words:
            logger.info("iter %d  %s", done, "  ".join(words))
