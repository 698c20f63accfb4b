"""Evaluators by the type of a data set."""

from .evaluators import build_evaluator, check_datasets

__all__ = ["build_evaluator", "check_datasets"]
