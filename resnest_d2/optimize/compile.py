"""Compiling a detector's backbone without a compilation for every size of image."""

import logging
import threading
from typing import Any

import torch
import torch._dynamo.utils
import torch._inductor.config
import torch.fx.experimental._config
from detectron2.modeling import Backbone
from torch import nn

logger = logging.getLogger(__name__)


# Pixels of an image. On less, layers fall one by one under the size from which PyTorch takes oneDNN
# for a convolution, and every one that does would be a compilation.
SMALLEST_COMPILED = 320 * 320


class _CompiledCall:
    """What a module's call becomes: compiled for the first size it meets, and once for all others.

    Of one size Inductor can lay the weights out in advance, which a camera's pictures gain from;
    the second function has height and width as symbols. Small images but the first size take the
    module as it is.
    """

    def __init__(self, module: nn.Module) -> None:
        self.first_size: torch.Size | None = None
        self.known: set[tuple[Any, ...]] = set()
        self.lock = threading.Lock()
        self.plain = module._call_impl
        self.of_one_size = torch.compile(module._call_impl, dynamic=False)
        self.of_all_sizes = torch.compile(module._call_impl, dynamic=True)

    @torch.no_grad()  # weights are only frozen without gradients
    def __call__(self, image: torch.Tensor) -> Any:
        image = image.contiguous()  # strides would be a compilation each
        device = image.device.type
        # What PyTorch compiles anew for.
        setting = (image.shape, image.dtype, device, torch.is_inference_mode_enabled())
        setting += (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        if setting in self.known:
            return self._compute(image)
        # These settings are the process's. As options of torch.compile neither would reach Dynamo,
        # which reads them while it traces.
        with (
            self.lock,
            torch._inductor.config.patch(freezing=True),
            torch.fx.experimental._config.patch(use_duck_shape=False),  # squares are not special
        ):
            if self.first_size is None:
                self.first_size = image.shape
            features = self._compute(image)
            self.known.add(setting)
        return features

    def _compute(self, image: torch.Tensor) -> Any:
        if image.shape == self.first_size:
            return self.of_one_size(image)
        if image.shape[-2] * image.shape[-1] < SMALLEST_COMPILED:
            return self.plain(image)
        return self.of_all_sizes(image)


def compile_model(model: nn.Module) -> None:
    """Compile the backbone of a model, or the model if it is one, in place with Inductor.

    Weights are frozen into the code, so the model must not be trained afterwards, and loading into
    it raises ``ValueError``. There are two compilations, of the first size of image and of all
    others, and as many again for batches, under autocast and in ``torch.inference_mode()``;
    other images of less than 320x320 pixels are not compiled. State-dict names stay as they are;
    a copy that is saved is not compiled.

    Raises:
        ValueError: there is no backbone.
    """
    backbone = next((m for m in model.modules() if isinstance(m, Backbone)), None)
    if backbone is None:
        raise ValueError(f"there is no backbone to compile in a {type(model).__name__}")
    # Where nn.Module.compile() puts its result; copies and pickles leave it out.
    backbone._compiled_call_impl = _CompiledCall(backbone)
    backbone.register_load_state_dict_pre_hook(_refuse_to_load)
    logger.info("%s is compiled when it first runs, which takes minutes", type(backbone).__name__)


def _refuse_to_load(backbone: nn.Module, *_: Any) -> None:
    if backbone._compiled_call_impl is not None:
        raise ValueError(
            "a compiled model keeps the weights it was compiled with: load them into the model "
            "first, then call optimize_for_inference(model, compile=True)"
        )


def count_compilations() -> int:
    """How many graphs Dynamo has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
