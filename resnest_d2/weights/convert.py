"""From whatever a ResNeSt checkpoint calls its weights to Detectron2's names."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .naming import DETECTRON2, DETECTRON2_KEY, FOREIGN, MMDETECTION, Naming

logger = logging.getLogger(__name__)

_ATTENTION_WEIGHT = re.compile(r".*\.conv2\.fc[12]\.weight")
_BACKBONE_KEY = re.compile(r"(stem|res[2-5]|linear)\.")
_OLD_NORM = re.compile(r"(.*res[2-5]\.\d+\.conv2)\.bn\.(\w+)")
# Put before every key by DistributedDataParallel, Lightning and the like.
_WRAPPERS = ("module.", "model.", "_orig_mod.")
# Where the backbone is in somebody's model.
_PLACES = ("backbone.bottom_up.", "bottom_up.", "backbone.", "encoder.")
# What averaging leaves beside the weights: PyTorch's and MMEngine's counts, MMDetection 2's copies.
_AVERAGING = re.compile(r"n_averaged|steps|ema_[a-z_0-9]+")
# Under these a checkpoint holds its weights, averaged ones first as in timm. MMEngine's
# ema_state_dict comes last: beside a state_dict that holds the average it has the unaveraged ones.
_CONTAINERS = ("state_dict_ema", "model_ema", "ema_model", "ema_state", "ema", "model_state_dict")
_CONTAINERS += ("state_dict", "model_state", "model", "ema_state_dict", "net", "params")
# Containers in containers.
_MAX_DEPTH = 4


class Conversion(NamedTuple):
    """What became of a checkpoint."""

    weights: dict[str, torch.Tensor]
    """Tensors under Detectron2's names."""
    naming: str
    """Whose names they had."""
    container: str
    """Key of the checkpoint that held them; "" if they were the checkpoint."""
    origins: dict[str, str]
    """The names that they had, by those that they have; without what wrappers put before them."""
    dropped: tuple[str, ...]
    """Keys that are no weights of the model."""

    @property
    def backbone(self) -> dict[str, torch.Tensor] | None:
        """The weights without their place in a detector, if they are those of a backbone alone."""
        for place in ("", *_PLACES):
            if all(key.startswith(place) for key in self.weights):
                bare = {key.removeprefix(place): value for key, value in self.weights.items()}
                if all(_BACKBONE_KEY.match(key) for key in bare):
                    return bare
        return None


def convert(checkpoint: Mapping[str, Any], drop_unknown: bool = False) -> dict[str, torch.Tensor]:
    """Rename a ResNeSt's or a ResNeSt detector's weights to Detectron2's names.

    Known are, recognised by their keys: the ImageNet files and timm, OpenMMLab's backbones,
    MMDetection's Faster, Mask and Cascade R-CNN on ResNeSt (versions 2 and 3), and Detectron2's
    own names; with prefixes of wrappers (``module.``, ``model.``), inside ``{"state_dict": ...}``
    and the like, averaged weights (EMA) before the others. Old files hold the attention's ``fc1``
    and ``fc2`` as matrices, which become 1x1 convolutions, and call ``bn0`` ``bn``.

    Args:
        checkpoint: names to tensors, or a checkpoint that holds such a mapping.
        drop_unknown: leave out keys of no known name, with a warning, instead of refusing them.

    Returns:
        a new dict. A backbone that had foreign names has no prefix (``stem.``, ``res2.`` to
        ``res5.``; ``linear.`` is its classifier); Detectron2 names keep theirs.

    Raises:
        ValueError: keys that fit no known naming, or are of two; the message lists them.
    """
    return describe_conversion(checkpoint, drop_unknown).weights


def describe_conversion(checkpoint: Mapping[str, Any], drop_unknown: bool = False) -> Conversion:
    """As :func:`convert`, and tell what was recognised."""
    container, found = unwrap(checkpoint)
    tensors = _without_prefix({k: v for k, v in found.items() if not _AVERAGING.fullmatch(k)})
    if not tensors:
        raise ValueError("not the weights of a known ResNeSt: the file is empty")
    naming = recognize(tensors)
    if naming is None:
        listed = _listed(list(tensors))
        raise ValueError(
            f"not the weights of a known ResNeSt: {len(tensors)} of {len(tensors)} keys fit no "
            f"known naming ({listed})"
        )
    origins, unknown = _rename(tensors, naming)
    if unknown and not drop_unknown:
        raise ValueError(
            f"not the weights of a known ResNeSt: {len(unknown)} of {len(tensors)} keys do not fit "
            f"the naming of {naming}, as the others do ({_listed(unknown)})"
        )
    if not any(".conv2." in key for key in origins):
        raise ValueError(
            f"not the weights of a known ResNeSt: {len(origins)} of {len(tensors)} keys fit the "
            f"naming of {naming}, and none of them is of a block's 3x3 convolution"
        )
    if unknown:
        logger.warning("%d keys are of no known name: %s", len(unknown), _listed(unknown))
    weights = {}
    for new, old in origins.items():
        value = tensors[old]
        is_matrix = value.ndim == 2 and _ATTENTION_WEIGHT.fullmatch(new)
        weights[new] = value[:, :, None, None] if is_matrix else value
    return Conversion(weights, str(naming), container, origins, tuple(unknown))


