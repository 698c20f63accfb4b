"""Conversion of whatever a ResNeSt checkpoint calls its weights to Detectron2's names."""

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..modeling.resnest import ARCHITECTURES
from .catalog import IMAGENET_RGB
from .files import Checkpoint, UnreadableError, find_tensors

logger = logging.getLogger(__name__)

Rule = tuple[str, str]

# These translate the named groups of a rule's pattern for the new name.
_TRANSLATIONS: dict[str, Callable[[str], str]] = {
    "stage": lambda text: str(int(text) + 1),  # layer1 is res2
    "stem": lambda text: str(int(text) // 3 + 1),  # conv, norm and ReLU are numbered through
    "level": lambda text: str(int(text) + 2),  # the FPN's first level is P2
    "layer": lambda text: str(int(text) + 1),  # Detectron2 counts a head's layers from 1
    "head": lambda text: text or "",  # only the heads of a cascade are numbered
    "norm": {"conv": "", "bn": ".norm"}.__getitem__,
}


@dataclass(frozen=True)
class Naming:
    """How a project names the parts of a ResNeSt or of a detector on it."""

    title: str
    rules: tuple[Rule, ...]
    """Patterns of whole keys, because a part would match too much, and the new names."""

    def rename(self, key: str) -> str | None:
        """Return the key's name in Detectron2, or None if no rule fits."""
        for pattern, name in self.rules:
            match = re.fullmatch(pattern, key)
            if match:
                groups = match.groupdict().items()
                return name.format(**{k: _TRANSLATIONS.get(k, str)(v) for k, v in groups})
        return None


def _inside(pattern: str, name: str, *rules: Rule) -> tuple[Rule, ...]:
    return tuple((pattern + inner, name + new) for inner, new in rules)


_REST = r"(?P<rest>\w+)"
_ENDS = r"(?P<rest>weight|bias)"
# A convolution or the norm beside it.
_CONV = r"(?P<norm>conv(?=\.(?:weight|bias)$)|bn)\." + _REST
_LEVEL = r"(?P<level>[0-3])\."
# All projects name the blocks alike.
_BLOCKS = _inside(
    r"layer(?P<stage>[1-4])\.(?P<block>\d+)\.",
    "res{stage}.{block}.",
    (r"conv(?P<i>[13])\.weight", "conv{i}.weight"),
    (r"bn(?P<i>[13])\." + _REST, "conv{i}.norm.{rest}"),
    (r"conv2\.conv\.weight", "conv2.conv.weight"),
    (r"conv2\.bn\." + _REST, "conv2.bn0.{rest}"),
    (r"conv2\.(?P<i>bn[01]|fc[12])\." + _REST, "conv2.{i}.{rest}"),
    (r"downsample\.1\.weight", "shortcut.weight"),
    (r"downsample\.2\." + _REST, "shortcut.norm.{rest}"),
)
_IMAGENET_RULES = (
    (r"conv1\.(?P<stem>[036])\.weight", "stem.conv1_{stem}.weight"),
    (r"conv1\.(?P<stem>[14])\." + _REST, "stem.conv1_{stem}.norm.{rest}"),
    (r"bn1\." + _REST, "stem.conv1_3.norm.{rest}"),
    *_BLOCKS,
    (r"fc\." + _ENDS, "linear.{rest}"),
)
_OPENMMLAB_RULES = (
    (r"stem\.(?P<stem>[036])\.weight", "stem.conv1_{stem}.weight"),
    (r"stem\.(?P<stem>[147])\." + _REST, "stem.conv1_{stem}.norm.{rest}"),
    *_BLOCKS,
)
_MMDETECTION_RULES = (
    *_inside(r"backbone\.", "backbone.bottom_up.", *_OPENMMLAB_RULES),
    (r"neck\.lateral_convs\." + _LEVEL + _CONV, "backbone.fpn_lateral{level}{norm}.{rest}"),
    (r"neck\.fpn_convs\." + _LEVEL + _CONV, "backbone.fpn_output{level}{norm}.{rest}"),
    (r"rpn_head\.rpn_conv\." + _ENDS, "proposal_generator.rpn_head.conv.{rest}"),
    (r"rpn_head\.rpn_cls\." + _ENDS, "proposal_generator.rpn_head.objectness_logits.{rest}"),
    (r"rpn_head\.rpn_reg\." + _ENDS, "proposal_generator.rpn_head.anchor_deltas.{rest}"),
    *_inside(
        r"roi_head\.bbox_head(?P<head>\.\d+)?\.",
        "roi_heads.box_",
        (r"shared_convs\.(?P<layer>\d+)\." + _CONV, "head{head}.conv{layer}{norm}.{rest}"),
        (r"shared_fcs\.(?P<layer>\d+)\." + _ENDS, "head{head}.fc{layer}.{rest}"),
        (r"fc_cls\." + _ENDS, "predictor{head}.cls_score.{rest}"),
        (r"fc_reg\." + _ENDS, "predictor{head}.bbox_pred.{rest}"),
    ),
    *_inside(
        r"roi_head\.mask_head(?P<head>\.\d+)?\.",
        "roi_heads.mask_head{head}.",
        (r"convs\.(?P<layer>\d+)\." + _CONV, "mask_fcn{layer}{norm}.{rest}"),
        (r"upsample\." + _ENDS, "deconv.{rest}"),
        (r"conv_logits\." + _ENDS, "predictor.{rest}"),
    ),
)
MMDETECTION = Naming("MMDetection's detectors", _MMDETECTION_RULES)
# The first of those that fit the most keys is taken.
FOREIGN = (
    Naming("the ImageNet files and timm", _IMAGENET_RULES),
    Naming("OpenMMLab's backbones", (*_OPENMMLAB_RULES, (r"head\.fc\." + _ENDS, "linear.{rest}"))),
    MMDETECTION,
)
DETECTRON2 = "Detectron2"
DETECTRON2_KEY = re.compile(r"(.*\.)?(stem\.conv1_[123]|res[2-5]\.\d+\.(conv[123]|shortcut))\..+")

_ATTENTION_WEIGHT = re.compile(r".*\.conv2\.fc[12]\.weight")
_BACKBONE_KEY = re.compile(r"(stem|res[2-5]|linear)\.")
_OLD_NORM = re.compile(r"(.*res[2-5]\.\d+\.conv2)\.bn\.(\w+)")
# What PyTorch's parametrizations, weight norm and spectral norm keep in place of a weight.
_COMPUTED_FROM = re.compile(
    r"(?:.*\.)?(?:stem|conv1|res[2-5]|layer[1-4])\..*"
    r"\.(?:parametrizations\.\w+\.original\d*|weight_(?:g|v|orig))"
)
# DistributedDataParallel, Lightning and torch.compile put these before every key but counters.
_WRAPPERS = {"module", "model", "_orig_mod"}
# Places of the backbone in somebody's model.
_PLACES = ("backbone.bottom_up.", "bottom_up.", "backbone.", "encoder.")


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
        UnreadableError: as :func:`rename_resnest`.
    """
    return rename_resnest(Checkpoint("the checkpoint", find_tensors(checkpoint)[1])).weights


def rename_resnest(checkpoint: Checkpoint) -> Checkpoint:
    """As :func:`rename`, and see that it is a ResNeSt.

    Raises:
        UnreadableError: keys fit no known naming, or none is of a block's 3x3 convolution.
    """
    renamed = rename(checkpoint)
    if not renamed.naming or not any(".conv2." in key for key in renamed.weights):
        raise UnreadableError(
            f"{checkpoint.name} holds no known ResNeSt: its keys fit no known naming, or none is "
            f"of a block's 3x3 convolution ({_listed(renamed.weights)})"
        )
    return renamed


def rename(checkpoint: Checkpoint) -> Checkpoint:
    """Give a checkpoint's weights Detectron2's names; where none fits a known naming, all stay.

    Those of a backbone alone have no prefix. Files in other names than Detectron2's are for RGB,
    as all of the projects that use them normalise it.
    """
    named = checkpoint.weights
    while (
        len(first := {k.partition(".")[0] for k in named if "." in k}) == 1 and first <= _WRAPPERS
    ):
        named = {key.partition(".")[2] or key: value for key, value in named.items()}
    named = _without_pruning(checkpoint.name, named)
    naming, names = _recognize(named)
    if not naming:
        return checkpoint
    weights: dict[str, torch.Tensor] = {}
    unknown = []
    for old, new in names.items():
        if new is None or new in weights:
            unknown.append(old)
            continue
        is_matrix = named[old].ndim == 2 and _ATTENTION_WEIGHT.fullmatch(new)
        weights[new] = named[old][:, :, None, None] if is_matrix else named[old]
    if unknown:
        message = "%s: %d keys do not fit the naming of %s and are left out: %s"
        logger.warning(message, checkpoint.name, len(unknown), naming, _listed(unknown))
    backbone = _backbone(weights)
    return replace(
        checkpoint,
        weights=weights if backbone is None else backbone,
        by_suffix=checkpoint.by_suffix or backbone is not None,
        author="resnest_d2",
        naming=naming,
        # The detectors differ by less than a warning is worth.
        input_format=checkpoint.input_format or (IMAGENET_RGB if naming != DETECTRON2 else None),
    )


def _without_pruning(name: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Multiply the weights of ``torch.nn.utils.prune`` with their masks.

    Raises:
        UnreadableError: weights are kept in another form, which a model computes them from.
    """
    for key in [key for key in weights if key.endswith("_orig")]:
        plain = key.removesuffix("_orig")
        if (mask := weights.get(f"{plain}_mask")) is not None:
            weights = {**weights, plain: weights[key] * mask}
            del weights[key], weights[f"{plain}_mask"]
    if computed := [key for key in weights if _COMPUTED_FROM.fullmatch(key)]:
        raise UnreadableError(
            f"{name} holds parts that weights are computed from ({_listed(computed, 3)}): remove "
            "them where it comes from, by torch.nn.utils.parametrize.remove_parametrizations, "
            "remove_weight_norm or remove_spectral_norm, and save it again"
        )
    return weights


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
        foreign = {k for k in keys if is_bare and not _BACKBONE_KEY.match(k)}
        renamed = {k: None if k in foreign else _OLD_NORM.sub(r"\1.bn0.\2", k) for k in keys}
        return DETECTRON2, renamed
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


_BLOCK_KEY = re.compile(r"(?:.*\.)?(?:res(?P<res>[2-5])|layer(?P<layer>[1-4]))\.(?P<block>\d+)\..+")
_RESNETS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


@dataclass(frozen=True)
class Network:
    """A ResNet or ResNeSt: the number of blocks in each stage and their kind."""

    blocks: tuple[int, ...]
    has_attention: bool

    def __str__(self) -> str:
        resnests = {architecture.blocks: depth for depth, architecture in ARCHITECTURES.items()}
        depth = (resnests if self.has_attention else _RESNETS).get(self.blocks)
        kind = "ResNeSt" if self.has_attention else "ResNet"
        return f"{kind}-{depth}" if depth else f"{kind} with {list(self.blocks)} blocks"

    def fits(self, model: "Network") -> bool:
        """Return whether a file of this network fits a model, which may end at an earlier stage."""
        is_alike = self.has_attention == model.has_attention
        return is_alike and self.blocks[: len(model.blocks)] == model.blocks


def network_of(keys: Iterable[str]) -> Network | None:
    """Return the network that a state dict's keys belong to; None for another family's."""
    keys = list(keys)
    counts = [0, 0, 0, 0]
    for match in filter(None, map(_BLOCK_KEY.fullmatch, keys)):
        stage = int(match["res"]) - 2 if match["res"] else int(match["layer"]) - 1
        counts[stage] = max(counts[stage], int(match["block"]) + 1)
    blocks = tuple(itertools.takewhile(bool, counts))
    has_attention = any(re.search(r"\.conv2\.fc[12]\.", key) for key in keys)
    return Network(blocks, has_attention) if blocks else None
