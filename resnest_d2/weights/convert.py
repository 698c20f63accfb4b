"""Conversion of whatever a ResNeSt checkpoint calls its weights to Detectron2's names."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from .files import Checkpoint, UnreadableError, find_tensors
from .naming import DETECTRON2_KEY, FOREIGN, MMDETECTION

logger = logging.getLogger(__name__)

_ATTENTION_WEIGHT = re.compile(r".*\.conv2\.fc[12]\.weight")
_BACKBONE_KEY = re.compile(r"(stem|res[2-5]|linear)\.")
_OLD_NORM = re.compile(r"(.*res[2-5]\.\d+\.conv2)\.bn\.(\w+)")
# Counters and copies of averages, which lie among the weights.
_AVERAGING = re.compile(r"n_averaged|steps|ema_[a-z_0-9]+")
# DistributedDataParallel, Lightning and torch.compile put these before every key.
_WRAPPERS = {"module", "model", "_orig_mod"}
# Places of the backbone in somebody's model.
_PLACES = ("backbone.bottom_up.", "bottom_up.", "backbone.", "encoder.")


class Conversion(NamedTuple):
    """The outcome of converting a checkpoint."""

    checkpoint: Checkpoint
    """The checkpoint, with the weights below."""
    naming: str
    """The project whose names the weights had; "" for unknown names, which are kept."""
    origins: dict[str, str]
    """Old names, without the prefixes of wrappers, by new names."""
    dropped: tuple[str, ...]
    """Keys that the naming does not have."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors under Detectron2's names; those of a backbone alone have no prefix."""
        return self.checkpoint.weights


def convert(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Rename a ResNeSt's or a ResNeSt detector's weights to Detectron2's names.

    The keys may be those of the ImageNet files and timm, OpenMMLab's backbones, MMDetection's
    Faster, Mask and Cascade R-CNN on ResNeSt (versions 2 and 3), or Detectron2. Prefixes of
    wrappers (``module.``) and containers (``{"state_dict": ...}``) are removed. Old files hold the
    attention's ``fc1`` and ``fc2`` as matrices, which become 1x1 convolutions, and call ``bn0``
    ``bn``. Keys of no known name are left out with a warning.

    Args:
        checkpoint: names to tensors, or a checkpoint that holds such a mapping.

    Returns:
        a new dict. A backbone alone has no prefix (``stem.``, ``res2.`` to ``res5.``; ``linear.``
        is its classifier); a detector has Detectron2's names.

    Raises:
        UnreadableError: keys fit no known naming; the message lists some.
    """
    if not isinstance(checkpoint, Mapping):
        raise UnreadableError(f"a checkpoint is a dict of tensors, got {type(checkpoint).__name__}")
    container, tensors = find_tensors(checkpoint)
    conversion = rename(Checkpoint("the checkpoint", tensors, container))
    check_conversion(conversion)
    return conversion.weights


def check_conversion(conversion: Conversion) -> None:
    """See that a checkpoint is a ResNeSt's.

    Raises:
        UnreadableError: its keys fit no known naming, or none is of a block's 3x3 convolution.
    """
    name, keys = conversion.checkpoint.name, conversion.weights
    if not conversion.naming:
        raise UnreadableError(
            f"{name} holds no known ResNeSt: {len(keys)} of {len(keys)} keys fit no known naming "
            f"({_listed(keys)})"
        )
    if not any(".conv2." in key for key in keys):
        raise UnreadableError(
            f"{name} holds no known ResNeSt: keys fit the naming of {conversion.naming}, and none "
            f"of them is of a block's 3x3 convolution ({_listed(keys)})"
        )


def rename(checkpoint: Checkpoint) -> Conversion:
    """Give a checkpoint's weights Detectron2's names; where none fits a known naming, all stay."""
    named = {k: v for k, v in checkpoint.weights.items() if not _AVERAGING.fullmatch(k)}
    while len(first := {key.partition(".")[0] for key in named}) == 1 and first <= _WRAPPERS:
        named = {key.partition(".")[2]: value for key, value in named.items()}
    naming, names = _recognize(named)
    if not naming:
        return Conversion(checkpoint, "", {}, ())
    origins: dict[str, str] = {}
    unknown = []
    for old, new in names.items():
        if new is None or new in origins:
            unknown.append(old)
        else:
            origins[new] = old
    if unknown:
        message = "%s: %d keys do not fit the naming of %s and are left out: %s"
        logger.warning(message, checkpoint.name, len(unknown), naming, _listed(unknown))
    weights = {new: named[old] for new, old in origins.items()}
    for key, value in weights.items():
        if value.ndim == 2 and _ATTENTION_WEIGHT.fullmatch(key):
            weights[key] = value[:, :, None, None]
    backbone = _backbone(weights)
    converted = replace(
        checkpoint,
        weights=weights if backbone is None else backbone,
        by_suffix=checkpoint.by_suffix or backbone is not None,
        author="resnest_d2",
    )
    return Conversion(converted, naming, origins, tuple(unknown))


def _backbone(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The weights without a detector's prefix if they are a backbone's alone, else None."""
    for place in ("", *_PLACES):
        if all(key.startswith(place) for key in weights):
            bare = {key.removeprefix(place): value for key, value in weights.items()}
            if all(_BACKBONE_KEY.match(key) for key in bare):
                return bare
    return None


def _recognize(keys: Iterable[str]) -> tuple[str, dict[str, str | None]]:
    """Return the naming that most keys fit, "" if none does, and the new names by the old ones.

    A new name is None for a key that the naming does not have.
    """
    if any(DETECTRON2_KEY.fullmatch(key) for key in keys):
        # A detector may have any other parts, a bare backbone none.
        is_bare = any(_BACKBONE_KEY.match(k) and DETECTRON2_KEY.fullmatch(k) for k in keys)
        foreign = {k for k in keys if any(other.rename(k) for other in FOREIGN)}
        foreign |= {k for k in keys if is_bare and not _BACKBONE_KEY.match(k)}
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


def _listed(keys: Iterable[Any], most: int = 20) -> str:
    names = [str(key) for key in keys]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
