"""Evaluation of a trained model on the test sets of its config."""

from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from torch import nn

from ..modeling.detector import build_detector
from ..weights import Checkpoint, load_weights
from .trainer import Trainer, with_augmentation


def load_for_evaluation(cfg: CfgNode, checkpoint: Checkpoint | str) -> nn.Module:
    """Build a config's model and load weights.

    Args:
        cfg: the config.
        checkpoint: opened, or its path.

    Raises:
        InputError: as :func:`~resnest_d2.weights.load_weights`; or ``TEST.AUG`` is for a model that
            Detectron2 cannot augment.
    """
    model = build_detector(cfg).eval()
    if cfg.TEST.AUG.ENABLED:
        with_augmentation(cfg, model)  # fail before the evaluation that comes first
    load_weights(model, checkpoint)
    return model


def evaluate_model(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """Evaluate on a config's test sets, and again with ``TEST.AUG`` if that is enabled.

    Returns:
        metrics by task.
    """
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
