"""Loading a checkpoint and knowing what it left untouched."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..resnest import ResNeSt
from .catalog import input_format_of
from .convert import describe_conversion, recognize, unwrap
from .handler import detectron2_checkpoint
from .input_format import from_dict, of_model, warn_if_it_differs
from .network import network_of
from .reading import UnreadableError, read_beside_weights, read_checkpoint

logger = logging.getLogger(__name__)

# Where training puts the names of its classes in a checkpoint.
CLASSES_KEY = "classes"


class UntrainedParametersError(ValueError):
    """Weights did not reach all of a model that is about to be used, not trained."""


class RecordingCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that reads every known file, and keeps the report on what fitted.

    Files are read without executing anything in them, and foreign names are converted. A file of
    another network than the model's is refused; one for other images is warned of.
    """

    incompatible = None
    _weights = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the base class; a failure leaves the checkpointer as it was.

        Raises:
            ValueError: the file is no checkpoint, or one of another network.
        """
        self._weights = path
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):  # the base class would execute what is in there
            read_checkpoint(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = read_checkpoint(f)
        try:
            _, tensors = unwrap(content)
            self._check_network(tensors)
            if recognize(tensors) is None:
                return content
            conversion = describe_conversion(content)
        except ValueError as error:
            raise ValueError(f"MODEL.WEIGHTS {self._weights}: {error}") from error
        # What training resumes from lies beside a "model"; in a bare dict all are weights.
        beside = content if conversion.container == "model" else {}
        return {**beside, **detectron2_checkpoint(conversion)}

    def _check_network(self, tensors: dict[str, torch.Tensor]) -> None:
        ours, theirs = network_of(self.model.state_dict()), network_of(tensors)
        if ours is not None and theirs is not None and not theirs.fits(ours):
            raise ValueError(f"it is of a {theirs}, the model has a {ours}")

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        states = self.model.state_dict()
        for key, value in checkpoint.get("classifier", {}).items():
            if key in states:
                checkpoint["model"][key] = value
        theirs = from_dict(checkpoint.get("input")) or input_format_of(self._weights)
        warn_if_it_differs(f"MODEL.WEIGHTS {self._weights}", theirs, of_model(self.model))
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible

    def untouched(self) -> list[str]:
        """Names of the parameters and statistics that no file has reached, in the model's order."""
        states = [n for n in self.model.state_dict() if not n.endswith("num_batches_tracked")]
        if self.incompatible is None:
            return states
        shapes = {key for key, *_ in self.incompatible.incorrect_shapes}
        return [s for s in states if s in {*self.incompatible.missing_keys, *shapes}]

    def untouched_backbone(self) -> list[str]:
        """Those of them that a ResNeSt should have had, which its DCN's offsets are not."""
        backbones = [n for n, m in self.model.named_modules() if isinstance(m, ResNeSt)]
        starts = tuple(f"{name}." if name else "" for name in backbones)
        found = [name for name in self.untouched() if name.startswith(starts)]
        return [name for name in found if "conv2_offset" not in name]


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
        path: as in ``MODEL.WEIGHTS``; only local files are looked at, for those of this package's
            trainers are.

    Returns:
        as :func:`load_detector`; empty for files that are not there or not readable.
    """
    if not os.path.isfile(path):
        return {}
    try:
        return read_beside_weights(path).get(CLASSES_KEY, {})
    except Exception:  # loading it into the model will tell why
        return {}


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
    except UnreadableError as error:
        named = "" if str(path) in str(error) else f" {path}"
        raise ValueError(f"MODEL.WEIGHTS{named}: {error}") from error
    except (OSError, ValueError):  # these name what is wrong
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is empty"
        kind = type(error).__name__
        raise ValueError(
            f"MODEL.WEIGHTS {path} is no readable checkpoint: {kind}: {reason}"
        ) from error


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
