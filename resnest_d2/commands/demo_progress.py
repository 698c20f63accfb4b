"""Training seen from outside: a progress bar, and curves from the metrics file."""

import json
from pathlib import Path

from detectron2.engine import HookBase
from tqdm import tqdm


class ProgressBar(HookBase):
    """Shows iterations, time left and the loss on standard error."""

    def before_train(self) -> None:
        """Open the bar."""
        trainer = self.trainer
        self._bar = tqdm(
            total=trainer.max_iter, initial=trainer.start_iter, unit="it", desc="train"
        )

    def after_step(self) -> None:
        """Move it on."""
        loss = self.trainer.storage.histories().get("total_loss")
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss.median(20):.3f}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Close it."""
        self._bar.close()


def read_metrics(file: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read what Detectron2's ``JSONWriter`` wrote.

    Returns:
        for each metric its (iteration, value) pairs, in order; of an iteration that was written
        twice, after a resumed run, the last.
    """
    series: dict[str, dict[int, float]] = {}
    for line in Path(file).read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name != "iteration" and isinstance(value, (int, float)):
                series.setdefault(name, {})[entry["iteration"]] = value
    return {name: sorted(points.items()) for name, points in series.items()}


def plot_curves(metrics_file: str | Path, picture: str | Path) -> None:
    """Draw the losses and the AP of all tasks over iterations to a PNG file."""
    from matplotlib.figure import Figure

    series = read_metrics(metrics_file)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in sorted(n for n in series if n.startswith(("loss_", "total_loss"))):
        width = 2.0 if name == "total_loss" else 1.0
        left.plot(*zip(*series[name], strict=True), label=name, linewidth=width)
    left.set(title="training loss", xlabel="iteration", ylabel="loss", yscale="log")
    for name in sorted(n for n in series if n.endswith(("/AP", "/AP50"))):
        right.plot(*zip(*series[name], strict=True), marker="o", label=name)
    right.set(title="validation", xlabel="iteration", ylabel="AP (%)", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(picture, dpi=110)
