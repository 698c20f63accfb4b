"""Compiling a detector's backbone without a compilation for every size of image."""

import logging
import threading
from typing import Any

import torch
import torch._inductor.config
import torch.fx.experimental._config
from detectron2.modeling import Backbone
from torch import nn

logger = logging.getLogger(__name__)

# Smaller images cross PyTorch's oneDNN threshold layer by layer, and each crossing recompiles.
SMALLEST_COMPILED = 320 * 320
# The settings that a compilation needs are the process's, so one model compiles at a time.
_COMPILING = threading.Lock()


class _CompiledCall:
    """A module's call, compiled for the first size that it meets, and once for all others.

    For a fixed size Inductor pre-packs the weights, which pays off for a camera's pictures; the
    second function has height and width as symbols. Small images other than the first size run
    uncompiled.
    """

    def __init__(self, module: nn.Module) -> None:
        self.first_size: torch.Size | None = None
        self.known: set[tuple[Any, ...]] = set()
        self.plain = module._call_impl
        self.of_one_size = torch.compile(module._call_impl, dynamic=False)
        self.of_all_sizes = torch.compile(module._call_impl, dynamic=True)

    @torch.no_grad()  # weights are only frozen without gradients
    def __call__(self, image: torch.Tensor) -> Any:
        image = image.contiguous()  # strides would be a compilation each
        if self._case(image) in self.known or self._stays_plain(image):
            return self._compute(image)
        # As options of torch.compile these would not reach Dynamo, which reads them as it traces.
        with (
            _COMPILING,
            torch._inductor.config.patch(freezing=True),
            torch.fx.experimental._config.patch(use_duck_shape=False),  # squares are not special
        ):
            self.first_size = self.first_size or image.shape
            features = self._compute(image)  # another thread may have been the first
            if not self._stays_plain(image):
                self.known.add(self._case(image))
        return features

    def _stays_plain(self, image: torch.Tensor) -> bool:
        is_other = self.first_size not in (None, image.shape)
        return is_other and image.shape[-2] * image.shape[-1] < SMALLEST_COMPILED

    def _case(self, image: torch.Tensor) -> tuple[Any, ...]:
        """The conditions that PyTorch compiles anew for; there are few of them."""
        device = image.device.type
        case = (image.shape == self.first_size, min(image.shape[0], 2), image.dtype, device)
        case += (torch.is_inference_mode_enabled(), torch.is_autocast_enabled(device))
        return (*case, torch.get_autocast_dtype(device))

    def _compute(self, image: torch.Tensor) -> Any:
        if self._stays_plain(image):
            return self.plain(image)
        compiled = self.of_one_size if image.shape == self.first_size else self.of_all_sizes
        return compiled(image)


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
