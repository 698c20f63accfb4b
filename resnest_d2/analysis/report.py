"""A page about one model's predictions: how good they are, and where and how they err."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import read_image
from ..inference.drawing import import_to_draw
from .page import Page, chart, number, paragraph, picture, table
from .results import TASKS, Analysis

logger = logging.getLogger(__name__)

SIDE = 420  # pixels of a picture's longer side
MOST_LABELS = 40  # in a picture with more instances, names would hide them
CLASS_COLUMNS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
WORST_CLASSES = 10  # with a precision-recall curve of their own
MOST_CONFUSED = 20  # classes in a confusion matrix
IOUS = [0.5, 0.6, 0.7, 0.8, 0.9]
MEANINGS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "of small objects, below 32 x 32 pixels",
    "APm": "of medium objects",
    "APl": "of large objects, from 96 x 96 pixels",
}
# The kinds of TIDE (Bolya et al., 2020), at an IoU of 0.5 for right and 0.1 for background.
KINDS = {
    "Cls": ("classification", "the place is right, the class is wrong"),
    "Loc": ("localisation", "the class is right, the place is off"),
    "Both": ("both", "the class is wrong and the place is off"),
    "Dupe": ("duplicate", "the object was found already"),
    "Bkg": ("background", "there is no object"),
    "Miss": ("missed", "no prediction explains the object"),
}
COLOURS = {"tp": "tab:green", "matched": "tab:green", "fp": "tab:red", "fn": "tab:orange"}
LEGEND = "Green is right, red a wrong prediction, orange a missed object, grey does not count."


def write_report(
    analyses: Sequence[Analysis],
    folder: Path,
    title: str = "Predictions",
    max_images: int = 12,
) -> Path:
    """Write ``report.html``.

    Args:
        analyses: of one or two tasks on one data set, from :func:`analyze`; pictures are drawn if
            it was read with its folder of images.
        folder: made if need be.
        title: heading of the page.
        max_images: pictures in all, worst and best, each drawn twice.

    Returns:
        the file.

    Raises:
        ImportError: a package that draws is not installed; the message names it.
        InputError, FileNotFoundError: a picture cannot be read.
    """
    data = analyses[0].data
    page = Page(
        title,
        f"{headline(analyses)}. {len(data.images)} images, {len(data.annotations)} annotations and "
        f"{len(data.categories)} classes of {data.file.name}. All AP are in percent.",
    )
    rows = [
        [name, *(one.metrics[name] for one in analyses), MEANINGS.get(name, "average recall")]
        for name in analyses[0].metrics
    ]
    page.add("COCO's metrics", table(["", *(TASKS[a.task] for a in analyses), "meaning"], rows))
    for one in analyses:
        _add_task(page, one)
    _add_images(page, analyses[-1], max_images)
    return page.write(folder / "report.html")


def headline(analyses: Sequence[Analysis]) -> str:
    """Tell the AP of each task in a few words."""
    return ", ".join(f"AP of {TASKS[a.task]} {number(a.metrics['AP'])}" for a in analyses)


def _add_task(page: Page, one: Analysis) -> None:
    from hotcoco import plot

    task, names, paper = TASKS[one.task], one.data.categories, {"paper_mode": True}
    by_class = one.by_class
    worst_first = sorted(by_class, key=lambda k: 101 if by_class[k][0] is None else by_class[k][0])
    rows = [[names[key], one.objects[key], *by_class[key]] for key in worst_first]
    page.add(
        f"Classes: {task}",
        paragraph("Worst first; n/a stands where there is no such object."),
        table(["class", "objects", *CLASS_COLUMNS], rows),
    )

    defined = [key for key in worst_first if by_class[key][0] is not None]
    if defined:
        few = defined[:WORST_CLASSES]
        text = f"{'All' if few == defined else f'The {len(few)} worst'} of {len(defined)} classes."
        page.add(
            f"Precision and recall: {task}",
            paragraph(f"Left the mean over classes, right single classes at IoU 0.50. {text}"),
            chart("precision over recall", plot.pr_curve, one.evaluation, iou_thrs=IOUS, **paper),
            chart("by class", plot.pr_curve, one.evaluation, cat_ids=few, iou_thr=0.5, **paper),
        )

    confusion = one.evaluation_shown.confusion_matrix()
    limited = (
        f" The {MOST_CONFUSED} most confused of {len(names)} classes are shown."
        if len(names) > MOST_CONFUSED
        else ""
    )
    page.add(
        f"Confusions: {task}",
        paragraph(
            f"Predictions with a score of at least {one.threshold:g} at IoU 0.50, as shares of a "
            "class's objects; BG, background, stands for missed objects in the last column, for "
            f"predictions without an object in the last row.{limited}"
        ),
        chart("confusion matrix", plot.confusion_matrix, confusion, top_n=MOST_CONFUSED, **paper),
        chart("most frequent confusions", plot.top_confusions, confusion, top_n=15, **paper),
    )

    errors = one.evaluation.tide_errors()
    kinds = [[*KINDS[k], errors["counts"][k], 100 * float(errors["delta_ap"][k])] for k in KINDS]
    page.add(
        f"Kinds of errors: {task}",
        paragraph(
            "TIDE's kinds over all predictions, of any score, and the AP50 that the model would "
            "gain without them."
        ),
        table(["kind", "meaning", "number", "AP50 lost"], kinds),
        chart("AP lost by kind of error", plot.tide_errors, errors, **paper),
    )

    calibration = one.evaluation.calibration()
    page.add(
        f"Calibration: {task}",
        paragraph(
            "How many of the predictions of a score are right at IoU 0.50: a score of 0.8 should "
            "mean that 8 of 10 are. Over all predictions the mean gap is "
            f"{calibration['ece']:.3f} (expected calibration error)."
        ),
        chart("share of right ones by score", plot.reliability_diagram, calibration, **paper),
    )


def _add_images(page: Page, one: Analysis, most: int) -> None:
    files = {image["id"]: image["file_name"] for image in one.data.images}
    images = one.images
    # Of images with the same F1, the one with more errors, or more that is right, comes first.
    worst = sorted(images, key=lambda k: (images[k]["f1"], -images[k]["fp"] - images[k]["fn"]))
    best = sorted(images, key=lambda k: (-images[k]["f1"], -images[k]["tp"]))
    first = worst[: (min(most, len(worst)) + 1) // 2]
    last = [key for key in best if key not in first][: max(0, most - len(first))]
    for title, chosen in (("Worst images", first), ("Best images", last)):
        if not chosen:
            continue
        rows = [
            [Path(files[k]).name, *(images[k][c] for c in ("f1", "tp", "fp", "fn"))] for k in chosen
        ]
        if one.data.image_root is None:
            shown = [paragraph("Without a folder of images (--images) nothing is drawn.")]
        else:
            shown = [paragraph(LEGEND), *(draw_image(key, [("", one)]) for key in chosen)]
        headers = ["image", "F1", "right", "wrong", "missed"]
        text = f"By F1 of {TASKS[one.task]} of a score of at least {one.threshold:g} at IoU 0.50."
        page.add(title, paragraph(text), table(headers, rows), *shown)


def draw_image(image_id: int, models: Sequence[tuple[str, Analysis]]) -> str:
    """Draw an image with its annotations, and with the predictions of each named model.

    Returns:
        HTML.

    Raises:
        ImportError, InputError, FileNotFoundError: as :func:`write_report`.
    """
    data = models[0][1].data
    file = next(image["file_name"] for image in data.images if image["id"] == image_id)
    pixels, name = read_image(file), Path(file).name
    truth = [a for a in data.annotations if a["image_id"] == image_id]
    found_by = models[0][1].diagnostics["gt_status"]
    # With two models it depends on the model which object is missed.
    states = [found_by.get(a["id"], "") if len(models) == 1 else "" for a in truth]
    parts = [picture(_draw(pixels, truth, states, data.categories), f"{name}: ground truth")]
    for model, one in models:
        # hotcoco numbers predictions from 1 on.
        numbered = [(i, d) for i, d in enumerate(one.shown, 1) if d["image_id"] == image_id]
        states = [one.diagnostics["dt_status"].get(i, "") for i, _ in numbered]
        drawn = _draw(pixels, [d for _, d in numbered], states, data.categories)
        score = f"F1 {one.images[image_id]['f1']:.2f}" if image_id in one.images else "nothing"
        parts.append(picture(drawn, f"{model or 'predictions'}: {score}"))
    return f"<div>{''.join(parts)}</div>"


def _draw(
    pixels: np.ndarray, instances: list[dict[str, Any]], states: list[str], names: dict[int, str]
) -> np.ndarray:
    module = import_to_draw("detectron2.utils.visualizer")
    visualizer = module.Visualizer(pixels, scale=SIDE / max(pixels.shape[:2]))
    if not instances:
        return visualizer.output.get_image()
    boxes = [one["bbox"] for one in instances if "bbox" in one]
    labels = [
        f"{names[one['category_id']]} {one['score']:.0%}"
        if "score" in one
        else names[one["category_id"]]
        for one in instances
    ]
    has_masks = all("segmentation" in one for one in instances)
    visualizer.overlay_instances(
        boxes=[[x, y, x + w, y + h] for x, y, w, h in boxes] or None,
        masks=[one["segmentation"] for one in instances] if has_masks else None,
        labels=labels if len(labels) <= MOST_LABELS else None,
        assigned_colors=[COLOURS.get(state, "tab:gray") for state in states],
    )
    return visualizer.output.get_image()
