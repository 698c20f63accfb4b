"""Evaluation of the model of a config, whichever kind that is."""

from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset, print_csv_format, verify_results
from torch import nn

from ..config.settings import EVALUATION_KEYS, Config, Settings
from ..modeling.detector import build_detector
from ..weights import load_weights
from ..weights.stored_config import weights_to_evaluate
from .stopping import leave_signals_to_the_trainer
from .trainer import Trainer, with_augmentation


def load_for_evaluation(cfg: Config, resume: bool = False) -> nn.Module:
    """Build a config's model and load its weights.

    Args:
        cfg: the config.
        resume: load the last checkpoint in the output folder instead, if there is one.

    Raises:
        FileNotFoundError: there are no such weights.
        UntrainedParametersError: the weights leave parameters untouched.
        ValueError: the weights are damaged, a LazyConfig lacks a key, a setting of the model is not
            possible, or ``TEST.AUG`` is for a model that Detectron2 cannot augment.
    """
    settings = Settings.of(cfg)
    settings.require(EVALUATION_KEYS)
    model = build_detector(settings).eval()
    if settings.get("TEST.AUG.ENABLED", False):
        with_augmentation(settings.cfg, model)  # fail before the evaluation that comes first
    load_weights(model, weights_to_evaluate(settings, resume))
    return model


def evaluate_model(cfg: Config, model: nn.Module) -> dict[str, Any]:
    """Evaluate on a config's test sets, and again with ``TEST.AUG`` if that is enabled.

    A model in training is put back into training mode.

    Returns:
        metrics by task.
    """
    settings = Settings.of(cfg)
    cfg = settings.cfg
    if settings.is_lazy:
        loader, evaluator = map(instantiate, (cfg.dataloader.test, cfg.dataloader.evaluator))
        results = inference_on_dataset(model, leave_signals_to_the_trainer(loader), evaluator)
        if comm.is_main_process():
            print_csv_format(results)
        return results
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
