"""Heads of regions: MMDetection's cascade with a mask head a stage, and C4 heads of ResNeSt."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    Res5ROIHeads,
    fast_rcnn,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads  # Detectron2 0.3: here alone
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import nn

from ..config import ConfigError
from .build import build_resnest_backbone

# MMDetection's cascades have these, as the Cascade R-CNN paper's implementation has.
STAGE_LOSS_WEIGHTS = (1.0, 0.5, 0.25)


@ROI_HEADS_REGISTRY.register()
class AveragingCascadeROIHeads(CascadeROIHeads):
    """Cascade R-CNN as MMDetection has it (``cascade_roi_head.py``).

    It differs from ``CascadeROIHeads`` in this: classes are scored by the softmax of the stages'
    mean logits, not by the mean of their probabilities; every stage has its own mask head, trained
    on that stage's boxes, and their probabilities are averaged; later stages weigh less in the
    loss, and gradients reach the features unscaled.

    Args:
        stage_loss_weights: of the losses of each stage, first to last.

    Raises:
        ConfigError: not as many weights or mask heads as stages.
    """

    @configurable
    def __init__(
        self, *, stage_loss_weights: tuple[float, ...] = STAGE_LOSS_WEIGHTS, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        heads = len(self.mask_head) if self.mask_on else self.num_cascade_stages
        if {len(stage_loss_weights), heads} != {self.num_cascade_stages}:
            raise ConfigError(
                f"a cascade of {self.num_cascade_stages} stages takes as many mask heads and loss "
                f"weights, got {heads} and {len(stage_loss_weights)}: shorten "
                "MODEL.ROI_BOX_CASCADE_HEAD.IOUS"
            )
        self.stage_loss_weights = stage_loss_weights

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments from a config."""
        weights = STAGE_LOSS_WEIGHTS[: len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS)]
        return {**super().from_config(cfg, input_shape), "stage_loss_weights": weights}

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        make_one, stages = super()._init_mask_head, cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS
        made = [make_one(cfg, input_shape) for _ in stages]
        if made[0]:
            made[0]["mask_head"] = nn.ModuleList([one["mask_head"] for one in made])
        return made[0]

    def _forward_box(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """Losses of boxes and masks in training, detected boxes otherwise."""
        box_features = [features[name] for name in self.box_in_features]
        sizes = [p.image_size for p in proposals]
        losses: dict[str, torch.Tensor] = {}
        logits: list[torch.Tensor] = []
        boxes: tuple[torch.Tensor, ...] = ()
        for stage in range(self.num_cascade_stages):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(box_features, proposals, stage)
            predictor = self.box_predictor[stage]
            boxes = predictor.predict_boxes(predictions, proposals)
            logits.append(predictions[0])
            if self.training:
                losses |= self._stage_losses(stage, features, predictions, proposals)
        if self.training:
            return losses
        probabilities = torch.softmax(sum(logits) / len(logits), dim=-1)
        instances, _ = fast_rcnn.fast_rcnn_inference(
            list(boxes),
            list(probabilities.split([len(p) for p in proposals])),
            sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return instances

    def _stage_losses(
        self,
        stage: int,
        features: dict[str, torch.Tensor],
        predictions: tuple[torch.Tensor, torch.Tensor],
        proposals: list[Instances],
    ) -> dict[str, torch.Tensor]:
        with get_event_storage().name_scope(f"stage{stage}"):
            losses = self.box_predictor[stage].losses(predictions, proposals)
            if self.mask_on:
                losses |= self._mask_losses(stage, features, proposals)
        weight = self.stage_loss_weights[stage]
        return {f"{name}_stage{stage}": loss * weight for name, loss in losses.items()}

    def _mask_losses(
        self, stage: int, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        foreground, _ = select_foreground_proposals(proposals, self.num_classes)
        head = self.mask_head[stage]
        pooled = self._pool_masks(features, [p.proposal_boxes for p in foreground])
        loss = mask_rcnn_loss(head.layers(pooled), foreground, head.vis_period)
        return {"loss_mask": loss * head.loss_weight}

    def _pool_masks(self, features: dict[str, torch.Tensor], boxes: list) -> torch.Tensor:
        return self.mask_pooler([features[name] for name in self.mask_in_features], boxes)

    def _forward_mask(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """Masks of detected boxes; in training each stage has had its masks with its boxes."""
        if self.training:
            return {}
        if not self.mask_on:
            return instances
        pooled = self._pool_masks(features, [i.pred_boxes for i in instances])
        masks: list[list[torch.Tensor]] = [[] for _ in instances]
        for head in self.mask_head:
            mask_rcnn_inference(head.layers(pooled), instances)
            for found, instance in zip(masks, instances, strict=True):
                found.append(instance.pred_masks)
        for found, instance in zip(masks, instances, strict=True):
            instance.pred_masks = torch.stack(found).mean(0)
        return instances

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """As the base class does, and bring the masks of the matched objects."""
        proposals = super()._match_and_label_boxes(proposals, stage, targets)
        for boxes, target in zip(proposals, targets, strict=True):
            if self.mask_on and target.has("gt_masks") and len(target):
                overlaps = pairwise_iou(target.gt_boxes, boxes.proposal_boxes)
                matched, _ = self.proposal_matchers[stage](overlaps)
                boxes.gt_masks = target.gt_masks[matched]
        return proposals

    def _run_stage(
        self, features: list[torch.Tensor], proposals: list[Instances], stage: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The base class divides the gradients by the number of stages; the loss weights do that.
        pooled = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled))


@ROI_HEADS_REGISTRY.register()
class ResNeStRes5ROIHeads(Res5ROIHeads):
    """``Res5ROIHeads``, the heads of Detectron2's C4 models, whose res5 is a ResNeSt's."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        """The stage of the backbone that the config describes, and its output channels."""
        cfg = cfg.clone()
        # Detectron2 freezes stages of the backbone, not of the heads.
        cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", ["res5"], "MODEL.BACKBONE.FREEZE_AT", 0])
        backbone = build_resnest_backbone(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
        return backbone.res5, backbone.output_shape()["res5"].channels
