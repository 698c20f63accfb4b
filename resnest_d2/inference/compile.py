"""Compiling a detector's backbone without a compilation for every size of image."""

import logging

import torch._dynamo.utils
from detectron2.modeling import Backbone
from torch import nn

logger = logging.getLogger(__name__)


def compile_model(model: nn.Module) -> None:
    """Compile the backbone of a model, or the model if it is one, in place with Inductor.

    Weights are frozen into the code, so the model must not be trained or loaded into afterwards.
    Height and width are symbols in it: one compilation serves images of all sizes, and one more
    square ones. State-dict names stay as they are; a copy that is saved is not compiled.

    Raises:
        ValueError: there is no backbone.
    """
    backbone = next((m for m in model.modules() if isinstance(m, Backbone)), None)
    if backbone is None:
        raise ValueError(f"there is no backbone to compile in a {type(model).__name__}")
    backbone.compile(dynamic=True, options={"freezing": True})
    logger.info("%s is compiled when it first runs, which takes minutes", type(backbone).__name__)


def count_compilations() -> int:
    """How many graphs Dynamo has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
