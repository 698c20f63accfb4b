"""A page about two models side by side, on one data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict

from ..config import InputError
from .page import Page, chart, number, paragraph, table
from .report import KINDS, draw_image
from .results import TASKS, Analysis

BOOTSTRAPS = 1000
CONFIDENCE = 0.95
NO_SETTINGS = ("OUTPUT_DIR", "VERSION")  # keys that differ without meaning


@dataclass
class Run:
    """A model's predictions and what is known of its training."""

    name: str
    analyses: list[Analysis]
    config: Mapping[str, Any] = field(default_factory=dict)
    series: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Metrics of training as (iteration, value)."""


def require_same_data(first: Run, second: Run) -> None:
    """Refuse to compare runs on different data.

    Raises:
        InputError: their images, objects or classes differ.
    """
    one, other = first.analyses[0].data, second.analyses[0].data
    for part in ("categories", "images", "annotations"):
        if _plain(getattr(one, part)) != _plain(getattr(other, part)):
            raise InputError(
                f"{first.name} and {second.name} are on different data: the {part} of {one.file} "
                f"and of {other.file} differ"
            )


def _plain(part: Any) -> Any:
    keys = ("id", "image_id", "category_id", "bbox", "iscrowd", "width", "height")
    return part if isinstance(part, dict) else [[one.get(key) for key in keys] for one in part]


def compare_metrics(
    first: Analysis, second: Analysis
) -> tuple[list[list[Any]], list[list[Any]], dict[str, Any]]:
    """Compare two models in one task.

    Returns:
        rows of metric, first, second, difference and its confidence interval, which is hotcoco's
        bootstrap over images; rows of class, objects, first, second and difference; and what
        ``hotcoco.compare`` returned.
    """
    import hotcoco

    compared = hotcoco.compare(
        first.evaluation, second.evaluation, n_bootstrap=BOOTSTRAPS, confidence=CONFIDENCE
    )
    rows = []
    for name, value in first.metrics.items():
        interval = "n/a"
        if value is not None:
            low, high = (100 * compared["ci"][name][end] for end in ("lower", "upper"))
            interval = f"{low:+.1f} to {high:+.1f}{'' if low <= 0 <= high else ' *'}"
        rows.append([name, *_difference(value, second.metrics[name]), interval])
    ours, theirs = first.by_class, second.by_class
    classes = [
        [name, first.objects[key], *_difference(ours[key][0], theirs[key][0])]
        for key, name in first.data.categories.items()
    ]
    # Strings: differences have a sign. The largest ones come first, undefined ones last.
    classes.sort(key=lambda row: -abs(float(row[-1])) if row[-1] != "n/a" else 1)
    return rows, classes, compared


def _difference(first: float | None, second: float | None) -> list[str]:
    defined = first is not None and second is not None
    difference = second - first if defined else None
    return [number(first), number(second), number(difference, sign="+")]


def differing_settings(first: Run, second: Run) -> list[list[str]]:
    """Return rows of key and both values, of the keys whose values differ."""
    one, other = (flatten_results_dict(run.config) for run in (first, second))
    return [
        [key.replace("/", "."), *(str(flat.get(key, "not set")) for flat in (one, other))]
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key) and key.split("/")[0] not in NO_SETTINGS
    ]


def write_comparison(first: Run, second: Run, folder: Path, max_images: int = 12) -> Path:
    """Write ``comparison.html``.

    Args:
        first: what is compared with.
        second: what is compared; differences are its values less the first's.
        folder: made if need be.
        max_images: images that are drawn, those whose F1 differs most.

    Returns:
        the file.

    Raises:
        ImportError, InputError, FileNotFoundError: as for :func:`write_report`, and if the runs
            are on different data.
    """
    require_same_data(first, second)
    from hotcoco import plot

    both, data = (first.name, second.name), first.analyses[0].data
    page = Page(
        f"{first.name} and {second.name}",
        f"Both on the {len(data.images)} images of {data.file.name}. All AP are in percent; "
        f"differences are {second.name} less {first.name}.",
    )
    for one, other in zip(first.analyses, second.analyses, strict=False):
        rows, classes, compared = compare_metrics(one, other)
        names = {"name_a": first.name, "name_b": second.name}
        page.add(
            f"COCO's metrics: {TASKS[one.task]}",
            paragraph(
                f"The {CONFIDENCE:.0%} interval is of {BOOTSTRAPS} bootstraps over images; a star "
                "marks one without 0. It tells nothing about training again with another seed."
            ),
            table(["", *both, "difference", "interval"], rows),
            chart("metrics", plot.comparison_bar, compared | names, paper_mode=True),
        )
        page.add(
            f"Classes: {TASKS[one.task]}",
            paragraph("AP, the largest differences first."),
            table(["class", "objects", *both, "difference"], classes),
        )
        errors = [model.evaluation.tide_errors() for model in (one, other)]
        kinds = [
            [*KINDS[k], *(n for e in errors for n in (e["counts"][k], 100 * e["delta_ap"][k]))]
            for k in KINDS
        ]
        columns = [f"{name}: {what}" for name in both for what in ("number", "AP50 lost")]
        page.add(f"Kinds of errors: {TASKS[one.task]}", table(["kind", "meaning", *columns], kinds))
    if first.config and second.config:
        settings = differing_settings(first, second)
        page.add("Settings that differ", table(["key", *both], settings, of_text=True))
    if first.series and second.series:
        page.add("Training", chart("loss and AP over iterations", _draw_curves, first, second))
    _add_images(page, first, second, max_images)
    return page.write(folder / "comparison.html")


def _draw_curves(*runs: Run) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for run, colour in zip(runs, ("tab:blue", "tab:orange"), strict=True):
        if "total_loss" in run.series:
            left.plot(*zip(*run.series["total_loss"], strict=True), color=colour, label=run.name)
        for task, line in (("bbox", "-"), ("segm", "--")):
            if points := run.series.get(f"{task}/AP"):
                label = f"{run.name}, {TASKS[task]}"
                values = zip(*points, strict=True)
                right.plot(*values, line, marker="o", color=colour, label=label)
    left.set(title="training loss", xlabel="iteration", ylabel="total loss", yscale="log")
    right.set(title="validation", xlabel="iteration", ylabel="AP (%)", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return figure, (left, right)


def _add_images(page: Page, first: Run, second: Run, most: int) -> None:
    one, other = first.analyses[-1], second.analyses[-1]
    scores = [{key: value["f1"] for key, value in model.images.items()} for model in (one, other)]
    shared = scores[0].keys() & scores[1].keys()
    differs = {key: scores[1][key] - scores[0][key] for key in shared}
    chosen = sorted(differs, key=lambda key: (-abs(differs[key]), key))[:most]
    chosen = [key for key in chosen if differs[key]]
    files = {image["id"]: Path(image["file_name"]).name for image in one.data.images}
    rows = [[files[k], *(f"{s[k]:.2f}" for s in scores), f"{differs[k]:+.2f}"] for k in chosen]
    parts = [paragraph("Without a folder of images (--images) nothing is drawn.")]
    if one.data.image_root is not None:
        parts = [draw_image(k, [(first.name, one), (second.name, other)]) for k in chosen]
    text = f"By F1 of {TASKS[one.task]} of a score of at least {one.threshold:g} at IoU 0.50."
    headers = ["image", first.name, second.name, "difference"]
    page.add("Images that differ most", paragraph(text), table(headers, rows), *parts)
