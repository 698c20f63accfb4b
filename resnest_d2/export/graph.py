"""The part of a detector that goes into a file: from one image to boxes in fixed rows."""

from collections.abc import Mapping, Sequence

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, Instances
from torch import nn

from ..config import InputError
from ..modeling.roi_heads import AveragingCascadeROIHeads
from .functions import (
    Detections,
    Size,
    best_dense_detections,
    best_detections,
    best_proposals,
    clip,
    pool,
)

OUTPUTS = ("boxes", "scores", "classes", "masks")
# Backbones that ask for none get this one, so that an image of any size has whole features.
STRIDE = 32

Features = Mapping[str, torch.Tensor]


def stride_of(model: nn.Module) -> int:
    """Return the number that height and width of the graph's image are multiples of."""
    return max(model.backbone.size_divisibility, STRIDE)


def least_side(model: nn.Module) -> int:
    """Least height and width of the graph's image: all features have two rows and columns then.

    ``torch.export`` takes a single one for another case, which its graph does not hold.
    """
    stride = stride_of(model)
    coarsest = max(shape.stride or 1 for shape in model.backbone.output_shape().values())
    return max(2, coarsest // stride + 1) * stride


def last_predictor(model: nn.Module) -> nn.Module:
    """The layer that holds a detector's ``test_score_thresh`` and ``test_nms_thresh``."""
    if isinstance(model, RetinaNet):
        return model
    predictors = model.roi_heads.box_predictor
    return predictors[-1] if isinstance(predictors, nn.ModuleList) else predictors


def most_detections(model: nn.Module) -> int:
    """A detector's ``TEST.DETECTIONS_PER_IMAGE``, the rows of the graph's outputs."""
    if isinstance(model, RetinaNet):
        return model.max_detections_per_image
    return last_predictor(model).test_topk_per_image


def _reason_against(model: nn.Module) -> str:
    """What keeps a model from being exported, "" if nothing does."""
    if type(model) is RetinaNet:
        heads = []
    elif type(model) is not GeneralizedRCNN:
        return f"a model of type {type(model).__name__}"
    elif not isinstance(model.roi_heads, StandardROIHeads):
        return f"ROI heads of type {type(model.roi_heads).__name__}"
    elif type(model.proposal_generator) is not RPN:
        return f"proposals of type {type(model.proposal_generator).__name__}"
    elif model.roi_heads.keypoint_on:
        return "a keypoint head"
    else:
        heads = _mask_heads(model.roi_heads)
    for head in heads:
        if not isinstance(head, BaseMaskRCNNHead):
            return f"a mask head of type {type(head).__name__}"
    if most_detections(model) > 0:
        return ""
    return "a model without a limit of detections (TEST.DETECTIONS_PER_IMAGE)"


class DetectorGraph(nn.Module):
    """A detector as a function of one image, which ``torch.export`` and ``torch.jit.trace`` follow.

    It calls the model's layers, and :mod:`resnest_d2.export.functions` in place of the code of
    Detectron2 that chooses boxes.

    Args:
        model: a detector in evaluation mode.

    Raises:
        InputError: the model is of a kind that this graph does not hold.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if reason := _reason_against(model):
            raise InputError(f"{reason} cannot be exported: docs/export.md lists what can")
        self.model = model
        has_masks = not isinstance(model, RetinaNet) and model.roi_heads.mask_on
        self.names = OUTPUTS if has_masks else OUTPUTS[:3]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Detect.

        Args:
            image: shape (3, H, W), multiples of the stride; 0 to 255, in the model's colours.

        Returns:
            boxes (N, 4) in pixels of the image, scores (N,), classes (N,) int64, and, where the
            model has them, probabilities of masks (N, 28, 28); scores of empty rows are -1.
        """
        model, size = self.model, (image.shape[-2], image.shape[-1])
        features = model.backbone(((image - model.pixel_mean) / model.pixel_std)[None])
        if isinstance(model, RetinaNet):
            return tuple(_detect_densely(model, features))
        proposals = _propose(model.proposal_generator, features, size)
        found = _detect(model.roi_heads, features, proposals, size)
        masks = (_masks(model.roi_heads, features, found, size),) if model.roi_heads.mask_on else ()
        return (*found, *masks)


def _propose(rpn: RPN, features: Features, size: Size) -> torch.Tensor:
    """Proposals of one image, shape (N, 4)."""
    levels = [features[name] for name in rpn.in_features]
    logits, deltas = rpn.rpn_head(levels)
    boxes = _decode(rpn, levels, deltas)
    # The two numbers of rows are by whether the model trains.
    limits = (rpn.nms_thresh, rpn.pre_nms_topk[False], rpn.post_nms_topk[False], rpn.min_box_size)
    return best_proposals(boxes, [_by_anchor(one, 1)[:, 0] for one in logits], size, *limits)


def _by_anchor(values: torch.Tensor, number: int) -> torch.Tensor:
    """Turn what a head says of one image, (1, A * number, H, W), into (H * W * A, number)."""
    return values[0].unflatten(0, (-1, number)).permute(2, 3, 0, 1).reshape(-1, number)


def _decode(
    owner: RPN | RetinaNet, levels: Sequence[torch.Tensor], deltas: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Boxes (A, 4) of each level, by the owner's anchors."""
    anchors = owner.anchor_generator(levels)
    pairs = [(_by_anchor(delta, 4), at.tensor) for delta, at in zip(deltas, anchors, strict=True)]
    return [owner.box2box_transform.apply_deltas(*pair) for pair in pairs]


def _detect_densely(model: RetinaNet, features: Features) -> Detections:
    levels = [features[name] for name in model.head_in_features]
    logits, deltas = model.head(levels)
    boxes = _decode(model, levels, deltas)
    scores = [_by_anchor(one, model.num_classes).sigmoid() for one in logits]
    limits = (model.test_score_thresh, model.test_nms_thresh)
    rows = (model.test_topk_candidates, model.max_detections_per_image)
    return best_dense_detections(boxes, scores, *limits, *rows)


def _detect(
    heads: StandardROIHeads, features: Features, boxes: torch.Tensor, size: Size
) -> Detections:
    """Detections among proposals (N, 4), in one stage or in those of a cascade."""
    levels = [features[name] for name in heads.in_features]
    stages = [(heads.box_head, heads.box_predictor)]
    if isinstance(heads, CascadeROIHeads):
        stages = list(zip(heads.box_head, heads.box_predictor, strict=True))
    logits, probabilities = [], []
    for stage, (head, predictor) in enumerate(stages):
        if stage:
            boxes = clip(boxes, size)
        proposals = Instances(size, proposal_boxes=Boxes(boxes))
        predictions = predictor(head(pool(heads.box_pooler, levels, boxes)))
        (boxes,) = predictor.predict_boxes(predictions, [proposals])
        logits.append(predictions[0])
        probabilities += predictor.predict_probs(predictions, [proposals])
    if isinstance(heads, AveragingCascadeROIHeads):
        scores = torch.softmax(sum(logits) / len(logits), dim=-1)
    else:
        scores = sum(probabilities) * (1.0 / len(probabilities))
    limits = (predictor.test_score_thresh, predictor.test_nms_thresh)
    return best_detections(boxes, scores, size, *limits, predictor.test_topk_per_image)


def _mask_heads(heads: StandardROIHeads) -> list[nn.Module]:
    """One for each stage of a cascade that averages, or one, or none."""
    if not heads.mask_on:
        return []
    several = isinstance(heads, AveragingCascadeROIHeads)
    return list(heads.mask_head) if several else [heads.mask_head]


def _masks(
    heads: StandardROIHeads, features: Features, found: Detections, size: Size
) -> torch.Tensor:
    """Probabilities of masks, shape (N, 28, 28), the mean of all mask heads."""
    levels = [features[name] for name in heads.mask_in_features]
    pooled = pool(heads.mask_pooler, levels, found.boxes)
    instances = Instances(size, pred_classes=found.classes)
    masks = [head(pooled, [instances])[0].pred_masks[:, 0] for head in _mask_heads(heads)]
    return torch.stack(masks).mean(0)
