"""Parameters and multiply-adds of a model, counted on shapes alone: no weights, no arithmetic.

Counts what dominates a detector's time, by fvcore's conventions: one for each multiply-add of a
convolution (plain, transposed, deformable, with the convolution of its offsets) or fully connected
layer, two for each value that a batch norm puts out. Not counted are activations, pooling,
resizing, the products of split attention with its weights, RoIAlign and NMS.

The counter is PyTorch's. fvcore's needs a trace, and on the meta device a trace fails inside
PyTorch's shape functions.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import GeneralizedRCNN, RetinaNet, SemanticSegmentor, build_backbone
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnest_d2.modeling.detector import build_detector

# Image sizes by INPUT.MIN_SIZE_TEST: what detectors are usually counted at, an image of 4:3, and
# the digits' own size.
IMAGE_SIZES: dict[int, tuple[int, int]] = {800: (800, 1333), 512: (512, 683), 128: (128, 128)}


@dataclass(frozen=True)
class Cost:
    """What one model takes for one image."""

    parameters: int
    """Weights and biases; those of frozen batch norms too, which are buffers there."""
    parts: dict[str, int]
    """Multiply-adds of each part of the model."""
    image_size: tuple[int, int]
    """Height and width of the image in pixels, before padding."""
    proposals: int = 0
    """Boxes that go through each box head; 0 where there is none."""
    detections: int = 0
    """Boxes that go through the mask or keypoint head; 0 where there is none."""

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole model."""
        return sum(self.parts.values())


