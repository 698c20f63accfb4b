"""Compiling a detector's backbone with Inductor."""

import logging
from typing import Any

import torch
import torch._inductor.config
import torch.fx.experimental._config
from detectron2.modeling import Backbone
from torch import nn

logger = logging.getLogger(__name__)


class _CompiledCall:
    """A module's call, compiled when it first runs; copies and pickles of a model leave it out.

    For the first size of image Inductor pre-packs the weights, which pays off for a camera's
    pictures. At another size PyTorch compiles with height and width as symbols.
    """

    def __init__(self, module: nn.Module) -> None:
        self.compiled = torch.compile(module._call_impl)

    @torch.no_grad()  # weights are only frozen without gradients
    def __call__(self, image: torch.Tensor) -> Any:
        # As options of torch.compile these would not reach Dynamo, which reads them as it traces.
        with (
            torch._inductor.config.patch(freezing=True),
            torch.fx.experimental._config.patch(use_duck_shape=False),  # squares are not special
        ):
            return self.compiled(image.contiguous())  # strides would be a compilation each


def compile_model(model: nn.Module) -> None:
    """Compile the backbone of a model, or the model if it is one, in place with Inductor.

    Weights are frozen into the code, so the model must not be trained afterwards, and loading into
    it raises ``ValueError``. There is a compilation for the first size of image and one for others.
    PyTorch adds a few, as small images, squares, batches, autocast and ``torch.inference_mode()``
    ask for other code. State-dict names stay as they are; a copy that is saved is not compiled.

    Raises:
        ValueError: there is no backbone.
    """
    backbone = next((m for m in model.modules() if isinstance(m, Backbone)), None)
    if backbone is None:
        raise ValueError(f"there is no backbone to compile in a {type(model).__name__}")
    # Where nn.Module.compile() puts its result.
    backbone._compiled_call_impl = _CompiledCall(backbone)
    backbone.register_load_state_dict_pre_hook(_refuse_to_load)
    logger.info("%s is compiled when it first runs, which takes minutes", type(backbone).__name__)


def _refuse_to_load(backbone: nn.Module, *_: Any) -> None:
    if backbone._compiled_call_impl is not None:
        raise ValueError(
            "a compiled model keeps the weights it was compiled with: load them into the model "
            "first, then call optimize_for_inference(model, compile=True)"
        )
