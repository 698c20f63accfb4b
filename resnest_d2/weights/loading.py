"""Loading a checkpoint and knowing what it left untouched."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone import ResNet
from detectron2.utils.file_io import PathManager
from torch import nn

from ..modeling.resnest import ResNeSt
from .catalog import input_format_of
from .convert import describe_conversion, recognize, unwrap
from .fetch import FetchError
from .input_format import from_dict, of_model, warn_if_it_differs
from .network import network_of
from .reading import UnreadableError, read_beside_weights, read_checkpoint
from .writing import detectron2_checkpoint

logger = logging.getLogger(__name__)

# Where training puts the names of its classes in a checkpoint.
CLASSES_KEY = "classes"
# What of the data predictions need to be named and drawn.
CLASS_METADATA = (
    "thing_classes",
    "thing_dataset_id_to_contiguous_id",
    "stuff_classes",
    "stuff_dataset_id_to_contiguous_id",
    "keypoint_names",
    "keypoint_connection_rules",
)


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
        except OSError as error:
            if path and path in str(error):
                raise
            raise OSError(f"MODEL.WEIGHTS {path}: {error}") from error
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a file of any kind that the base class or :func:`convert` knows.

        The base class would execute what is in a pickle.
        """
        content = self._convert(read_checkpoint(filename))
        query = parse_qs(self._parsed_url_during_load.query)
        if query.pop("matching_heuristics", None) == ["True"]:
            content["matching_heuristics"] = True
        if query:
            raise ValueError(
                f"MODEL.WEIGHTS {self._weights}: after '?' only matching_heuristics=True is known"
            )
        if "model" in content:
            return content
        if not filename.endswith((".pkl", ".pyth")):
            return {"model": content}
        # Detectron's files of Caffe2's names, with detectors under "blobs", and pycls's.
        tensors = content.get("blobs", content.get("model_state", content))
        kept = {k: v for k, v in tensors.items() if not k.endswith(("_momentum", "_tracked"))}
        author = "Caffe2" if filename.endswith(".pkl") else "pycls"
        return {"model": kept, "__author__": author, "matching_heuristics": True}

    def _convert(self, content: dict[str, Any]) -> dict[str, Any]:
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
        classifier = checkpoint.get("classifier")
        if isinstance(classifier, Mapping):
            checkpoint["model"] |= {k: v for k, v in classifier.items() if k in states}
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
        """Those of them that are of the backbone and that its file should have had.

        Offsets of deformable convolutions are new to every file for ImageNet, and of plain ResNets
        some files, in which norms are folded, have no statistics.
        """
        found = []
        for prefix, module in self.model.named_modules():
            if isinstance(module, ResNet):
                start = f"{prefix}." if prefix else ""
                whole = isinstance(module, ResNeSt)
                found += [
                    name
                    for name in self.untouched()
                    if name.startswith(start) and (whole or ".norm." not in name)
                ]
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
    return classes_in(_load(model, path, allow_untrained)[1])


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
        return classes_in(read_beside_weights(path))
    except Exception:  # loading it into the model will tell why
        return {}


def classes_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The classes that a checkpoint was trained on; empty if it does not say so in our way."""
    classes = checkpoint.get(CLASSES_KEY)
    if not isinstance(classes, Mapping):
        return {}
    for key in ("thing_classes", "stuff_classes"):
        names = classes.get(key, [])
        is_list = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
        if not is_list or (key in classes and not names):
            return {}
    found = {key: classes[key] for key in CLASS_METADATA if key in classes}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def require_file(path: str) -> None:
    """See that weights which are a file of this machine are there.

    Raises:
        FileNotFoundError: they are not.
    """
    local = urlparse(path)._replace(query="").geturl() if "?" in path else path
    if "://" not in path and not PathManager.isfile(local):
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {path}")


def local_file(source: str) -> str:
    """The local file of a path, a name or an address.

    Raises:
        OSError: it cannot be had; the message names it.
    """
    try:
        return PathManager.get_local_path(source)
    except OSError as error:
        if source in str(error) or isinstance(error, FetchError):
            raise
        raise OSError(f"{source}: {error}") from error


def _load(model: nn.Module, path: str, allow_untrained: bool) -> tuple[list[str], dict[str, Any]]:
    checkpointer = RecordingCheckpointer(model)
    if not path:
        return _report(checkpointer, 'MODEL.WEIGHTS is ""', allow_untrained), {}
    require_file(path)
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
