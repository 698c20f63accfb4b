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


def _inside(pattern: str, name: str, *rules: Rule) -> tuple[Rule, ...]:
    return tuple((pattern + inner, name + new) for inner, new in rules)


_REST = r"(?P<rest>\w+)"
_ENDS = r"(?P<rest>weight|bias)"
# A convolution or the norm beside it.
_CONV = r"(?P<norm>conv(?=\.(?:weight|bias)$)|bn)\." + _REST
_LEVEL = r"(?P<level>[0-3])\."
# Where the backbone is in somebody's model.
_PLACE = r"(?:backbone\.bottom_up\.|bottom_up\.|backbone\.|encoder\.)?"
# Patterns of whole keys, because a part would match too much, and Detectron2's names.
_RULES: tuple[Rule, ...] = (
    *_inside(
        _PLACE + r"layer(?P<stage>[1-4])\.(?P<block>\d+)\.",
        "res{stage}.{block}.",
        (r"conv(?P<i>[13])\.weight", "conv{i}.weight"),
        (r"bn(?P<i>[13])\." + _REST, "conv{i}.norm.{rest}"),
        (r"conv2\.conv\.weight", "conv2.conv.weight"),
        (r"conv2\.bn\." + _REST, "conv2.bn0.{rest}"),
        (r"conv2\.(?P<i>bn[01]|fc[12])\." + _REST, "conv2.{i}.{rest}"),
        (r"downsample\.1\.weight", "shortcut.weight"),
        (r"downsample\.2\." + _REST, "shortcut.norm.{rest}"),
    ),
    # The ImageNet files and timm have conv1 and bn1, OpenMMLab has stem.
    (_PLACE + r"(?:conv1|stem)\.(?P<stem>[036])\.weight", "stem.conv1_{stem}.weight"),
    (_PLACE + r"(?:conv1|stem)\.(?P<stem>[147])\." + _REST, "stem.conv1_{stem}.norm.{rest}"),
    (_PLACE + r"bn1\." + _REST, "stem.conv1_3.norm.{rest}"),
    (_PLACE + r"(?:head\.)?fc\." + _ENDS, "linear.{rest}"),
    # MMDetection's detectors.
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
_DETECTRON2_KEY = re.compile(r"(.*\.)?(stem\.conv1_[123]|res[2-5]\.\d+\.(conv[123]|shortcut))\..+")
_BACKBONE_KEY = re.compile(r"(stem|res[2-5]|linear)\.")
_OLD_NORM = re.compile(r"(.*res[2-5]\.\d+\.conv2)\.bn\.(\w+)")
_ATTENTION_WEIGHT = re.compile(r".*\.conv2\.fc[12]\.weight")
# What PyTorch's parametrizations, weight norm and spectral norm keep in place of a weight.
_COMPUTED_FROM = re.compile(
    r"(?:.*\.)?(?:stem|conv1|res[2-5]|layer[1-4])\..*"
    r"\.(?:parametrizations\.\w+\.original\d*|weight_(?:g|v|orig))"
)
# DistributedDataParallel, Lightning and torch.compile put these before every key but counters.
_WRAPPERS = {"module", "model", "_orig_mod"}


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
        UnreadableError: no known name is of a block's 3x3 convolution.
    """
    renamed = rename(checkpoint)
    if not any(re.search(r"res[2-5]\.\d+\.conv2\.", key) for key in renamed.weights):
        raise UnreadableError(
            f"{checkpoint.name} holds no known ResNeSt: no known name is of a block's 3x3 "
            f"convolution ({_listed(renamed.weights)})"
        )
    return renamed


def rename(checkpoint: Checkpoint) -> Checkpoint:
    """Give a checkpoint's weights Detectron2's names; where none is known, all stay.

    Those of a backbone alone have no prefix. Files in other names than Detectron2's are for RGB,
    as all of the projects that use them normalise it.
    """
    named, input_format = checkpoint.weights, checkpoint.input_format
    while len(first := {k.partition(".")[0] for k in named if "." in k}) == 1:
        if not first <= _WRAPPERS:
            break
        named = {key.partition(".")[2] or key: value for key, value in named.items()}
    named = _without_pruning(checkpoint.name, named)
    if any(map(_DETECTRON2_KEY.fullmatch, named)):
        names = _from_detectron2(named)
    else:
        names, input_format = _from_others(named), input_format or IMAGENET_RGB
    if not any(names.values()):
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
        message = "%s: %d keys have no known name and are left out: %s"
        logger.warning(message, checkpoint.name, len(unknown), _listed(unknown))
    by_suffix = checkpoint.by_suffix or all(map(_BACKBONE_KEY.match, weights))
    return replace(
        checkpoint,
        weights=weights,
        by_suffix=by_suffix,
        author="resnest_d2",
        input_format=input_format,
    )


def _from_detectron2(keys: Iterable[str]) -> dict[str, str | None]:
    """New names by the old ones, None for what does not belong to a bare backbone."""
    names = {key: _OLD_NORM.sub(r"\1.bn0.\2", key) for key in keys}
    bare = {key: re.sub(f"^{_PLACE}", "", name) for key, name in names.items()}
    if all(map(_BACKBONE_KEY.match, bare.values())):
        return dict(bare)
    if any(_BACKBONE_KEY.match(k) and _DETECTRON2_KEY.fullmatch(k) for k in keys):
        return {k: name if _BACKBONE_KEY.match(k) else None for k, name in names.items()}
    return dict(names)  # a detector, which may have any other parts


def _from_others(keys: Iterable[str]) -> dict[str, str | None]:
    """New names by those of other projects, None for a key that no rule fits."""
    names = {key: _translate(key) for key in keys}
    if all(_BACKBONE_KEY.match(name) for name in names.values() if name):
        return names
    return {
        key: f"backbone.bottom_up.{name}" if name and _BACKBONE_KEY.match(name) else name
        for key, name in names.items()
    }


def _translate(key: str) -> str | None:
    for pattern, name in _RULES:
        if match := re.fullmatch(pattern, key):
            groups = match.groupdict().items()
            return name.format(**{k: _TRANSLATIONS.get(k, str)(v) for k, v in groups})
    return None


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
