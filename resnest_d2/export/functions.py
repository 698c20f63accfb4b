"""Functions of Detectron2 in a form that graphs can hold: fixed rows in place of branches.

Detectron2 drops boxes in ``if`` statements that look at the data, which ``torch.export`` cannot
follow. Here results have as many rows as they can have at most. A row is empty if its score is
negative; its box is all zero then, from which no later stage makes another one.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import cascade_rcnn, fast_rcnn
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F
from torchvision.ops import nms

EMPTY = -1.0
# Up to so many boxes torchvision's batched_nms moves groups apart, which rounds; above it runs NMS
# on each group by itself. The limit is its own, for CPUs. Proposals, whose rows are fixed, keep it.
# How many detections pass the threshold shows only in a run of the graph, and ONNX's NMS takes fp32
# alone, so detections are always moved: of 7,000 in 80 classes 1 in 20,000 kept is another one.
MOST_MOVED = 1000

Size = tuple[int, int]


def clip(boxes: Boxes, box_size: Size) -> None:
    """``Boxes.clip`` without its check for numbers that are not finite."""
    height, width = box_size
    x1, y1, x2, y2 = boxes.tensor.unbind(1)
    corners = (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height))
    boxes.tensor = torch.stack(corners, dim=-1)


def suppress(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    groups: torch.Tensor,
    valid: torch.Tensor,
    threshold: float,
    rows: int,
) -> torch.Tensor:
    """Non-maximum suppression inside groups, as torchvision's ``batched_nms`` of few boxes.

    Args:
        boxes: shape (N, 4).
        scores, groups, valid: shape (N,); boxes that are not valid are left out.
        threshold: IoU above which the box of the lower score is dropped.
        rows: how many boxes are kept at most.

    Returns:
        indices of shape (rows,), by descending score; N where there are no more boxes.
    """
    boxes = torch.where(valid[:, None], boxes, 0)
    moved = boxes + (groups * (boxes.max() + 1))[:, None]
    none = torch.full((rows + 2,), len(boxes), dtype=torch.int64, device=boxes.device)
    # Two empty boxes more: torch.export takes 0 and 1 for other cases, which no graph would hold.
    at = torch.cat([valid.nonzero()[:, 0], none[:2]])
    moved, scores = F.pad(moved, (0, 0, 0, 1)), F.pad(scores, (0, 1), value=-torch.inf)
    kept = at[nms(moved[at], scores[at], threshold)]
    return torch.cat([kept, none])[:rows]


def _take(values: torch.Tensor, kept: torch.Tensor, empty: float = 0) -> torch.Tensor:
    """Rows by the indices of :func:`suppress`."""
    padding = [0, 0] * (values.ndim - 1) + [0, 1]
    return F.pad(values, padding, value=empty)[kept]


def _best(scores: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest scores, shape (number,), -inf where there are fewer, and their indices or 0."""
    best, at = F.pad(scores, (0, number), value=-torch.inf).topk(number)
    return best, torch.where(at < scores.shape[0], at, 0)


def find_top_rpn_proposals(
    proposals: list[torch.Tensor],
    pred_objectness_logits: list[torch.Tensor],
    image_sizes: Sequence[Size],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool = False,
) -> list[Instances]:
    """Detectron2's function of that name, at inference.

    Returns:
        for each image ``post_nms_topk`` proposals; logits of empty rows are -inf.
    """
    results = []
    for image, size in enumerate(image_sizes):
        best = [_best(logits[image], pre_nms_topk) for logits in pred_objectness_logits]
        scores = torch.cat([level for level, _ in best])
        corners = [level[image][at] for level, (_, at) in zip(proposals, best, strict=True)]
        boxes = Boxes(torch.cat(corners))
        valid = boxes.tensor.isfinite().all(1) & scores.isfinite()
        clip(boxes, size)
        valid = valid & boxes.nonempty(min_box_size)
        levels = torch.arange(len(scores), device=scores.device) // pre_nms_topk
        if len(scores) <= MOST_MOVED:
            kept = suppress(boxes.tensor, scores, levels, valid, nms_thresh, post_nms_topk)
        else:
            kept = _suppress_by_level(boxes.tensor, scores, valid, nms_thresh, pre_nms_topk)
            best, at = _best(_take(scores, kept, -torch.inf), post_nms_topk)
            kept = torch.where(best.isfinite(), kept[at], len(scores))
        result = Instances(size)
        result.objectness_logits = _take(scores, kept, -torch.inf)
        result.proposal_boxes = Boxes(_take(boxes.tensor, kept))
        results.append(result)
    return results


