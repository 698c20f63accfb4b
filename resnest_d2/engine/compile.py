"""Compiling a detector's backbone for training."""

import logging

from detectron2.config import CfgNode
from torch import nn

from ..config.keys import COMPILE

logger = logging.getLogger(__name__)


def compile_for_training(cfg: CfgNode, model: nn.Module) -> None:
    """Compile the backbone in place with ``torch.compile`` if ``MODEL.COMPILE`` says so.

    The first size of batch is compiled for as it is; the second size brings a compilation with
    symbols for what differs, as is ``torch.compile``'s default. State-dict names stay as they are.

    Raises:
        ValueError: together with ``MODEL.RESNETS.GRAD_CHECKPOINT``, around whose blocks the graph
            would break.
    """
    if not cfg.MODEL.get(COMPILE, False):
        return
    if cfg.MODEL.RESNETS.get("GRAD_CHECKPOINT", False):
        raise ValueError(
            "MODEL.COMPILE and MODEL.RESNETS.GRAD_CHECKPOINT cannot both be True: a graph cannot "
            "span blocks that are computed twice; choose speed or memory"
        )
    model.backbone.compile()
    logger.info("The backbone is compiled in the first iterations, which takes minutes")
