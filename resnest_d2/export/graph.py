"""The part of a detector that goes into a file: from one image to boxes in fixed rows."""

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import ImageList, Instances
from torch import nn

from ..config import InputError
from .functions import exportable

OUTPUTS = ("boxes", "scores", "classes", "masks")
# Backbones that ask for none get this one, so that an image of any size has whole features.
STRIDE = 32


def stride_of(model: nn.Module) -> int:
    """Return the number that height and width of the graph's image are multiples of."""
    return max(getattr(backbone_of(model), "size_divisibility", 0), STRIDE)


def least_side(model: nn.Module) -> int:
    """Least height and width of the graph's image: all features have two rows and columns then.

    ``torch.export`` takes a single one for another case, which its graph does not hold.
    """
    stride = stride_of(model)
    coarsest = max(shape.stride or 1 for shape in backbone_of(model).output_shape().values())
    return max(2, coarsest // stride + 1) * stride


def backbone_of(model: nn.Module) -> Backbone:
    """A detector's backbone.

    Raises:
        InputError: it has none.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise InputError(f"a {type(model).__name__} has no backbone that can be exported")
    return backbone


def check_exportable(model: nn.Module) -> None:
    """Refuse what no graph of this package holds.

    Raises:
        InputError: the model is of another kind; the message says what can be exported of it.
    """
    reason = _reason_against(model)
    if reason:
        raise InputError(
            f"{reason} cannot be exported; --backbone exports the model's backbone alone"
        )


def _reason_against(model: nn.Module) -> str:
    colours = getattr(model, "input_format", None)
    if colours not in ("RGB", "BGR", None):
        return f"a model of the colours {colours}"
    if type(model) is RetinaNet:
        return ""
    if type(model) is not GeneralizedRCNN:
        return f"a model of type {type(model).__name__}"
    heads = model.roi_heads
    if not isinstance(heads, StandardROIHeads | Res5ROIHeads):
        return f"ROI heads of type {type(heads).__name__}"
    if type(model.proposal_generator) is not RPN:
        return f"proposals of type {type(model.proposal_generator).__name__}"
    if getattr(heads, "keypoint_on", False):
        return "a keypoint head"
    masks = heads.mask_head if getattr(heads, "mask_on", False) else []
    for head in masks if isinstance(masks, nn.ModuleList | list) else [masks]:
        if not isinstance(head, BaseMaskRCNNHead):
            return f"a mask head of type {type(head).__name__}"
    predictors = heads.box_predictor
    last = predictors[-1] if isinstance(predictors, nn.ModuleList) else predictors
    if last.test_topk_per_image < 0:
        return "a model without a limit of detections (TEST.DETECTIONS_PER_IMAGE)"
    return ""


class DetectorGraph(nn.Module):
    """A detector as a function of one image.

    Args:
        model: a detector in evaluation mode that :func:`check_exportable` lets pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_exportable(model)
        self.model = model
        has_masks = getattr(getattr(model, "roi_heads", None), "mask_on", False)
        self.names = OUTPUTS if has_masks else OUTPUTS[:3]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Detect.

        Args:
            image: shape (3, H, W), multiples of the stride; 0 to 255, in the model's colours.

        Returns:
            boxes (N, 4) in pixels of the image, scores (N,), classes (N,) int64, and, where the
            model has them, probabilities of masks (N, 28, 28); scores of empty rows are -1.
        """
        with exportable():
            found = instances_of(self.model, image)
        outputs = (found.pred_boxes.tensor, found.scores, found.pred_classes)
        return (*outputs, found.pred_masks[:, 0]) if len(self.names) > 3 else outputs


class BackboneGraph(nn.Module):
    """A detector's backbone, and its pyramid, as a function of one image.

    Args:
        model: any model of Detectron2 that has a backbone and normalises images.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone_of(model)
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        self.names = tuple(self.backbone.output_shape())

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features, each of shape (1, C, H / stride, W / stride), in the order of ``names``."""
        features = self.backbone(((image - self.mean) / self.std)[None])
        return tuple(features[name] for name in self.names)


def instances_of(model: nn.Module, image: torch.Tensor) -> Instances:
    """Detections of one image that needs no padding, as the model's own code finds them."""
    pixels = ((image - model.pixel_mean) / model.pixel_std)[None]
    features = model.backbone(pixels)
    images = ImageList(pixels, [(image.shape[-2], image.shape[-1])])
    if isinstance(model, RetinaNet):
        features = [features[name] for name in model.head_in_features]
        return model.forward_inference(images, features, model.head(features))[0]
    proposals, _ = model.proposal_generator(images, features, None)
    return model.roi_heads(images, features, proposals, None)[0][0]
