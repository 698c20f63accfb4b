"""Evaluation of the model of a config, whichever kind that is."""

from typing import Any

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, instantiate
from detectron2.evaluation import inference_on_dataset, print_csv_format, verify_results
from omegaconf import DictConfig
from torch import nn

from ..modeling.build import build_detector
from ..weights import load_weights
from .trainer import Trainer, with_augmentation


def get_output_dir(cfg: CfgNode | DictConfig) -> str:
    """Where a config says that results go."""
    return cfg.OUTPUT_DIR if isinstance(cfg, CfgNode) else cfg.train.output_dir


def get_weights(cfg: CfgNode | DictConfig) -> str:
    """The weights that a config names."""
    return cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.init_checkpoint


def weights_to_evaluate(cfg: CfgNode | DictConfig, resume: bool = False) -> str:
    """The weights that a config names or, with ``resume``, the last ones in its output folder."""
    checkpointer = DetectionCheckpointer(nn.Module(), get_output_dir(cfg))
    if resume and checkpointer.has_checkpoint():
        return checkpointer.get_checkpoint_file()
    return get_weights(cfg)


def load_for_evaluation(cfg: CfgNode | DictConfig, resume: bool = False) -> nn.Module:
    """Build a config's model and load its weights.

    Args:
        cfg: a config of either kind.
        resume: load the last checkpoint in the output folder instead, if there is one.

    Raises:
        FileNotFoundError: there are no such weights.
        UntrainedParametersError: the weights leave parameters untouched.
        ValueError: the weights are damaged, a setting of the model is not possible, or
            ``TEST.AUG`` is for a model that Detectron2 cannot augment.
    """
    model = build_detector(cfg).eval()
    if isinstance(cfg, CfgNode) and cfg.TEST.AUG.ENABLED:
        with_augmentation(cfg, model)  # before the evaluation that comes first
    load_weights(model, weights_to_evaluate(cfg, resume))
    return model


def evaluate_model(cfg: CfgNode | DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluate on a config's test sets, and again with ``TEST.AUG`` if that is enabled.

    Args:
        cfg: a config of either kind.
        model: its model; during training it is put back into training mode.

    Returns:
        metrics by task.
    """
    if not isinstance(cfg, CfgNode):
        loader, evaluator = map(instantiate, (cfg.dataloader.test, cfg.dataloader.evaluator))
        results = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            print_csv_format(results)
        return results
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
