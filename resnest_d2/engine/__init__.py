"""Training and evaluation on top of Detectron2's engine."""

from ..commands.errors import one_line_errors
from ..config.load import choose_device, load_config
from ..evaluation.evaluators import build_evaluator, check_datasets
from .launch import train_or_evaluate
from .trainer import Trainer

__all__ = [
    "Trainer",
    "build_evaluator",
    "check_datasets",
    "choose_device",
    "load_config",
    "one_line_errors",
    "train_or_evaluate",
]
