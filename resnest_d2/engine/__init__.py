"""Training and evaluation on top of Detectron2's engine."""

from .errors import one_line_errors
from .evaluation import build_evaluator, check_datasets
from .launch import train_or_evaluate
from .setup import choose_device, load_config
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
