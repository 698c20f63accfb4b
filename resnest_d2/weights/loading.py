"""Loading a checkpoint and knowing what it left untouched."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

logger = logging.getLogger(__name__)


class UntrainedParametersError(ValueError):
    """Weights did not reach all of a model that is about to be used, not trained."""


class _RecordingCheckpointer(DetectionCheckpointer):
    """Keeps the report on what fitted, which the base class only logs."""

    incompatible = None

    def _load_model(self, checkpoint: Any) -> Any:
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def load_weights(model: nn.Module, path: str, allow_untrained: bool = False) -> list[str]:
    """Load a checkpoint for inference.

    Args:
        model: what to load into, in place.
        path: as in ``MODEL.WEIGHTS``; "" loads nothing.
        allow_untrained: accept that parameters keep their random values, and only warn.

    Returns:
        names of the parameters and statistics that the file left untouched.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, or a damaged one.
        UntrainedParametersError: the file left something untouched.
    """
    states = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    if not path:
        return _report(states, 'MODEL.WEIGHTS is ""', allow_untrained)
    checkpointer = _RecordingCheckpointer(model)
    is_local = "://" not in path
    if is_local and not checkpointer.path_manager.isfile(path):
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {path}")
    with checkpoint_errors(path):
        checkpointer.load(path)
    incompatible = checkpointer.incompatible
    untouched = {*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)}
    return _report([s for s in states if s in untouched], f"MODEL.WEIGHTS {path}", allow_untrained)


@contextmanager
def checkpoint_errors(path: str) -> Iterator[None]:
    """Turn the many ways in which reading a damaged file fails into a ValueError that names it."""
    try:
        yield
    except (OSError, ValueError):  # these name what is wrong
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is empty"
        raise ValueError(f"MODEL.WEIGHTS {path} is no readable checkpoint: {reason}") from error


def _report(untouched: list[str], what: str, allow_untrained: bool) -> list[str]:
    if untouched:
        parts = sorted({_part(name) for name in untouched})
        text = (
            f"{what} leaves {len(untouched)} parameters at random values, in {', '.join(parts)}: "
            "give the checkpoint of a trained detector"
        )
        if not allow_untrained:
            raise UntrainedParametersError(text)
        logger.warning(text)
    return untouched


def _part(name: str) -> str:
    """The submodule to name in a message: two levels say enough."""
    return ".".join(name.split(".")[:2])
