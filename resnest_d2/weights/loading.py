"""Loading a checkpoint into a model, and knowing what it left untouched."""

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone import ResNet
from detectron2.utils.file_io import PathManager
from torch import nn

from ..config import InputError
from ..modeling.resnest import ResNeSt
from .catalog import NAMED_PLACES, find_address, input_format_of
from .convert import Conversion, UnreadableError, rename, unwrap
from .fetch import fetch_address
from .files import Checkpoint, classes_in, config_in, read_checkpoint
from .input_format import of_model, warn_if_it_differs
from .naming import network_of

logger = logging.getLogger(__name__)

# Detectron2 allows this behind a path: names match a model's by their ends.
HEURISTICS = "matching_heuristics=True"
# The convolution that sees the image, of deep stems and others.
STEM = re.compile(r"stem\.conv1(_1)?\.weight$")


class UntrainedParametersError(InputError):
    """Weights did not reach all of a model that is about to be used, not trained."""


class RecordingCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that reads every known file, and keeps the report on what fitted.

    Files are read without executing anything in them, and foreign names are converted. A file of
    another network than the model's is refused; one for other images is warned of.
    """

    incompatible = None
    _path = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load as the base class does; a failure leaves the checkpointer as it was.

        Raises:
            OSError: the file is not there or cannot be fetched.
            UnreadableError: the file is no checkpoint, or one of another network.
        """
        self._path = path
        try:
            return super().load(local_file(path) if path else path, *args, **kwargs)
        except UnreadableError as error:
            name = "" if path in str(error) else f" {path}"
            raise UnreadableError(f"MODEL.WEIGHTS{name}: {error}") from error
        except OSError as error:
            if path in str(error):
                raise
            raise OSError(f"MODEL.WEIGHTS {path}: {error}") from error
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read any known file; the base class would execute what is in a pickle."""
        name = f"MODEL.WEIGHTS {self._path}"
        by_suffix = HEURISTICS in self._path.partition("?")[2].split("&")
        states = self.model.state_dict()
        checkpoint = self._read(filename, states)
        theirs = checkpoint.input_format or input_format_of(self._path)
        if not _fit_channels(name, checkpoint.weights, states):
            warn_if_it_differs(name, theirs, of_model(self.model))
        classifier = {k: v for k, v in checkpoint.classifier.items() if k in states}
        content = {**checkpoint.rest, **checkpoint.to_dict()}
        content["model"] = {**checkpoint.weights, **classifier}
        return {**content, "matching_heuristics": by_suffix or checkpoint.by_suffix}

    def _read(self, filename: str, states: dict[str, torch.Tensor]) -> Checkpoint:
        content = read_checkpoint(filename)
        container, tensors = unwrap(content)
        found, expected = network_of(tensors), network_of(states)
        if found and expected and not found.fits(expected):
            raise UnreadableError(f"it is of a {found}, the model has a {expected}")
        # The names of a model that was trained here may be those of another project's files.
        is_own = all(k in states and states[k].ndim == v.ndim for k, v in tensors.items())
        own = Conversion(tensors, "", container, {}, ())
        conversion = own if is_own else rename(tensors, container)
        checkpoint = Checkpoint.of(content, conversion)
        is_known = is_own or conversion.naming or container == "model"
        if is_known or not filename.endswith((".pkl", ".pyth")):
            return checkpoint
        # Detectron's files are in Caffe2's names, files of pycls in their own.
        kept = {k: v for k, v in tensors.items() if not k.endswith(("_momentum", "_tracked"))}
        author = "Caffe2" if filename.endswith(".pkl") else "pycls"
        return replace(checkpoint, weights=kept, author=author, by_suffix=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible

    def untouched(self) -> list[str]:
        """Name the parameters and statistics that no file has reached, in the model's order."""
        states = [n for n in self.model.state_dict() if not n.endswith("num_batches_tracked")]
        if self.incompatible is None:
            return states
        shapes = {key for key, *_ in self.incompatible.incorrect_shapes}
        return [s for s in states if s in {*self.incompatible.missing_keys, *shapes}]

    def untouched_backbone(self) -> list[str]:
        """Name those of the backbone that its file should have had.

        No file for ImageNet has the offsets of deformable convolutions, and some files of plain
        ResNets have norms without statistics, which are folded.
        """
        found = []
        for prefix, module in self.model.named_modules():
            if isinstance(module, ResNet):
                start = f"{prefix}." if prefix else ""
                folded = "" if isinstance(module, ResNeSt) else r"|\.norm\."
                names = (name for name in self.untouched() if name.startswith(start))
                found += [name for name in names if not re.search("conv2_offset" + folded, name)]
        return found


def _fit_channels(source: str, weights: dict[str, Any], states: dict[str, Any]) -> bool:
    """Fit a stem for three channels, in place, to a model of another number of them.

    Every channel gets the sum of the three filters over the number of channels, so that the
    response to equal channels stays as it is. Return whether that was needed.
    """
    for name in (name for name in states if STEM.search(name)):
        for key in (key for key in weights if f".{name}".endswith(f".{key}")):
            (out, has, *size), (_, needs, *_) = weights[key].shape, states[name].shape
            if has != 3 or needs == 3:
                continue
            summed = weights[key].sum(1, keepdim=True) / needs
            weights[key] = summed.expand(out, needs, *size).clone()
            message = "%s has filters for three channels: summed and divided among %d, in %s"
            logger.warning(message, source, needs, name)
            return True
    return False