def unwrap(checkpoint: Mapping[str, Any], depth: int = 0) -> tuple[str, dict[str, torch.Tensor]]:
    """The weights inside a checkpoint, and the key that holds them ("" if none does).

    Args:
        checkpoint: names to tensors, or to mappings of them.
        depth: how deep inside others it is.

    Raises:
        ValueError: there are no tensors in it.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"a checkpoint is a dict of tensors, got {type(checkpoint).__name__}")
    for container in _CONTAINERS:
        inner = checkpoint.get(container)
        if depth < _MAX_DEPTH and isinstance(inner, Mapping):
            try:
                deeper, tensors = unwrap(inner, depth + 1)
            except ValueError:  # settings of the averaging, say
                continue
            if tensors:
                return ".".join(filter(None, (container, deeper))), tensors
    tensors = {str(key): _tensor(value) for key, value in checkpoint.items() if _is_array(value)}
    if checkpoint and not tensors:
        raise ValueError(
            f"not the weights of a known ResNeSt: no tensors under "
            f"{_listed([str(key) for key in checkpoint])}"
        )
    return "", tensors


def _is_array(value: Any) -> bool:
    is_numeric = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    return isinstance(value, torch.Tensor) or is_numeric


def _tensor(value: torch.Tensor | np.ndarray) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.tensor(value)


def recognize(keys: Iterable[str]) -> Naming | str | None:
    """Whose names most of the keys are, whatever wraps them; None if nobody's."""
    keys = list(_without_prefix(dict.fromkeys(keys)))
    if any(DETECTRON2_KEY.fullmatch(key) for key in keys):
        return DETECTRON2
    bare = _without_place(keys)
    counts = {naming: naming.count(bare) for naming in FOREIGN}
    best = max(FOREIGN, key=counts.__getitem__)
    return best if counts[best] else None


def _rename(keys: Iterable[str], naming: Naming | str) -> tuple[dict[str, str], list[str]]:
    """Keys by their new names, and those of no known name."""
    if isinstance(naming, str):
        return _rename_old(list(keys))
    origins: dict[str, str] = {}
    unknown = []
    for bare, key in _without_place(keys).items():
        new = naming.rename(bare)
        if new is None or new in origins:
            unknown.append(key)
        else:
            origins[new] = key
    return origins, unknown


def _rename_old(keys: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Detectron2's keys, with the norm of old files renamed; parts with foreign names are unknown.

    What else a detector has is its own affair; a bare backbone has nothing else.
    """
    is_bare = any(_BACKBONE_KEY.match(key) and DETECTRON2_KEY.fullmatch(key) for key in keys)
    origins: dict[str, str] = {}
    unknown = []
    for key in keys:
        new = _OLD_NORM.sub(r"\1.bn0.\2", key)
        is_foreign = any(other.rename(key) for other in FOREIGN)
        if is_foreign or new in origins or (is_bare and not _BACKBONE_KEY.match(key)):
            unknown.append(key)
        else:
            origins[new] = key
    return origins, unknown


def _without_prefix(tensors: dict[str, Any]) -> dict[str, Any]:
    """Without what wrappers put before every key."""
    while True:
        prefix = next((p for p in _WRAPPERS if all(k.startswith(p) for k in tensors)), None)
        if prefix is None or not tensors:
            return tensors
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}


def _without_place(keys: Iterable[str]) -> dict[str, str]:
    """Foreign keys by their names without the backbone's place, unless that is part of a naming."""
    keys = list(keys)
    if not any(MMDETECTION.rename(k) and not k.startswith("backbone.") for k in keys):
        for place in _PLACES:
            bare = {key.removeprefix(place): key for key in keys}
            if any(key.startswith(place) for key in keys) and len(bare) == len(keys):
                return bare
    return {key: key for key in keys}


def _listed(keys: Sequence[str], most: int = 20) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
