"""Conversion of whatever a ResNeSt checkpoint calls its weights to Detectron2's names."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config import InputError
from .naming import DETECTRON2_KEY, FOREIGN, MMDETECTION

logger = logging.getLogger(__name__)

_ATTENTION_WEIGHT = re.compile(r".*\.conv2\.fc[12]\.weight")
_BACKBONE_KEY = re.compile(r"(stem|res[2-5]|linear)\.")
_OLD_NORM = re.compile(r"(.*res[2-5]\.\d+\.conv2)\.bn\.(\w+)")
# DistributedDataParallel, Lightning and torch.compile put these before every key.
_WRAPPERS = {"module", "model", "_orig_mod"}
# Places of the backbone in somebody's model.
_PLACES = ("backbone.bottom_up.", "bottom_up.", "backbone.", "encoder.")
# Averaging leaves PyTorch's and MMEngine's counts and MMDetection 2's copies beside the weights.
_AVERAGING = re.compile(r"n_averaged|steps|ema_[a-z_0-9]+")
# Keys under which checkpoints hold their weights. Averaged weights come first, as in timm, except
# for MMEngine's ema_state_dict: beside a state_dict that is the average it has the unaveraged ones.
_CONTAINERS = ("state_dict_ema", "model_ema", "ema_model", "ema_state", "ema", "model_state_dict")
_CONTAINERS += ("state_dict", "model_state", "model", "ema_state_dict", "net", "params", "blobs")
_MAX_DEPTH = 4  # of containers in containers


class UnreadableError(InputError):
    """A file is no checkpoint, is damaged, asks to execute something or holds other weights."""


class Conversion(NamedTuple):
    """The outcome of converting a checkpoint."""

    weights: dict[str, torch.Tensor]
    """Tensors under Detectron2's names."""
    naming: str
    """The project whose names they had; "" for unknown names, which are kept."""
    container: str
    """The checkpoint's key that held them; "" if the checkpoint itself did."""
    origins: dict[str, str]
    """Old names, without the prefixes of wrappers, by new names."""
    dropped: tuple[str, ...]
    """Keys that are no weights of the model."""

    @property
    def backbone(self) -> dict[str, torch.Tensor] | None:
        """The weights without a detector's prefix if they are a backbone's alone, else None."""
        for place in ("", *_PLACES) if self.naming else ():
            if all(key.startswith(place) for key in self.weights):
                bare = {key.removeprefix(place): value for key, value in self.weights.items()}
                if all(_BACKBONE_KEY.match(key) for key in bare):
                    return bare
        return None


def convert(checkpoint: Mapping[str, Any], drop_unknown: bool = False) -> dict[str, torch.Tensor]:
    """Rename a ResNeSt's or a ResNeSt detector's weights to Detectron2's names.

    The keys may be those of the ImageNet files and timm, OpenMMLab's backbones, MMDetection's
    Faster, Mask and Cascade R-CNN on ResNeSt (versions 2 and 3), or Detectron2. Prefixes of
    wrappers (``module.``) and containers (``{"state_dict": ...}``) are removed; averaged weights
    (EMA) are preferred. Old files hold the attention's ``fc1`` and ``fc2`` as matrices, which
    become 1x1 convolutions, and call ``bn0`` ``bn``.

    Args:
        checkpoint: names to tensors, or a checkpoint that holds such a mapping.
        drop_unknown: leave out unknown keys with a warning instead of refusing them.

    Returns:
        a new dict. A backbone that had foreign names has no prefix (``stem.``, ``res2.`` to
        ``res5.``; ``linear.`` is its classifier); Detectron2 names keep theirs.

    Raises:
        UnreadableError: keys fit no known naming, or two of them; the message lists the keys.
    """
    return describe_conversion(checkpoint, drop_unknown).weights


def describe_conversion(checkpoint: Mapping[str, Any], drop_unknown: bool = False) -> Conversion:
    """Convert as :func:`convert` does, and tell what was recognised."""
    container, tensors = unwrap(checkpoint)
    conversion = rename(tensors, container, drop_unknown)
    if not tensors:
        raise _not_ours("the file is empty")
    if not conversion.naming:
        count = len(tensors)
        raise _not_ours(f"{count} of {count} keys fit no known naming ({_listed(tensors)})")
    return conversion


