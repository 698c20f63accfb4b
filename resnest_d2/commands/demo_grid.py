"""A picture that shows ground truth beside predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import Visualizer

from ..inference.predictor import Predictor

PAIRS_PER_ROW = 3
SCALE = 2.5


def draw_grid(predictor: Predictor, dicts: Sequence[dict[str, Any]], picture: str | Path) -> None:
    """Draw each image twice, with its annotations and with its detections, to a PNG file.

    Args:
        predictor: the detector.
        dicts: images in Detectron2's dataset format.
        picture: the file to write.
    """
    from matplotlib.figure import Figure

    rows = -(-len(dicts) // PAIRS_PER_ROW)
    columns = 2 * PAIRS_PER_ROW
    figure = Figure(figsize=(2.6 * columns, 2.7 * rows), layout="constrained")
    axes = np.atleast_2d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.axis("off")
    for index, entry in enumerate(dicts):
        image = read_image(entry["file_name"], format="RGB")
        truth = Visualizer(image, predictor.metadata, SCALE).draw_dataset_dict(entry).get_image()
        axes[2 * index].imshow(truth)
        axes[2 * index].set_title("ground truth", fontsize=9)
        axes[2 * index + 1].imshow(predictor.draw(image, predictor(image), SCALE))
        axes[2 * index + 1].set_title("prediction", fontsize=9, color="tab:blue")
    figure.savefig(picture, dpi=90)
