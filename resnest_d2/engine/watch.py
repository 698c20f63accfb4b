"""A progress bar and curves show a training while it runs."""

import importlib.util
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.engine import hooks
from tqdm import tqdm

from ..config import FileError
from ..files import replacing

logger = logging.getLogger(__name__)

Series = Mapping[str, Sequence[tuple[int, float]]]

LOGGERS = ("detectron2", "fvcore", "resnest_d2")
METRICS = ("/AP", "/AP50", "/PQ", "/mIoU")  # that curves show


class ProgressBar(hooks.HookBase):
    """Shows iterations, time left and the loss on standard error.

    Time left counts evaluations in. Messages on the terminal stand above the bar; Detectron2's
    lines of losses go to ``log.txt`` alone.

    Args:
        show: whether to show it; None for where standard error is a terminal.
    """

    def __init__(self, show: bool | None = None) -> None:
        self._show = sys.stderr.isatty() if show is None else show
        self._bar: tqdm | None = None
        self._handlers: list[logging.Handler] = []

    def before_train(self) -> None:
        """Open the bar, and have messages make room for it."""
        if not self._show:
            return
        first, last = self.trainer.start_iter, self.trainer.max_iter
        columns = shutil.get_terminal_size().columns  # never 0, as terminals in containers say
        options = {"ncols": columns, "smoothing": 0, "miniters": 1}
        self._bar = tqdm(total=last, initial=first, unit="it", desc="train", **options)
        for handler in {h for name in LOGGERS for h in logging.getLogger(name).handlers}:
            stream = getattr(handler, "stream", None)
            # A file, also one that standard output goes to, gets all lines.
            if stream in (sys.stdout, sys.stderr) and stream.isatty() == sys.stderr.isatty():
                handler.addFilter(self._make_room)
                self._handlers.append(handler)

    def _make_room(self, record: logging.LogRecord) -> bool:
        if record.name.endswith("utils.events"):
            return False
        self._bar.clear()
        return True

    def after_step(self) -> None:
        """Move the bar on."""
        if self._bar is None:
            return
        loss = self.trainer.storage.histories().get("total_loss")
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss.median(20):.3f}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Close the bar."""
        for handler in self._handlers:
            handler.removeFilter(self._make_room)
        if self._bar is not None:
            self._bar.close()


class DrawCurves(hooks.HookBase):
    """Draws ``curves.png`` of an output folder after each evaluation, over all resumed runs.

    It needs Matplotlib, and draws nothing without.

    Args:
        period: of evaluations, in iterations.
        folder: the output folder.
    """

    def __init__(self, period: int, folder: str | Path) -> None:
        self._period, self._folder = period, Path(folder)

    def after_step(self) -> None:
        """Draw behind an evaluation."""
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self._draw()

    def after_train(self) -> None:
        """Draw at the end."""
        self._draw()

    def _draw(self) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            logger.info("curves.png is not drawn: pip install 'resnest_d2[draw]'")
            return
        file = self._folder / "metrics.json"
        series = read_metrics(file) if file.is_file() else {}
        latest = self.trainer.storage.latest_with_smoothing_hint(20)
        for name, (value, iteration) in latest.items():  # what is not written yet
            points = series.setdefault(name, [])
            if not points or points[-1][0] < iteration:
                points.append((iteration, value))
        try:
            if series:
                plot_curves(series, self._folder / "curves.png")
        except FileError as error:  # a picture is no reason to end training
            logger.warning("%s", error)


def read_metrics(file: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read what Detectron2's ``JSONWriter`` wrote, over all runs that a training was resumed by.

    Returns:
        for each metric its (iteration, value) pairs, in order. Where a run began at an earlier
        iteration than the one before had reached, its values count.
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


def plot_curves(series: Series, picture: Path) -> None:
    """Draw losses, learning rate and the metrics of all tasks over iterations to a PNG file.

    Args:
        series: (iteration, value) pairs by the names of :func:`read_metrics`.
        picture: the file, which is there whole or not at all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    panels = figure.subplot_mosaic([["loss", "metric"], ["rate", "metric"]], height_ratios=[3, 1])
    for name in sorted(series):
        if name.startswith(("loss_", "total_loss")):
            width = 2.0 if name == "total_loss" else 1.0
            panels["loss"].plot(*zip(*series[name], strict=True), label=name, linewidth=width)
        elif name.endswith(METRICS):
            panels["metric"].plot(*zip(*series[name], strict=True), marker="o", label=name)
        elif name == "lr":
            panels["rate"].plot(*zip(*series[name], strict=True), label=name, color="tab:gray")
    panels["loss"].set(title="training loss", ylabel="loss", yscale="log")
    panels["rate"].set(xlabel="iteration", ylabel="learning rate")
    panels["metric"].set(title="validation", xlabel="iteration", ylabel="%", ylim=(0, 100))
    for axes in panels.values():
        axes.sharex(panels["loss"])
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
