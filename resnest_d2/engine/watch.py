"""A progress bar, curves and predictions show a training while it runs."""

import json
import logging
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import hooks
from detectron2.evaluation import inference_context
from tqdm import tqdm

from ..config.settings import MAPPER, Settings
from ..data.images import read_image
from ..data.mapper import Mapper
from ..files import replacing

logger = logging.getLogger(__name__)

Series = Mapping[str, Sequence[tuple[int, float]]]

LOGGERS = ("detectron2", "fvcore", "resnest_d2")
METRICS = ("/AP", "/AP50", "/PQ", "/mIoU")  # that curves show
LEAST_SCORE = 0.5  # of predictions that are drawn
LONGER_SIDE = 640  # pixels of a picture in TensorBoard
COLORS = 652  # a seed whose first colours are bright and unlike each other
DRAW = "pip install 'resnest_d2[draw]'"


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


class _Drawing(hooks.HookBase, ABC):
    """Draws after each evaluation; a drawing that fails costs a warning, once.

    Args:
        period: of evaluations, in iterations.
    """

    name: str

    def __init__(self, period: int) -> None:
        self._period = period
        self._has_failed = False

    @abstractmethod
    def draw(self) -> None:
        """Draw now."""

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self._try_to_draw()

    def after_train(self) -> None:
        self._try_to_draw()

    def _try_to_draw(self) -> None:
        try:
            self.draw()
        except Exception as error:
            if not self._has_failed:
                needs = f" ({DRAW})" if isinstance(error, ModuleNotFoundError) else ""
                level = logging.INFO if needs else logging.WARNING
                kind = type(error).__name__
                logger.log(level, "%s not drawn: %s: %s%s", self.name, kind, error, needs)
            self._has_failed = True


class DrawCurves(_Drawing):
    """Draws ``curves.png`` of an output folder, over all runs that it was resumed by."""

    def __init__(self, period: int, folder: str | Path) -> None:
        super().__init__(period)
        self._folder = Path(folder)
        self.name = str(self._folder / "curves.png")

    def draw(self) -> None:
        """Draw what ``metrics.json`` has and what is not written yet."""
        file = self._folder / "metrics.json"
        series = read_metrics(file) if file.is_file() else {}
        latest = self.trainer.storage.latest_with_smoothing_hint(20)
        for name, (value, iteration) in latest.items():
            points = series.setdefault(name, [])
            if not points or points[-1][0] < iteration:
                points.append((iteration, value))
        if series:
            plot_curves(series, Path(self.name))


class DrawPredictions(_Drawing):
    """Shows predictions beside the truth in TensorBoard.

    Args:
        settings: of the config.
        number: of images, the first ones of the first test data set.
    """

    name = "predictions for TensorBoard"

    def __init__(self, settings: Settings, number: int) -> None:
        super().__init__(settings.evaluation_period)
        self._settings, self._number = settings, number

    def after_train(self) -> None:
        """Draw unless training was stopped."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._try_to_draw()

    @cached_property
    def _images(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Images in Detectron2's dataset format, each with what the model takes."""
        if self._settings.is_lazy:
            mapper = instantiate(self._settings.get(MAPPER))
        else:
            mapper = Mapper(self._settings.cfg, is_train=False)
        entries = DatasetCatalog.get(self._settings.datasets("test")[1][0])[: self._number]
        return [(entry, mapper(entry)) for entry in entries]

    def draw(self) -> None:
        """Draw now; TensorBoard has it when Detectron2's writer writes next."""
        dataset = self._settings.datasets("test")[1][0]
        model = getattr(self.trainer.model, "module", self.trainer.model)
        random_state = np.random.get_state()  # Detectron2 draws sizes and colours from it
        try:
            for number, (entry, image) in enumerate(self._images):
                with inference_context(model), torch.no_grad():
                    output = model([image])[0]
                picture = draw_pair(entry, output, dataset)
                name = f"{dataset}/{number}: truth, prediction"
                self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))
        finally:
            np.random.set_state(random_state)


def draw_pair(entry: dict[str, Any], output: dict[str, Any], dataset: str) -> np.ndarray:
    """Draw an image with its annotations and, to the right, with what a model predicts.

    Both get the same colours every time, by a seed of NumPy's global generator.

    Args:
        entry: the image in Detectron2's dataset format.
        output: of a Detectron2 model.
        dataset: whose names and colours are taken.

    Returns:
        shape (H, W, 3), uint8, RGB.
    """
    from detectron2.utils.visualizer import Visualizer

    from ..inference.result import Result

    image, metadata = read_image(entry["file_name"], "RGB"), MetadataCatalog.get(dataset)
    shorter, longer = sorted(image.shape[:2])
    scale = max(LONGER_SIDE / longer, 1.01 / shorter)  # not empty
    np.random.seed(COLORS)
    truth = Visualizer(image, metadata, scale).draw_dataset_dict(entry).get_image()
    result = Result(output, image, metadata)
    if "instances" in result:
        result = result.above(LEAST_SCORE)
    np.random.seed(COLORS)
    return np.hstack([truth, result.plot(scale)])


def read_metrics(file: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read what Detectron2's ``JSONWriter`` wrote.

    Returns:
        for each metric its (iteration, value) pairs, in order; of an iteration that was written
        twice, after a resumed run, the last.
    """
    series: dict[str, dict[int, float]] = {}
    for line in Path(file).read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut off where a machine died
            continue
        for name, value in entry.items():
            if name != "iteration" and isinstance(value, (int, float)):
                series.setdefault(name, {})[entry["iteration"]] = value
    return {name: sorted(points.items()) for name, points in series.items()}


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
