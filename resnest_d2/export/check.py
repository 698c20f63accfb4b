"""Comparing a written file with the model that it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from torch import nn
from torch.nn import functional as F

from .graph import DetectorGraph, stride_of

# Largest differences: of boxes in pixels, of scores and masks.
BOX_TOLERANCE, VALUE_TOLERANCE = 1e-3, 1e-4
DRAWN = 10  # images of noise
SCALES = (1, 8, 32)  # pixels of it

Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Comparison:
    """Outputs of a file beside those of the model, for one image."""

    size: tuple[int, int]
    """Height and width of the image."""
    expected: int
    """Detections of the model."""
    actual: int
    """Detections of the file."""
    differences: Mapping[str, float]
    """The largest difference by output; none where nothing could be compared."""

    @property
    def problem(self) -> str:
        """Tells what differs more than it may; "" if nothing does."""
        where = "on an image of {}x{} pixels".format(*self.size)
        if self.expected != self.actual:
            return f"the file finds {self.actual} objects {where}, the model {self.expected}"
        for name, value in self.differences.items():
            limit = BOX_TOLERANCE if name == "boxes" else VALUE_TOLERANCE
            if not value <= limit:  # NaN differs too
                return f"{name} differ by {value:.2g} {where}, and may by {limit:g}"
        return ""


def make_images(graph: DetectorGraph) -> list[torch.Tensor]:
    """Two images of noise at several scales, of other sizes than the export's example.

    Of :data:`DRAWN` ones of each size the first is taken in which the model finds something.
    """
    generator, images, model = torch.Generator().manual_seed(0), [], graph.model
    channels, stride = len(model.pixel_mean), stride_of(model)
    for rows, columns in ((5, 10), (9, 6)):
        size = (rows * stride, columns * stride)
        for _ in range(DRAWN):
            image = torch.zeros(1, channels, *size)
            shares = torch.rand(len(SCALES), generator=generator).softmax(0)
            for scale, share in zip(SCALES, shares, strict=True):
                small = [side // scale for side in size]
                noise = torch.rand(1, channels, *small, generator=generator)
                image += F.interpolate(noise, size, mode="bilinear") * 255 * share
            if len(expected_outputs(model, image[0])["scores"]):
                break
        images.append(image[0])
    return images


@torch.no_grad()
def expected_outputs(model: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the outputs of the model itself, by Detectron2's own code.

    Args:
        model: the detector, not optimised.
        image: shape (3, H, W), multiples of the stride.
    """
    if isinstance(model, GeneralizedRCNN):
        found: Instances = model.inference([{"image": image}], do_postprocess=False)[0]
    else:
        pixels = ((image - model.pixel_mean) / model.pixel_std)[None]
        features = model.backbone(pixels)
        levels = [features[name] for name in model.head_in_features]
        images = ImageList(pixels, [tuple(image.shape[-2:])])
        found = model.forward_inference(images, levels, model.head(levels))[0]
    outputs = {"boxes": found.pred_boxes.tensor, "scores": found.scores}
    outputs["classes"] = found.pred_classes
    return outputs | ({"masks": found.pred_masks[:, 0]} if found.has("pred_masks") else {})


def compare(size: tuple[int, int], expected: Outputs, actual: Outputs) -> Comparison:
    """Compare outputs; detections are matched by class and box, because equal scores have no order.

    Args:
        size: of the image.
        expected: of :func:`expected_outputs`.
        actual: of the file, rows with a negative score are empty.
    """
    filled = actual["scores"] >= 0
    actual = {name: value[filled] for name, value in actual.items()}
    numbers = (len(expected["scores"]), len(actual["scores"]))
    if numbers[0] != numbers[1] or not numbers[0]:
        return Comparison(size, *numbers, {})
    order = match(expected, actual)
    differences = {
        name: (value - actual[name][order]).abs().max().item() for name, value in expected.items()
    }
    return Comparison(size, *numbers, differences)


def match(expected: Outputs, actual: Outputs) -> torch.Tensor:
    """The row of ``actual`` that is next to each row of ``expected``, each taken once."""
    distances = torch.cdist(expected["boxes"].double(), actual["boxes"].double(), p=torch.inf)
    other = expected["classes"][:, None] != actual["classes"]
    distances = distances.masked_fill(other, 1e9)
    order = []
    for row in distances:
        order.append(row.argmin().item())
        distances[:, order[-1]] = torch.inf
    return torch.tensor(order)
