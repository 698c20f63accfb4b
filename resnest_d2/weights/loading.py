"""Loading a checkpoint into a model, and knowing what it left untouched."""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from http.client import HTTPException
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone import ResNet
from detectron2.utils.logger import log_first_n
from torch import nn

from ..config import InputError
from ..files import PathManager
from ..modeling.resnest import ResNeSt
from .convert import network_of, rename
from .fetch import FetchError
from .files import Checkpoint, UnreadableError, of_model, read_checkpoint

logger = logging.getLogger(__name__)

# Detectron2 allows this behind a path: names match a model's by their ends.
HEURISTICS = "matching_heuristics=True"
# The convolution that sees the image, of deep stems and others.
STEM = re.compile(r"stem\.conv1(_1)?\.weight$")


class UntrainedParametersError(InputError):
    """Weights did not reach all of a model that is about to be used, not trained."""


def open_weights(path: str | os.PathLike, average: bool = False) -> Checkpoint:
    """Read the file that ``MODEL.WEIGHTS`` may name.

    Args:
        path: a file; a name of published weights; or any address, which a handler of Detectron2's
            PathManager fetches. Detectron2's ``?matching_heuristics=True`` may follow.
        average: as in :func:`~resnest_d2.weights.files.read_checkpoint`.

    Raises:
        MissingFileError: there is no such file.
        FetchError: it cannot be fetched.
        UnreadableError: it is no checkpoint, or is damaged.
    """
    given = str(path)
    path = local = re.sub(rf"[?&]{HEURISTICS}$", "", given)
    if "://" in path:
        try:
            local = PathManager.get_local_path(path)
        except InputError:
            raise
        except (OSError, HTTPException) as error:  # a handler's other errors are its own
            raise FetchError(f"cannot get {path}: {error}") from error
    checkpoint = read_checkpoint(local, path if local == path else f"{path} (at {local})", average)
    by_suffix = checkpoint.by_suffix or path != given
    return replace(checkpoint, name=path, by_suffix=by_suffix)


class WeightsCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that reads every known file, and keeps what it says of the fit."""

    incompatible: Any = None

    def load(
        self, path: str | Checkpoint, checkpointables: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Load as the base class does, also a checkpoint that has been opened; "" loads nothing.

        Foreign names are converted; a warning tells of a file for other images.

        Returns:
            what the file holds besides the model and the checkpointables.

        Raises:
            InputError: as :func:`open_weights`.
            UnreadableError: it is of another network, or a weight is NaN or infinite.
        """
        if not path:
            logger.info("No MODEL.WEIGHTS: starting from random weights")
            return {}
        checkpoint = path if isinstance(path, Checkpoint) else open_weights(path)
        states = self.model.state_dict()
        found, expected = network_of(checkpoint.weights), network_of(states)
        if found and expected and not found.fits(expected):
            raise UnreadableError(f"{checkpoint.name} is of a {found}, the model has a {expected}")
        # The names of a model that was trained here may be those of another project's files.
        is_own = all(
            k in states and states[k].ndim == v.ndim for k, v in checkpoint.weights.items()
        )
        if not is_own:
            checkpoint = rename(checkpoint)
        self._warn_of_other_images(checkpoint)
        weights = _fit_channels(checkpoint, states)
        by_suffix = checkpoint.by_suffix and not is_own
        facts = {"__author__": checkpoint.author, "matching_heuristics": by_suffix}
        self.incompatible = self._load_model({"model": weights, **facts})
        self._log_incompatible_keys(self.incompatible)
        require_finite(self.model, checkpoint.name)
        rest = dict(checkpoint.rest)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in rest:
                self.checkpointables[key].load_state_dict(rest.pop(key))
        return rest

    def _warn_of_other_images(self, checkpoint: Checkpoint) -> None:
        theirs, ours = checkpoint.input_format, of_model(self.model)
        if theirs and ours and not theirs.fits(ours):
            message = (
                f"{checkpoint.name} was made for {theirs}, but INPUT.FORMAT, MODEL.PIXEL_MEAN and "
                f"MODEL.PIXEL_STD are those of {ours}: results will be worse than they could be"
            )
            log_first_n(logging.WARNING, message, name=__name__, key="message")

    def untouched(self) -> list[str]:
        """Name the parameters and statistics that no file has reached, in the model's order."""
        states = [n for n in self.model.state_dict() if not n.endswith("num_batches_tracked")]
        if self.incompatible is None:
            return states
        shapes = [key for key, *_ in self.incompatible.incorrect_shapes]
        absent = {*self.incompatible.missing_keys, *shapes}
        return [name for name in states if name in absent]

    def load_to_train(self, path: str) -> None:
        """Load the weights that a training begins with; heads may start anew, the backbone not.

        Raises:
            InputError: as :meth:`load`, or the file lacks parts of the backbone.
        """
        self.load(path, [])
        if not path:
            return
        untouched = self.untouched()
        if absent := self._of_backbone(untouched):
            raise InputError(
                f"MODEL.WEIGHTS {path} {self.describe(absent, 'parameters of the backbone')}: give "
                "weights of this backbone, or MODEL.WEIGHTS '' to train from scratch"
            )
        if untouched:
            logger.info("%s does not hold %s, which start anew", path, _submodules(untouched))

    def _of_backbone(self, untouched: Sequence[str]) -> list[str]:
        """Name those of the backbone that its file should have had.

        No file for ImageNet has the offsets of deformable convolutions, and some files of plain
        ResNets have norms without statistics, which are folded.
        """
        found = []
        for prefix, module in self.model.named_modules():
            if isinstance(module, ResNet):
                start = f"{prefix}." if prefix else ""
                folded = "" if isinstance(module, ResNeSt) else r"|\.norm\."
                names = (name for name in untouched if name.startswith(start))
                found += [name for name in names if not re.search("conv2_offset" + folded, name)]
        return found

    def describe(self, untouched: Sequence[str], kind: str = "parameters") -> str:
        """The middle of a message on parameters that no file has reached, and why not."""
        text = f"leaves {len(untouched)} {kind} at random values, in {_submodules(untouched)}"
        if self.incompatible and self.incompatible.incorrect_shapes:
            name, theirs, ours = self.incompatible.incorrect_shapes[0]
            text += f" ({name} has shape {theirs} in the file and {ours} in the model)"
        return text