def _suppress_by_level(
    boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, threshold: float, rows: int
) -> torch.Tensor:
    """As :func:`suppress`, on levels of so many rows each, not sorted."""
    kept = []
    for start in range(0, len(boxes), rows):
        level = slice(start, start + rows)
        groups = torch.zeros_like(scores[level])
        at = suppress(boxes[level], scores[level], groups, valid[level], threshold, rows)
        kept.append(torch.where(at < rows, at + start, len(boxes)))
    return torch.cat(kept)


def fast_rcnn_inference(
    boxes: list[torch.Tensor],
    scores: list[torch.Tensor],
    image_shapes: Sequence[Size],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Detectron2's function of that name.

    Returns:
        for each image ``topk_per_image`` detections, and the rows that they come from.
    """
    results, rows = [], []
    for one_boxes, one_scores, size in zip(boxes, scores, image_shapes, strict=True):
        number, classes = len(one_scores), one_scores.shape[1] - 1
        finite = one_boxes.isfinite().all(1) & one_scores.isfinite().all(1)
        corners = Boxes(one_boxes.reshape(-1, 4))
        clip(corners, size)
        corners = corners.tensor.view(number, -1, 4).expand(number, classes, 4).reshape(-1, 4)
        values = one_scores[:, :-1].reshape(-1)
        valid = (one_scores[:, :-1] > score_thresh) & finite[:, None]
        valid = valid.reshape(-1) & (corners != 0).any(1)  # zero is an empty proposal's
        groups = torch.arange(classes, device=values.device).repeat(number)
        kept = suppress(corners, values, groups, valid, nms_thresh, topk_per_image)
        results.append(_detections(size, corners, values, groups, kept))
        rows.append(kept // classes)
    return results, rows


def _detections(
    size: Size, boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, kept: torch.Tensor
) -> Instances:
    """Detections in fixed rows, by the indices of :func:`suppress`."""
    result = Instances(size)
    result.pred_boxes = Boxes(_take(boxes, kept))
    result.scores = _take(scores, kept, EMPTY)
    result.pred_classes = _take(classes, kept)
    return result


def inference_single_image(
    self: RetinaNet,
    anchors: list[Boxes],
    box_cls: list[torch.Tensor],
    box_delta: list[torch.Tensor],
    image_size: Size,
) -> Instances:
    """``RetinaNet``'s method of that name, with ``max_detections_per_image`` rows."""
    boxes, scores, classes = [], [], []
    for level, values, deltas in zip(anchors, box_cls, box_delta, strict=True):
        found = torch.where(values > self.test_score_thresh, values, -torch.inf).flatten()
        best, at = _best(found, self.test_topk_candidates)
        row = at // self.num_classes
        boxes.append(self.box2box_transform.apply_deltas(deltas[row], level.tensor[row]))
        scores.append(best)
        classes.append(at % self.num_classes)
    corners, values, groups = torch.cat(boxes), torch.cat(scores), torch.cat(classes)
    rows = self.max_detections_per_image
    kept = suppress(corners, values, groups, values.isfinite(), self.test_nms_thresh, rows)
    return _detections(image_size, corners, values, groups, kept)


def pool(self: ROIPooler, x: list[torch.Tensor], box_lists: list[Boxes]) -> torch.Tensor:
    """``ROIPooler.forward``, which looks at the number of boxes.

    Boxes are grouped by level: to pool each on all levels would be four times the work.
    """
    indexed = [F.pad(boxes.tensor, (1, 0), value=at) for at, boxes in enumerate(box_lists)]
    boxes = torch.cat(indexed)
    if len(self.level_poolers) == 1:
        return self.level_poolers[0](x[0], boxes)
    limits = (self.min_level, self.max_level)
    levels = assign_boxes_to_levels(
        box_lists, *limits, self.canonical_box_size, self.canonical_level
    )
    pooled = x[0].new_zeros((len(boxes), x[0].shape[1], *self.output_size))
    for level, (features, pooler) in enumerate(zip(x, self.level_poolers, strict=True)):
        at = (levels == level).nonzero()[:, 0]
        pooled = pooled.index_put((at,), pooler(features, boxes[at]))
    return pooled


@contextmanager
def exportable() -> Iterator[None]:
    """Detectron2 with the functions above in place of its own; they are put back at the end."""
    replaced = (
        (rpn, "find_top_rpn_proposals", find_top_rpn_proposals),
        (fast_rcnn, "fast_rcnn_inference", fast_rcnn_inference),
        (cascade_rcnn, "fast_rcnn_inference", fast_rcnn_inference),
        (RetinaNet, "inference_single_image", inference_single_image),
        (ROIPooler, "forward", pool),
        (Boxes, "clip", clip),
    )
    with ExitStack() as stack:
        for owner, name, function in replaced:
            stack.enter_context(mock.patch.object(owner, name, function))
        yield
