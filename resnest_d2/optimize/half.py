"""Half precision for inference, where it costs little accuracy: features, not coordinates."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import nn

from ..modeling.deform_conv import DeformConv2d
from ..modeling.split_attention import HALF, SplitAttentionConv2d

logger = logging.getLogger(__name__)

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
# Parts of detectors by their names in Detectron2, with the method that computes features.
PARTS = {
    "rpn_head": "forward",
    "head": "forward",  # of RetinaNet
    "box_head": "forward",
    "mask_head": "layers",
    "keypoint_head": "layers",
    "sem_seg_head": "layers",
}


class _InHalf:
    """A method of a module that runs under autocast and returns fp32.

    Detectron2 rounds boxes to the type of the features that they are pooled from, and half
    precision would move them by pixels.
    """

    def __init__(self, module: nn.Module, method: str, dtype: torch.dtype) -> None:
        self._module, self._method, self._dtype = module, method, dtype

    def __call__(self, *args: Any, **options: Any) -> Any:
        device = next(self._module.parameters()).device.type
        with torch.autocast(device, self._dtype):
            outputs = getattr(type(self._module), self._method)(self._module, *args, **options)
        return _to_float(outputs)


def _to_float(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in HALF else value
    if isinstance(value, dict):
        return {name: _to_float(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_float(part) for part in value)
    return value


def check_half(model: nn.Module, dtype: torch.dtype) -> None:
    """See that a model can run in half precision; a warning says if that will be slower.

    Raises:
        ValueError: the type is none of half precision, or float16 on a CPU.
    """
    if dtype not in HALF:
        raise ValueError(f"dtype must be torch.bfloat16, torch.float16 or None, got {dtype}")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return
    if dtype is torch.float16:
        raise ValueError("dtype torch.float16 is for GPUs; CPUs take torch.bfloat16")
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        logger.warning("This CPU has no AVX512: it will be slower in bfloat16 than in float32")


def use_half(model: nn.Module, dtype: torch.dtype) -> None:
    """Run backbone and heads of a detector, or a backbone, in half precision, in place.

    Attention logits, deformable convolutions, the decoding of boxes, pooling and non-maximum
    suppression stay in fp32. Weights of convolutions and linear layers are cast once.
    """
    for module, method in list(_parts(model)):
        setattr(module, method, _InHalf(module, method, dtype))
        attentions = [m for m in module.modules() if isinstance(m, SplitAttentionConv2d)]
        in_fp32 = {id(layer) for m in attentions for layer in (m.fc1, m.fc2)}
        for layer in module.modules():
            is_wide = isinstance(layer, DeformConv2d) or id(layer) in in_fp32
            if isinstance(layer, LAYERS) and not is_wide:
                layer.to(dtype)


def _parts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    if isinstance(model, Backbone):
        yield model, "forward"
        return
    for name, module in model.named_modules():
        if isinstance(module, Backbone) and name.endswith("backbone"):
            yield module, "forward"
        parent, _, last = name.rpartition(".")
        if last.isdigit():  # a stage of a cascade
            last = parent.rpartition(".")[2]
        method = PARTS.get(last)
        if method and not isinstance(module, nn.ModuleList) and hasattr(type(module), method):
            yield module, method