def _fit_channels(
    checkpoint: Checkpoint, states: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Copy the weights, with a stem for three channels fitted to a model of another number.

    Every channel gets the sum of the three filters over the number of channels, so that the
    response to equal channels stays as it is.
    """
    weights = dict(checkpoint.weights)  # the base class takes out what does not fit
    for name in filter(STEM.search, states):
        needs = states[name].shape[1]
        for key in (key for key in weights if f".{name}".endswith(f".{key}")):
            if weights[key].shape[1:2] == (3,) and needs != 3:
                weights[key] = weights[key].sum(1, keepdim=True).repeat_interleave(needs, 1) / needs
                message = "%s has filters for three channels: summed and divided among %d, in %s"
                logger.warning(message, checkpoint.name, needs, name)
    return weights


def require_finite(model: nn.Module, source: str) -> None:
    """See that a model's values are numbers; buffers, such as masks, may hold infinities.

    Raises:
        UnreadableError: one is NaN, or a parameter is infinite, as after a training that diverged.
    """
    # One bad value makes the sum bad; large values may, too.
    bad = [
        name
        for name, value in model.named_parameters()
        if not value.sum().isfinite() and not value.isfinite().all()
    ]
    bad += [
        name for name, value in model.named_buffers() if value.sum().isnan() and value.isnan().any()
    ]
    for name in bad[:1]:
        raise UnreadableError(
            f"{source}: {name} has values that are NaN or infinite, as after a training that "
            "diverged; take an earlier checkpoint"
        )


def load_weights(
    model: nn.Module, weights: str | Checkpoint, allow_untrained: bool = False
) -> list[str]:
    """Load a checkpoint for inference.

    Args:
        model: what to load into, in place.
        weights: a file, an address or a name, as in ``MODEL.WEIGHTS``, "" loads nothing; or a
            checkpoint that has been opened.
        allow_untrained: only warn of parameters that keep their random values.

    Returns:
        names of the parameters and statistics that the file left untouched.

    Raises:
        InputError: as :meth:`WeightsCheckpointer.load`.
        UntrainedParametersError: the file left something untouched.
    """
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(weights, [])
    if untouched := checkpointer.untouched():
        name = weights.name if isinstance(weights, Checkpoint) else weights or "is empty and"
        message = (
            f"MODEL.WEIGHTS {name} {checkpointer.describe(untouched)}: give the "
            "checkpoint of a trained detector, and the config that it was trained with"
        )
        if not allow_untrained:
            raise UntrainedParametersError(message)
        logger.warning(message)
    return untouched


def _submodules(names: Iterable[str]) -> str:
    """Name the submodules that parameters belong to, for a message: two levels say enough."""
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))
