"""Evaluators by the type of a data set."""

from .coco import CocoEvaluator
from .evaluators import build_evaluator, check_datasets, tasks_of

__all__ = ["CocoEvaluator", "build_evaluator", "check_datasets", "tasks_of"]
