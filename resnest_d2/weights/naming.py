"""State-dict names of published ResNeSts in Detectron2's names, and the network that names tell."""

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..modeling.resnest import ARCHITECTURES

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
DETECTRON2_KEY = re.compile(r"(.*\.)?(stem\.conv1_[123]|res[2-5]\.\d+\.(conv[123]|shortcut))\..+")


def is_known(keys: Iterable[str]) -> bool:
    """Return whether any key is Detectron2's for a ResNeSt's block, or of a known project."""
    namings = (DETECTRON2_KEY.fullmatch, *(naming.rename for naming in FOREIGN))
    return any(naming(key) for key in keys for naming in namings)


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
