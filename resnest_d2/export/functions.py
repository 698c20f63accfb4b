"""Detectron2's inference in a form that graphs can hold: fixed rows in place of branches.

Detectron2 drops boxes in ``if`` statements that look at the data, which ``torch.export`` cannot
follow. Here results have as many rows as they can have at most. A row is empty if its score is
negative; its box is all zero then, and no later stage turns it into a detection.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch.nn import functional as F
from torchvision.ops import nms

EMPTY = -1.0

Size = tuple[int, int]


class Detections(NamedTuple):
    """Detections in fixed rows, by descending score."""

    boxes: torch.Tensor
    """Shape (N, 4), x0, y0, x1, y1 in pixels."""
    scores: torch.Tensor
    """Shape (N,), :data:`EMPTY` in empty rows."""
    classes: torch.Tensor
    """Shape (N,), int64."""


def clip(boxes: torch.Tensor, size: Size) -> torch.Tensor:
    """Boxes (N, 4) inside of an image of this height and width, as ``Boxes.clip``."""
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(1)
    corners = (x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height))
    return torch.stack(corners, dim=-1)


def suppress(
    boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, threshold: float, rows: int
) -> torch.Tensor:
    """Non-maximum suppression of valid boxes.

    Args:
        boxes: shape (N, 4).
        scores, valid: shape (N,).
        threshold: IoU above which the box of the lower score is dropped.
        rows: how many boxes are kept at most.

    Returns:
        indices of shape (rows,), by descending score; N where there are no more boxes.
    """
    none = torch.full((rows + 2,), len(boxes), dtype=torch.int64, device=boxes.device)
    # Two empty boxes more: torch.export takes 0 and 1 for other cases, which no graph would hold.
    at = torch.cat([valid.nonzero()[:, 0], none[:2]])
    boxes, scores = F.pad(boxes, (0, 0, 0, 1)), F.pad(scores, (0, 1), value=-torch.inf)
    return torch.cat([at[nms(boxes[at], scores[at], threshold)], none])[:rows]


def suppress_in_groups(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    groups: torch.Tensor,
    valid: torch.Tensor,
    threshold: float,
    rows: int,
) -> torch.Tensor:
    """As :func:`suppress`, where boxes of different groups (N,) do not suppress each other.

    As in torchvision's ``batched_nms`` of few boxes groups are moved apart, which rounds. Of many
    boxes that runs NMS on each group; how many they are shows only in a run of the graph, and
    ONNX's NMS takes fp32 alone, so that rarely a kept box is another one than Detectron2's.
    """
    boxes = torch.where(valid[:, None], boxes, 0)
    moved = boxes + (groups * (boxes.max() + 1))[:, None]
    return suppress(moved, scores, valid, threshold, rows)


def _take(values: torch.Tensor, kept: torch.Tensor, empty: float = 0) -> torch.Tensor:
    """Rows by the indices of :func:`suppress`, whose N stands for a row of ``empty``."""
    padding = [0, 0] * (values.ndim - 1) + [0, 1]
    return F.pad(values, padding, value=empty)[kept]


def _best(scores: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest scores, shape (number,), -inf where there are fewer, and their indices or 0."""
    best, at = F.pad(scores, (0, number), value=-torch.inf).topk(number)
    return best, torch.where(at < scores.shape[0], at, 0)


def best_proposals(
    boxes: Sequence[torch.Tensor],
    logits: Sequence[torch.Tensor],
    size: Size,
    nms_threshold: float,
    rows_before: int,
    rows: int,
    least_side: float,
) -> torch.Tensor:
    """Proposals (rows, 4) of one image, as Detectron2's ``find_top_rpn_proposals`` at inference.

    Args:
        boxes: of each level, shape (A, 4).
        logits: of each level, shape (A,).
        size: height and width of the image.
        nms_threshold: IoU above which the box of the lower logit is dropped.
        rows_before: boxes of a level that are looked at.
        rows: proposals of the image.
        least_side: boxes must be wider and higher than this, in pixels.
    """
    found, values = [], []
    for level, level_logits in zip(boxes, logits, strict=True):
        scores, at = _best(level_logits, rows_before)
        corners = level[at]
        valid = corners.isfinite().all(1) & scores.isfinite()
        corners = clip(corners, size)
        valid = valid & (corners[:, 2:] - corners[:, :2] > least_side).all(1)
        kept = suppress(corners, scores, valid, nms_threshold, rows_before)
        found.append(_take(corners, kept))
        values.append(_take(scores, kept, -torch.inf))
    highest, at = _best(torch.cat(values), rows)
    return torch.where(highest.isfinite()[:, None], torch.cat(found)[at], 0)


