"""Making a trained model fast: norms folded, attention fused, boxes pooled over all channels."""

import copy
import logging

import torch
from torch import nn

from .fold import activate_in_place, check_foldable, fold_norms
from .half import check_half, use_half
from .layers import FusedSplitAttentionConv2d, SparseROIAlign, replace_layers

logger = logging.getLogger(__name__)


def optimize_for_inference(
    model: nn.Module,
    compile: bool = False,
    memory_format: torch.memory_format | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A copy of a model that gives the same outputs in less time.

    Batch norms are folded into the convolutions before them, in backbone, pyramid and heads, also
    in deformable convolutions; ResNeSt's attention is fused; RoIAlign on CPUs takes all channels at
    once; parameters are constant. Any model in evaluation will do: detectors of any config,
    backbones, ResNets. Layers of your own, with hooks or in several places stay as they are, see
    :func:`~resnest_d2.optimize.fold.fold_norms`.

    Outputs equal the model's to rounding (1e-4 of the largest value). Load weights before: the copy
    has no norms, so its state dict fits only models that were optimised in the same way.
    ``torch.save`` and ``torch.load`` take it whole too.

    Args:
        model: in evaluation mode; it is not changed.
        compile: also compile the backbone with ``torch.compile``, see
            :func:`~resnest_d2.optimize.compile.compile_model`.
        memory_format: ``torch.contiguous_format`` or ``torch.channels_last`` for weights and
            features; None takes channels_last on CPUs and contiguous elsewhere.
        dtype: ``torch.bfloat16``, or ``torch.float16`` on GPUs, runs backbone and heads in half
            precision, see :func:`~resnest_d2.optimize.half.use_half`; outputs then differ by what
            that rounds.

    Raises:
        ValueError: the model is in training, a norm takes its statistics from the batch, or the
            type is another one.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        what = f"its part {training}" if training else "the model"
        raise ValueError(f"{what} is in training; call model.eval() before it is optimised")
    if dtype is not None:
        check_half(model, dtype)
    check_foldable(model)
    # A backbone may be an attention layer itself, whose parent is then this.
    holder = nn.ModuleList([copy.deepcopy(model)])
    attentions = replace_layers(holder, FusedSplitAttentionConv2d)
    replace_layers(holder, SparseROIAlign)
    (optimized,) = holder
    folded = fold_norms(optimized)
    activate_in_place(optimized)
    optimized.requires_grad_(False)
    logger.info("Folded %d norms, fused %d attention layers", folded, attentions)
    if memory_format is None:
        on_cpu = all(parameter.device.type == "cpu" for parameter in optimized.parameters())
        memory_format = torch.channels_last if on_cpu else torch.contiguous_format
    optimized.to(memory_format=memory_format)
    if dtype is not None:
        use_half(optimized, dtype)
    if compile:
        from .compile import compile_model  # it loads Inductor

        compile_model(optimized)
    return optimized.eval()