def load_weights(model: nn.Module, path: str, allow_untrained: bool = False) -> list[str]:
    """Load a checkpoint for inference.

    Args:
        model: what to load into, in place.
        path: a file, an address or a name, as in ``MODEL.WEIGHTS``; "" loads nothing.
        allow_untrained: only warn of parameters that keep their random values.

    Returns:
        names of the parameters and statistics that the file left untouched.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: the file is no checkpoint, is damaged or is of another network.
        UntrainedParametersError: the file left something untouched.
    """
    return _load(model, path, allow_untrained)[0]


def load_detector(model: nn.Module, path: str, allow_untrained: bool = False) -> dict[str, Any]:
    """Load as :func:`load_weights` does, and return the classes that the model was trained on.

    They have Detectron2's names (``thing_classes``, ...); only this package's trainers write them.
    """
    return classes_in(_load(model, path, allow_untrained)[1])


def _load(model: nn.Module, path: str, allow_untrained: bool) -> tuple[list[str], dict[str, Any]]:
    checkpointer = RecordingCheckpointer(model)
    require_file(path)
    content = checkpointer.load(path)
    untouched = checkpointer.untouched()
    if untouched:
        why = ""
        for name, theirs, ours in checkpointer.incompatible.incorrect_shapes[:1] if path else ():
            why = f" ({name} has shape {theirs} in the file and {ours} in the model)"
        source = path or 'is ""'
        message = (
            f"MODEL.WEIGHTS {source} leaves {len(untouched)} parameters at random values, in "
            f"{parts(untouched)}{why}: give the checkpoint of a trained detector, and its config"
        )
        if not allow_untrained:
            raise UntrainedParametersError(message)
        logger.warning(message)
    return untouched, content


def read_classes(path: str) -> dict[str, Any]:
    """Return the classes of :func:`load_detector` without loading weights.

    Local files and those at addresses are looked at, as this package's trainers write them; for
    those that are not there or not readable there are none.
    """
    return classes_in(_peek(path))


def read_config(path: str) -> str:
    """Return the text of the config that a checkpoint holds; "" if it holds none.

    Files are looked at as by :func:`read_classes`.
    """
    return config_in(_peek(path))


def number_of_classes(path: str) -> int | None:
    """Return how many classes a checkpoint's heads tell apart; None if that does not show.

    Files are looked at as by :func:`read_classes`.
    """
    weights = _peek(path).get("model")
    shapes = weights if isinstance(weights, dict) else {}
    shapes = {name: tuple(getattr(weight, "shape", ())) for name, weight in shapes.items()}
    for name, shape in shapes.items():
        if name.endswith("cls_score.weight"):
            if len(shape) == 2:  # one row a class and one for the background
                return shape[0] - 1
            # A dense head has as many rows for each anchor, and four for its box.
            boxes = shapes.get(name.replace("cls_score", "bbox_pred"))
            if len(shape) == 4 and boxes and 4 * shape[0] % boxes[0] == 0:
                return 4 * shape[0] // boxes[0]
    return None


def _peek(path: str) -> dict[str, Any]:
    try:
        return look_into(path)
    except (OSError, InputError):  # loading it into the model will tell why
        return {}


def look_into(path: str) -> dict[str, Any]:
    """Return what a checkpoint at a path or an address holds, its weights only where they are read.

    Names of published weights, and files that are not there, hold nothing.

    Raises:
        FetchError: the file cannot be fetched.
        InputError: it is no checkpoint, or the path has a query that is not Detectron2's.
    """
    file = local_file(path)
    return read_checkpoint(file, with_weights=False) if os.path.isfile(file) else {}


def local_file(path: str) -> str:
    """Return ``MODEL.WEIGHTS`` without the query that is Detectron2's own.

    A file at an address is fetched, and its local path returned, unless the catalog names it.

    Raises:
        FetchError: it cannot be fetched.
        InputError: the path of a file has a query that is not Detectron2's.
    """
    bare, _, query = path.partition("?")
    others = [part for part in query.split("&") if part not in (HEURISTICS, "")]
    has_name = path.startswith(NAMED_PLACES) and find_address(bare)
    if path.startswith(("http://", "https://")) and not has_name:
        return fetch_address("?".join(filter(None, (bare, "&".join(others)))))
    if others:
        raise InputError(f"MODEL.WEIGHTS {path}: after '?' only {HEURISTICS} is known")
    return bare


def require_file(path: str) -> None:
    """Refuse weights that should be a file of this machine and are not.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if path and "://" not in path and not PathManager.isfile(path.partition("?")[0]):
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {path}")


def parts(names: Iterable[str]) -> str:
    """Name the submodules that parameters belong to, for a message: two levels say enough."""
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))