def best_detections(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    size: Size,
    score_threshold: float,
    nms_threshold: float,
    rows: int,
) -> Detections:
    """Detections of one image, as Detectron2's ``fast_rcnn_inference``.

    Args:
        boxes: of the proposals, shape (R, 4) or, a box a class, (R, 4 * C).
        scores: shape (R, C + 1), the last is the background's.
        size: height and width of the image.
        score_threshold: a detection's score is above it.
        nms_threshold: IoU above which, in a class, the box of the lower score is dropped.
        rows: of the result.
    """
    number, classes = len(scores), scores.shape[1] - 1
    finite = boxes.isfinite().all(1) & scores.isfinite().all(1)
    corners = clip(boxes.reshape(-1, 4), size)
    corners = corners.view(number, -1, 4).expand(number, classes, 4).reshape(-1, 4)
    values = scores[:, :-1].reshape(-1)
    valid = (scores[:, :-1] > score_threshold) & finite[:, None]
    valid = valid.reshape(-1) & (corners != 0).any(1)  # zero is an empty proposal's
    groups = torch.arange(classes, device=values.device).repeat(number)
    kept = suppress_in_groups(corners, values, groups, valid, nms_threshold, rows)
    return Detections(_take(corners, kept), _take(values, kept, EMPTY), _take(groups, kept))


def best_dense_detections(
    boxes: Sequence[torch.Tensor],
    scores: Sequence[torch.Tensor],
    score_threshold: float,
    nms_threshold: float,
    rows_before: int,
    rows: int,
) -> Detections:
    """Detections of one image, as Detectron2's ``RetinaNet.inference_single_image``.

    Args:
        boxes: of each level, shape (A, 4).
        scores: of each level, shape (A, C).
        score_threshold: a detection's score is above it.
        nms_threshold: IoU above which, in a class, the box of the lower score is dropped.
        rows_before: scores of a level that are looked at.
        rows: of the result.
    """
    corners, values, groups = [], [], []
    for level, level_scores in zip(boxes, scores, strict=True):
        classes = level_scores.shape[1]
        found = torch.where(level_scores > score_threshold, level_scores, -torch.inf).flatten()
        best, at = _best(found, rows_before)
        corners.append(level[at // classes])
        values.append(best)
        groups.append(at % classes)
    found = [torch.cat(levels) for levels in (corners, values, groups)]
    kept = suppress_in_groups(*found, found[1].isfinite(), nms_threshold, rows)
    return Detections(*map(_take, found, [kept] * 3, (0, EMPTY, 0)))


def pool(pooler: ROIPooler, features: Sequence[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
    """Pool boxes (N, 4) of one image, as ``ROIPooler.forward``, which looks at their number.

    Boxes are grouped by level: to pool each on all levels would be four times the work.

    Returns:
        shape (N, C, height, width).
    """
    indexed = F.pad(boxes, (1, 0))  # the image's number, 0
    if len(pooler.level_poolers) == 1:
        return pooler.level_poolers[0](features[0], indexed)
    limits = (pooler.min_level, pooler.max_level)
    levels = assign_boxes_to_levels(
        [Boxes(boxes)], *limits, pooler.canonical_box_size, pooler.canonical_level
    )
    by_level = [(levels == level).nonzero()[:, 0] for level in range(len(features))]
    pooled = [
        pool_level(feature, indexed[at])
        for at, feature, pool_level in zip(by_level, features, pooler.level_poolers, strict=True)
    ]
    # Where each box is among those sorted by level; torch.cat(by_level) would be of unknown length.
    rows = torch.arange(len(boxes), device=boxes.device)
    order = (levels * len(boxes) + rows).argsort().argsort()
    return torch.cat(pooled)[order]
