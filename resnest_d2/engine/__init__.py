"""Training and evaluation on top of Detectron2's engine."""

from ..config.load import choose_device, load_config
from ..evaluation import build_evaluator, check_datasets
from .trainer import Trainer

__all__ = ["Trainer", "build_evaluator", "check_datasets", "choose_device", "load_config"]