def unwrap(checkpoint: Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    """Find the tensors inside a checkpoint, and the key that holds them ("" if none does).

    Raises:
        UnreadableError: there are none.
    """
    if not isinstance(checkpoint, Mapping):
        raise UnreadableError(f"a checkpoint is a dict of tensors, got {type(checkpoint).__name__}")
    container, tensors = _find_tensors(checkpoint)
    if checkpoint and not tensors:
        raise _not_ours(f"no tensors under {_listed(checkpoint)}")
    return container, tensors


def _find_tensors(content: Mapping[Any, Any], depth: int = 0) -> tuple[str, dict[str, Any]]:
    for container in _CONTAINERS if depth < _MAX_DEPTH else ():
        inner = content.get(container)
        if isinstance(inner, Mapping):
            deeper, tensors = _find_tensors(inner, depth + 1)
            if tensors:  # there are none among the settings of an averaging
                return f"{container}.{deeper}".rstrip("."), tensors
    found = {}
    for key, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            found[str(key)] = torch.tensor(value)
        elif isinstance(value, torch.Tensor):
            found[str(key)] = value
    return "", found


def rename(
    tensors: Mapping[str, torch.Tensor], container: str = "", drop_unknown: bool = False
) -> Conversion:
    """Rename the tensors of :func:`unwrap`; names that fit no known naming at all are kept.

    Raises:
        UnreadableError: some keys fit a naming and others do not.
    """
    named = {key: value for key, value in tensors.items() if not _AVERAGING.fullmatch(key)}
    while len(first := {key.partition(".")[0] for key in named}) == 1 and first <= _WRAPPERS:
        named = {key.partition(".")[2]: value for key, value in named.items()}
    naming, names = _recognize(named)
    if not naming:
        return Conversion(dict(tensors), "", container, {}, ())
    origins: dict[str, str] = {}
    unknown = []
    for old, new in names.items():
        if new is None or new in origins:
            unknown.append(old)
        else:
            origins[new] = old
    if unknown and not drop_unknown:
        raise _not_ours(
            f"{len(unknown)} of {len(named)} keys do not fit the naming of {naming}, as the "
            f"others do ({_listed(unknown)})"
        )
    if not any(".conv2." in key for key in origins):
        raise _not_ours(
            f"{len(origins)} of {len(named)} keys fit the naming of {naming}, and none of "
            "them is of a block's 3x3 convolution"
        )
    if unknown:
        logger.warning("%d keys are of no known name: %s", len(unknown), _listed(unknown))
    weights = {new: named[old] for new, old in origins.items()}
    for key, value in weights.items():
        if value.ndim == 2 and _ATTENTION_WEIGHT.fullmatch(key):
            weights[key] = value[:, :, None, None]
    return Conversion(weights, naming, container, origins, tuple(unknown))


def _recognize(keys: Iterable[str]) -> tuple[str, dict[str, str | None]]:
    """Return the naming that most keys fit, "" if none does, and the new names by the old ones.

    A new name is None for a key that the naming does not have.
    """
    if any(DETECTRON2_KEY.fullmatch(key) for key in keys):
        foreign = {key for key in keys if any(other.rename(key) for other in FOREIGN)}
        # A detector may have any other parts, a bare backbone none.
        if any(_BACKBONE_KEY.match(key) and DETECTRON2_KEY.fullmatch(key) for key in keys):
            foreign |= {key for key in keys if not _BACKBONE_KEY.match(key)}
        renamed = {k: None if k in foreign else _OLD_NORM.sub(r"\1.bn0.\2", k) for k in keys}
        return "Detectron2", renamed
    bare = _without_place(keys)
    renamings = [{k: naming.rename(name) for name, k in bare.items()} for naming in FOREIGN]
    counts = [sum(new is not None for new in names.values()) for names in renamings]
    best = counts.index(max(counts))
    return FOREIGN[best].title if counts[best] else "", renamings[best]


def _without_place(keys: Iterable[str]) -> dict[str, str]:
    """Return foreign keys by their names without the backbone's prefix, unless that is theirs."""
    if not any(MMDETECTION.rename(k) and not k.startswith("backbone.") for k in keys):
        for place in _PLACES:
            bare = {key.removeprefix(place): key for key in keys}
            if any(key.startswith(place) for key in keys) and len(bare) == len(set(keys)):
                return bare
    return {key: key for key in keys}


def _not_ours(reason: str) -> UnreadableError:
    return UnreadableError(f"not the weights of a known ResNeSt: {reason}")


def _listed(keys: Iterable[Any], most: int = 20) -> str:
    names = [str(key) for key in keys]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
