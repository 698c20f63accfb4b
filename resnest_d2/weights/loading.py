"""Loading a checkpoint and knowing what it left untouched."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

logger = logging.getLogger(__name__)

# Where training puts the names of its classes in a checkpoint.
CLASSES_KEY = "classes"


class UntrainedParametersError(ValueError):
    """Weights did not reach all of a model that is about to be used, not trained."""


class RecordingCheckpointer(DetectionCheckpointer):
    """Keeps the report on what fitted, which the base class only logs."""

    incompatible = None

    def _load_model(self, checkpoint: Any) -> Any:
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible

    def untouched(self) -> list[str]:
        """Names of the parameters and statistics that no file has reached, in the model's order."""
        states = [n for n in self.model.state_dict() if not n.endswith("num_batches_tracked")]
        if self.incompatible is None:
            return states
        shapes = {key for key, *_ in self.incompatible.incorrect_shapes}
        return [s for s in states if s in {*self.incompatible.missing_keys, *shapes}]


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
    return _load(model, path, allow_untrained)[0]


def load_detector(model: nn.Module, path: str, allow_untrained: bool = False) -> dict[str, Any]:
    """As :func:`load_weights`, and tell which classes the model was trained on.

    Returns:
        metadata under Detectron2's names (``thing_classes``, ...); empty for files that hold none,
        as all but those of this package's trainers.
    """
    return _load(model, path, allow_untrained)[1].get(CLASSES_KEY, {})


def read_classes(path: str) -> dict[str, Any]:
    """The classes that a checkpoint was trained on, without loading it into a model.

    Args:
        path: as in ``MODEL.WEIGHTS``; only files of this package's trainers, which are local and
            end in ``.pth``, are looked at.

    Returns:
        as :func:`load_detector`; empty for files that are not there or not readable.
    """
    if not path.endswith(".pth") or not os.path.isfile(path):
        return {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # loading it into the model will tell why
        return {}
    return content.get(CLASSES_KEY, {}) if isinstance(content, dict) else {}


def _load(model: nn.Module, path: str, allow_untrained: bool) -> tuple[list[str], dict[str, Any]]:
    checkpointer = RecordingCheckpointer(model)
    if not path:
        return _report(checkpointer, 'MODEL.WEIGHTS is ""', allow_untrained), {}
    is_local = "://" not in path
    if is_local and not checkpointer.path_manager.isfile(path):
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {path}")
    with checkpoint_errors(path):
        content = checkpointer.load(path)
    what = f"MODEL.WEIGHTS {path}"
    return _report(checkpointer, what, allow_untrained), content


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


def parts(names: Sequence[str]) -> str:
    """The submodules that parameters belong to, for a message: two levels say enough."""
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))


def _report(checkpointer: RecordingCheckpointer, what: str, allow_untrained: bool) -> list[str]:
    untouched = checkpointer.untouched()
    if untouched:
        shapes = checkpointer.incompatible.incorrect_shapes if checkpointer.incompatible else []
        why = ""
        if shapes:
            name, theirs, ours = shapes[0]
            why = f" ({name} has shape {theirs} in the file and {ours} in the model)"
        text = (
            f"{what} leaves {len(untouched)} parameters at random values, in {parts(untouched)}"
            f"{why}: give the checkpoint of a trained detector, and its config"
        )
        if not allow_untrained:
            raise UntrainedParametersError(text)
        logger.warning(text)
    return untouched