def detector_cost(cfg: CfgNode, image_size: tuple[int, int] | None = None) -> Cost:
    """Count a whole model.

    How many boxes there are depends on the image; counted is the most that the config lets through:
    ``RPN.POST_NMS_TOPK_TEST`` proposals in every box head, ``TEST.DETECTIONS_PER_IMAGE`` detections
    in the mask and keypoint heads, and for PointRend all points that it subdivides.

    Args:
        cfg: a config of the zoo or one like it.
        image_size: height and width in pixels, padded as Detectron2 pads; None takes that of
            :data:`IMAGE_SIZES`.

    Raises:
        KeyError: :data:`IMAGE_SIZES` has none for the config's ``INPUT.MIN_SIZE_TEST``.
        TypeError: a kind of model that this function does not know.
    """
    image_size = image_size or IMAGE_SIZES[cfg.INPUT.MIN_SIZE_TEST]
    model = _build(cfg)
    if not isinstance(model, GeneralizedRCNN | RetinaNet | SemanticSegmentor):
        raise TypeError(f"a {type(model).__name__} cannot be counted")
    stride = max(model.backbone.size_divisibility, 1)  # as ImageList pads; 0 is for no padding
    padded = [-(-side // stride) * stride for side in image_size]
    parts: dict[str, int] = {}
    proposals = detections = 0
    parts["backbone"], features = count_call(model.backbone, _empty(1, 3, *padded))
    if isinstance(model, RetinaNet):
        inputs = [features[name] for name in model.head_in_features]
        parts["dense head"], _ = count_call(model.head, inputs)
    if isinstance(model, GeneralizedRCNN):  # PanopticFPN is one too
        generator = model.proposal_generator
        inputs = [features[name] for name in generator.in_features]
        parts["proposals"], _ = count_call(generator.rpn_head, inputs)
        proposals = generator.post_nms_topk[False]
        most = _stages(model.roi_heads.box_predictor)[-1].test_topk_per_image
        parts |= _count_roi_heads(model, proposals, most)
        detections = most if {"masks", "keypoints"} & set(parts) else 0
    if hasattr(model, "sem_seg_head"):
        parts["semantic head"], _ = count_call(model.sem_seg_head, features, None)
    return Cost(_parameters(model), parts, image_size, proposals, detections)


def backbone_cost(cfg: CfgNode) -> Cost:
    """Count the backbone alone, without pyramid or classifier, on 224x224 pixels."""
    backbone = _build(cfg, build_backbone)
    backbone = getattr(backbone, "bottom_up", backbone)
    macs, _ = count_call(backbone, _empty(1, 3, 224, 224))
    return Cost(_parameters(backbone), {"backbone": macs}, (224, 224))


def count_macs(backbone: nn.Module, image_size: tuple[int, int]) -> int:
    """Multiply-adds of a backbone as it is, for one image of a height and width in pixels."""
    return count_call(copy.deepcopy(backbone).to("meta"), _empty(1, 3, *image_size))[0]


def count_call(function: Callable[..., Any], *inputs: Any) -> tuple[int, Any]:
    """Multiply-adds of a call, and what it returns."""
    formulas = {
        torch.ops.torchvision.deform_conv2d: _deform_conv_flops,
        torch.ops.aten._native_batch_norm_legit_no_training: _batch_norm_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with torch.no_grad(), counter:
        output = function(*inputs)
    return counter.get_total_flops() // 2, output  # it counts a multiply-add as two


def _build(cfg: CfgNode, builder: Callable[[CfgNode], nn.Module] = build_detector) -> nn.Module:
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return builder(cfg).eval()


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _deform_conv_flops(
    x_shape: Sequence[int], weight_shape: Sequence[int], *args, out_shape: Sequence[int], **kwargs
) -> int:
    """As the convolution that it is at offsets of zero; sampling is not counted."""
    batch, _, height, width = out_shape
    return 2 * math.prod(weight_shape) * batch * height * width


def _batch_norm_flops(x_shape: Sequence[int], *args, **kwargs) -> int:
    """Of the core operator that a batch norm in evaluation is decomposed into."""
    return 2 * 2 * math.prod(x_shape)


def _parameters(model: nn.Module) -> int:
    frozen = (m for m in model.modules() if isinstance(m, FrozenBatchNorm2d))
    buffers = sum(norm.weight.numel() + norm.bias.numel() for norm in frozen)
    return buffers + sum(parameter.numel() for parameter in model.parameters())


def _stages(module: nn.Module) -> list[nn.Module]:
    """Cascade R-CNN has a list of heads, one a stage."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _count_roi_heads(model: GeneralizedRCNN, proposals: int, detections: int) -> dict[str, int]:
    heads = model.roi_heads
    channels = {name: shape.channels for name, shape in model.backbone.output_shape().items()}

    def pooled(boxes: int, features: Sequence[str], size: tuple[int, int]) -> torch.Tensor:
        return _empty(boxes, channels[features[0]], *size)

    boxes = pooled(proposals, heads.box_in_features, heads.box_pooler.output_size)
    stages = zip(_stages(heads.box_head), _stages(heads.box_predictor), strict=True)
    parts = {"boxes": sum(count_call(nn.Sequential(*stage), boxes)[0] for stage in stages)}
    if heads.keypoint_on:
        inputs = pooled(detections, heads.keypoint_in_features, heads.keypoint_pooler.output_size)
        parts["keypoints"], _ = count_call(heads.keypoint_head.layers, inputs)
    if heads.mask_on and heads.mask_pooler is None:
        parts["masks"] = _count_point_rend(heads.mask_head, channels, detections)
    elif heads.mask_on:
        inputs = pooled(detections, heads.mask_in_features, heads.mask_pooler.output_size)
        masks = _stages(heads.mask_head)
        parts["masks"] = sum(count_call(head.layers, inputs)[0] for head in masks)
    return parts


def _count_point_rend(head: nn.Module, channels: dict[str, int], detections: int) -> int:
    """Detectron2's ``PointRendMaskHead``: a coarse mask, then logits at points in growing grids."""
    pooled = sum(channels[name] for name in head.roi_pooler_in_features)
    size = head.roi_pooler_size
    macs, coarse = count_call(head.coarse_head, _empty(detections, pooled, size, size))
    if not head.mask_point_on:
        return macs
    side = head.mask_point_subdivision_init_resolution
    points = side**2
    for _ in range(head.mask_point_subdivision_steps):
        side *= 2
        points += min(side**2, head.mask_point_subdivision_num_points)
    fine = sum(channels[name] for name in head.mask_point_in_features)
    inputs = (_empty(detections, n, points) for n in (fine, coarse.shape[1]))
    return macs + count_call(head.point_head, *inputs)[0]
