"""A page about one model's predictions: how good they are, and where and how they err."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import read_image
from ..inference.drawing import import_to_draw
from .page import PLAIN, chart, number, paragraph, picture, table, write_page
from .results import TASKS, Analysis

SIDE = 380  # pixels of a picture's longer side
MOST_LABELS = 40  # in a picture with more instances, names would hide them
WORST_CLASSES = 10  # with a precision-recall curve of their own
MOST_CONFUSED = 20  # classes in a confusion matrix
PAPER = {"paper_mode": True}  # white
MEANINGS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "of small objects, below 32 x 32 pixels",
    "APm": "of medium objects",
    "APl": "of large objects, from 96 x 96 pixels",
}
# TIDE's kinds (Bolya et al., 2020).
KINDS = {
    "Cls": ("classification", "the place is right, the class is wrong"),
    "Loc": ("localisation", "the class is right, the place is off (IoU 0.1 to 0.5)"),
    "Both": ("both", "the class is wrong and the place is off"),
    "Dupe": ("duplicate", "the object was found already"),
    "Bkg": ("background", "there is no object (IoU below 0.1)"),
    "Miss": ("missed", "no prediction has this object's place, or its class nearby"),
}
TIDE = "TIDE's kinds, of predictions of any score, and the AP50 that they cost."
COLOURS = {
    "": "tab:blue",
    "tp": "tab:green",
    "matched": "tab:green",
    "fp": "tab:red",
    "fn": "tab:orange",
}
NOT_DRAWN = "Without a folder of images (--images) nothing is drawn."


def write_report(
    analyses: Sequence[Analysis], folder: Path, title: str = "Predictions", max_images: int = 12
) -> Path:
    """Write ``report.html``.

    Args:
        analyses: from :func:`analyze`; images are drawn if the data was read with their folder.
        folder: made if need be.
        title: heading of the page.
        max_images: images that are listed and drawn, half of them the worst, half the best.

    Returns:
        the file.

    Raises:
        ImportError: a package that draws is not installed; the message names it.
        InputError, FileNotFoundError: a picture cannot be read.
    """
    data = analyses[0].data
    lead = (
        f"{headline(analyses)}. {len(data.images)} images, {len(data.annotations)} annotations and "
        f"{len(data.categories)} classes of {data.file.name}. All AP are in percent."
    )
    rows = [
        [name, *(one.metrics[name] for one in analyses), MEANINGS.get(name, "average recall")]
        for name in analyses[0].metrics
    ]
    sections = [("COCO's metrics", table(["", *(TASKS[a.task] for a in analyses), ""], rows))]
    for one in analyses:
        sections += _sections(one)
    sections += _images(analyses[-1], max_images)
    return write_page(folder / "report.html", title, lead, sections)


def headline(analyses: Sequence[Analysis]) -> str:
    """Tell the AP of each task in a few words."""
    return ", ".join(f"AP of {TASKS[a.task]} {number(a.metrics['AP'])}" for a in analyses)


def _sections(one: Analysis) -> Iterator[tuple[str, str]]:
    """Everything about a task but single images."""
    from hotcoco import plot

    task, names, by_class = TASKS[one.task], one.data.categories, one.by_class
    order = sorted(by_class, key=lambda k: (by_class[k][1] is None, by_class[k][1]))
    columns = ["class", "objects", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]
    yield (
        f"Classes: {task}",
        paragraph("The worst come first. Where there is no such object, AP is not defined (n/a).")
        + table(columns, [[names[key], *by_class[key]] for key in order]),
    )

    defined = [key for key in order if by_class[key][1] is not None]
    if worst := defined[:WORST_CLASSES]:
        ious = {"iou_thrs": [0.5, 0.6, 0.75, 0.9]}
        classes = {"cat_ids": worst, "iou_thr": 0.5}
        yield (
            f"Precision and recall: {task}",
            paragraph(
                "On the left the mean over classes, on the right single classes"
                + (f", the {len(worst)} worst." if len(worst) < len(defined) else ".")
            )
            + chart("precision over recall", plot.pr_curve, one.evaluation, **ious, **PAPER)
            + chart("the same of classes", plot.pr_curve, one.evaluation, **classes, **PAPER),
        )

    confusion = one.evaluation_shown.confusion_matrix()
    classes = {**confusion, "matrix": confusion["matrix"].copy()}
    classes["matrix"][-1] = classes["matrix"][:, -1] = 0
    limit = MOST_CONFUSED if len(names) > MOST_CONFUSED else None
    few = f" Of {len(names)} classes the {limit} most confused are shown." if limit else ""
    yield (
        f"Confusions: {task}",
        paragraph(
            f"Predictions of a score of at least {one.threshold:g}, at IoU 0.50, as shares of a "
            "row. BG is the background: the last column has missed objects, the last row "
            f"predictions where no object is.{few}"
        )
        + chart("confusion matrix", plot.confusion_matrix, confusion, top_n=limit, **PAPER)
        + chart("most frequent confusions", plot.top_confusions, classes, top_n=10, **PAPER),
    )

    errors = one.evaluation.tide_errors()
    counts, lost = errors["counts"], errors["delta_ap"]
    yield (
        f"Kinds of errors: {task}",
        paragraph(TIDE)
        + table(
            ["kind", "meaning", "number", "AP50"],
            [[*text, counts[kind], 100 * float(lost[kind])] for kind, text in KINDS.items()],
        )
        + chart("AP50 that kinds of errors cost", plot.tide_errors, errors, **PAPER),
    )

    calibration = one.evaluation.calibration()
    yield (
        f"Calibration: {task}",
        paragraph(
            "The share of predictions that are right at IoU 0.50, by their score. The expected "
            f"calibration error, the mean gap between the two, is {calibration['ece']:.3f}."
        )
        + chart("share of right ones by score", plot.reliability_diagram, calibration, **PAPER),
    )


def _images(one: Analysis, most: int) -> Iterator[tuple[str, str]]:
    images, files = one.images, {image["id"]: image["file_name"] for image in one.data.images}
    # Among images of the same F1 more errors, or more that is right, come first.
    worst = sorted(images, key=lambda k: (images[k]["f1"], -images[k]["fp"] - images[k]["fn"]))
    worst = worst[: (min(most, len(images)) + 1) // 2]
    best = sorted(images.keys() - worst, key=lambda k: (-images[k]["f1"], -images[k]["tp"], k))
    text = f"By F1 of {TASKS[one.task]} of a score of at least {one.threshold:g}, at IoU 0.50. "
    text += "Green is right, red a wrong prediction, orange a missed object; grey does not count."
    for title, keys in (("Worst images", worst), ("Best images", best[: most - len(worst)])):
        counts = [[images[k][name] for name in ("f1", "tp", "fp", "fn")] for k in keys]
        rows = [
            [Path(files[k]).name, f"{f1:.2f}", *rest]
            for k, (f1, *rest) in zip(keys, counts, strict=True)
        ]
        listed = table(["image", "F1", "right", "wrong", "missed"], rows)
        yield title, paragraph(text) + listed + draw_images(keys, {"predictions": one})


def draw_images(keys: Sequence[int], models: dict[str, Analysis]) -> str:
    """Draw images with their annotations, and with the predictions of each model beside them.

    Args:
        keys: ids of images.
        models: evaluated on the same data, by their names.

    Raises:
        ImportError, InputError, FileNotFoundError: as :func:`write_report`.
    """
    first = next(iter(models.values()))
    if first.data.image_root is None:
        return paragraph(NOT_DRAWN)
    files = {image["id"]: image["file_name"] for image in first.data.images}
    rows = []
    for key in keys:
        pixels, name = read_image(files[key]), Path(files[key]).name
        truth = {a["id"]: a for a in first.data.annotations if a["image_id"] == key}
        # Several models miss different objects.
        states = first.diagnostics["gt_status"] if len(models) == 1 else {}
        row = [picture(_draw(pixels, truth, states, first), f"{name}: ground truth")]
        for model, one in models.items():
            # hotcoco numbers predictions from 1 on.
            found = {i: d for i, d in enumerate(one.shown, 1) if d["image_id"] == key}
            drawn = _draw(pixels, found, one.diagnostics["dt_status"], one)
            row.append(picture(drawn, f"{model} ({len(found)})"))
        rows.append(f"<div>{''.join(row)}</div>")
    return "\n".join(rows)


def _draw(
    pixels: np.ndarray, numbered: dict[int, dict[str, Any]], states: dict[int, str], one: Analysis
) -> np.ndarray:
    module = import_to_draw("detectron2.utils.visualizer")
    shorter, longer = sorted(pixels.shape[:2])
    visualizer = module.Visualizer(pixels, scale=max(SIDE / longer, 1.01 / shorter))  # not empty
    instances = list(numbered.values())
    boxes = [i["bbox"] for i in instances if "bbox" in i]
    names = [one.data.categories[i["category_id"]] for i in instances]
    scores = [f" {i['score']:.0%}" if "score" in i else "" for i in instances]
    unknown = "" if not states else "ignored"  # by COCO's rules, as crowds are
    labels = [name + score for name, score in zip(names, scores, strict=True)]
    has_masks = bool(instances) and one.task == "segm"
    with import_to_draw("matplotlib").rc_context(PLAIN):
        visualizer.overlay_instances(
            boxes=[[x, y, x + w, y + h] for x, y, w, h in boxes] or None,
            masks=[i["segmentation"] for i in instances] if has_masks else None,
            labels=labels if instances and len(instances) <= MOST_LABELS else None,
            assigned_colors=[COLOURS.get(states.get(i, unknown), "tab:gray") for i in numbered],
        )
    return visualizer.output.get_image()
