"""Training and evaluation on top of Detectron2's engine."""

from ..config.load import choose_device, load_config
from ..evaluation import build_evaluator, check_datasets
from .options import TrainingOptions
from .trainer import Trainer

__all__ = [
    "Trainer",
    "TrainingOptions",
    "build_evaluator",
    "check_datasets",
    "choose_device",
    "load_config",
]
