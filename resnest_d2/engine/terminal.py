"""What a training shows on the terminal: few lines, and one an evaluation; ``log.txt`` has all."""

import logging
import sys
import time

from detectron2.engine import hooks

from ..config import InputError
from .hooks import LOGGERS, KeepBest

logger = logging.getLogger(__name__)

# Pages that Detectron2 logs before training; on the terminal they hide what was said before.
PAGES = (
    *("Rank of current process", "Environment info:", "Command line arguments:"),
    *("Contents of args.config_file", "Running with full config:", "Full config saved", "Model:"),
)
PROGRESS = ("detectron2.utils.events", "detectron2.evaluation.evaluator")
SECONDS = 30  # between two lines of progress
RESULTS = ("resnest_d2.evaluation", "detectron2.evaluation")
CSV = "detectron2.evaluation.testing"
# The metrics of a line, and the names of tasks there.
METRICS = ("AP", "PQ", "mIoU")
TASKS = {"bbox": "box", "segm": "mask", "bbox_TTA": "box TTA", "segm_TTA": "mask TTA"}


def shorten_pages() -> None:
    """Keep long pages, and tracebacks of errors that end in one line, out of the terminal.

    Detectron2 logs them while it sets up its handlers, which have no filter then.
    """
    for name in ("detectron2", "detectron2.engine.train_loop", "detectron2.engine.defaults"):
        logging.getLogger(name).addFilter(_is_no_page)


def _is_no_page(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if not str(record.msg).startswith(PAGES) and not isinstance(error, InputError):
        return True
    for handler in logging.getLogger("detectron2").handlers:
        if not _is_terminal(handler):
            handler.handle(record)
    return False


def _is_terminal(handler: logging.Handler) -> bool:
    return getattr(handler, "stream", None) in (sys.stdout, sys.stderr)


def shorten_log(evaluates_only: bool) -> None:
    """Let the terminal's handlers pass on what :class:`Short` lets pass."""
    for handler in {handler for name in LOGGERS for handler in logging.getLogger(name).handlers}:
        if _is_terminal(handler):
            for old in [one for one in handler.filters if isinstance(one, Short)]:
                handler.removeFilter(old)
            handler.addFilter(Short(evaluates_only))


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
        if record.levelno >= logging.WARNING:
            return True
        if record.name in PROGRESS:
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


def metric_label(name: str) -> str:
    """What a metric is called in a line, "mask" for ``segm/AP``; "" if it has no place there."""
    *sets, task, metric = ("", *name.split("/"))[-3:]
    if metric not in METRICS or not task:
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
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self._announce(done)

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
