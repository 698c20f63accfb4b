"""A page about two models side by side, on one data set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config import InputError
from ..weights.stored_config import differences
from .page import chart, number, paragraph, table, write_page
from .report import KINDS, PAPER, TIDE, draw_images
from .results import TASKS, Analysis

BOOTSTRAPS = (100, 1000)  # at least and at most
BOOTSTRAPPED = 20_000_000  # predictions in all of them, which takes about a minute
CONFIDENCE = 0.95
COMPARED = ("id", "image_id", "category_id", "bbox", "iscrowd", "width", "height")


@dataclass
class Run:
    """A model's predictions, and what is known of its training."""

    name: str
    analyses: list[Analysis]
    config: Mapping[str, Any] = field(default_factory=dict)
    series: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Metrics of training, each as pairs of iteration and value."""


def write_comparison(
    first: Run, second: Run, folder: Path, max_images: int = 12
) -> tuple[Path, dict[str, list[list[Any]]]]:
    """Write ``comparison.html``.

    Args:
        first: what is compared with.
        second: what is compared; differences are its values less the first's.
        folder: made if need be.
        max_images: images that are drawn, those whose F1 differs most.

    Returns:
        the file; by task, rows of metric, first, second, difference and its confidence interval.

    Raises:
        InputError: the runs are on different data, or have no task in common.
        ImportError, InputError, FileNotFoundError: as for :func:`write_report`.
    """
    _require_same_data(first, second)
    tasks = {one.task: one for one in first.analyses}
    pairs = [(tasks[other.task], other) for other in second.analyses if other.task in tasks]
    if not pairs:
        raise InputError(f"{first.name} and {second.name} have no task in common, boxes or masks")
    both, sections, metrics = [first.name, second.name], [], {}
    for one, other in pairs:
        metrics[one.task], parts = _compare(one, other, both)
        sections += parts
    if first.config and second.config:
        settings = table(["key", *both], _settings(first.config, second.config))
        sections.append(("Settings that differ", settings))
    if first.series and second.series:
        curves = chart("loss and AP over iterations", _draw_curves, first, second)
        sections.append(("Training", curves))
    sections.append(_images(*pairs[-1], both, max_images))
    data = pairs[0][0].data
    lead = (
        f"Both on the {len(data.images)} images of {data.file.name}. All AP are in percent; "
        f"differences are {second.name} less {first.name}."
    )
    file = folder / "comparison.html"
    return write_page(file, f"{first.name} and {second.name}", lead, sections), metrics


def _require_same_data(first: Run, second: Run) -> None:
    one, other = first.analyses[0].data, second.analyses[0].data
    for part in ("categories", "images", "annotations"):
        values = [getattr(data, part) for data in (one, other)]
        if part != "categories":
            values = [[[entry.get(k) for k in COMPARED] for entry in v] for v in values]
        if values[0] != values[1]:
            raise InputError(
                f"{first.name} and {second.name} are on different data: the {part} of {one.file} "
                f"and {other.file} are not the same"
            )


def _compare(
    one: Analysis, other: Analysis, both: list[str]
) -> tuple[list[list[Any]], Iterator[tuple[str, str]]]:
    """Rows of metrics, and sections of the page."""
    import hotcoco
    from hotcoco import plot

    task, evaluations = TASKS[one.task], (one.evaluation, other.evaluation)
    number_of = BOOTSTRAPPED // max(1, len(one.found) + len(other.found))
    number_of = int(np.clip(number_of, *BOOTSTRAPS))
    compared = hotcoco.compare(*evaluations, n_bootstrap=number_of, confidence=CONFIDENCE)
    compared |= dict(zip(("name_a", "name_b"), both, strict=True))
    rows = []
    for name, value in one.metrics.items():
        low, high = (100 * compared["ci"][name][end] for end in ("lower", "upper"))
        interval = f"{low:+.1f} to {high:+.1f}{'' if low <= 0 <= high else ' *'}"
        difference = _difference(value, other.metrics[name])
        rows.append([name, *difference, "n/a" if value is None else interval])

    ours, theirs = one.by_class, other.by_class
    classes = sorted(
        ([one.data.categories[k], ours[k][0], ours[k][1], theirs[k][1]] for k in ours),
        key=lambda row: 0 if row[-1] is None else -1 - abs(row[-1] - row[-2]),
    )
    classes = [[*row[:2], *_difference(*row[2:])] for row in classes]
    errors = [evaluation.tide_errors() for evaluation in evaluations]
    kinds = [
        [*text, *(n for e in errors for n in (e["counts"][k], 100 * float(e["delta_ap"][k])))]
        for k, text in KINDS.items()
    ]
    columns = [f"{name}: {what}" for name in both for what in ("number", "AP50")]
    text = (
        f"The interval holds {CONFIDENCE:.0%} of {number_of} bootstraps over images, and a star "
        "marks those without 0. It does not tell how much training with another seed would change."
    )
    sections = [
        (
            f"COCO's metrics: {task}",
            paragraph(text)
            + table(["", *both, "difference", "interval"], rows)
            + chart("COCO's metrics of both", plot.comparison_bar, compared, **PAPER),
        ),
        (
            f"Classes: {task}",
            paragraph("AP, the largest differences first.")
            + table(["class", "objects", *both, "difference"], classes),
        ),
        (
            f"Kinds of errors: {task}",
            paragraph(TIDE) + table(["kind", "meaning", *columns], kinds),
        ),
    ]
    return rows, sections


def _difference(first: float | None, second: float | None) -> list[str]:
    difference = None if first is None or second is None else second - first
    difference = difference and round(difference, 1) + 0.0  # not -0.0
    return [number(first), number(second), number(difference, "+.1f")]


def _settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[list[str]]:
    """Rows of key and both values, where they differ."""
    return [
        [key, *("not set" if value is None else str(value) for value in pair)]
        for key, pair in sorted(differences(first, second).items())
        if key != "OUTPUT_DIR"
    ]


def _draw_curves(*runs: Run) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.set(title="training", xlabel="iteration", ylabel="total loss")
    right.set(title="validation", xlabel="iteration", ylabel="AP (%)", ylim=(0, 100))
    curves = (("total_loss", left, "-"), ("bbox/AP", right, "o-"), ("segm/AP", right, "s--"))
    for run, colour in zip(runs, ("tab:blue", "tab:orange"), strict=True):
        for metric, axes, line in curves:
            if points := run.series.get(metric):
                label = f"{run.name}, {metric}"
                axes.plot(*zip(*points, strict=True), line, color=colour, label=label)
                axes.legend()
    return figure, (left, right)


def _images(one: Analysis, other: Analysis, both: list[str], most: int) -> tuple[str, str]:
    # In an image that is not listed there is nothing, and nothing was predicted.
    scores = [{key: found["f1"] for key, found in model.images.items()} for model in (one, other)]
    rows = []
    for image in one.data.images:
        ours, theirs = (found.get(image["id"], 1.0) for found in scores)
        if ours != theirs:
            rows.append((image["id"], Path(image["file_name"]).name, ours, theirs, theirs - ours))
    rows = sorted(rows, key=lambda row: -abs(row[-1]))[:most]
    text = f"By F1 of {TASKS[one.task]} of a score of at least {one.threshold:g}, at IoU 0.50. "
    text += "Green predictions are right, red ones wrong; grey ones do not count."
    listed = [
        [name, f"{ours:.2f}", f"{theirs:.2f}", f"{d:+.2f}"] for _, name, ours, theirs, d in rows
    ]
    drawn = draw_images([key for key, *_ in rows], dict(zip(both, (one, other), strict=True)))
    headers = ["image", *both, "difference"]
    return "Images that differ most", paragraph(text) + table(headers, listed) + drawn
