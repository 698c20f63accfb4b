"""State-dict names of published ResNeSt files, as rules from whole keys to Detectron2's names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# A rule's pattern is matched against whole keys: a substring would also hit conv2.bn1.
Rule = tuple[re.Pattern[str], str]


@dataclass(frozen=True)
class Naming:
    """How a project names the parts of a ResNeSt or of a detector on it."""

    title: str
    rules: tuple[Rule, ...]

    def __str__(self) -> str:
        return self.title

    def rename(self, key: str) -> str | None:
        """The key's name in Detectron2, or None if it is none of this naming."""
        for pattern, replacement in self.rules:
            match = pattern.fullmatch(key)
            if match:
                return replacement.format(**_numbers(match))
        return None

    def count(self, keys: Iterable[str]) -> int:
        """How many of the keys are of this naming."""
        return sum(self.rename(key) is not None for key in keys)


def _numbers(match: re.Match[str]) -> dict[str, str]:
    """The match's groups; ``p``, ``q`` and ``s`` count from 0 and are 1, 2 and 1 higher here."""
    groups = {key: value or "" for key, value in match.groupdict().items()}
    for group, offset in (("p", 1), ("q", 2), ("s", 1)):
        if group in groups:
            groups[group] = str(int(groups[group]) + offset)
    return groups


def _compile(*rules: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_REST = r"(?P<rest>\w+)"
_ENDS = r"(?P<rest>weight|bias)"
_BLOCK = r"layer(?P<s>[1-4])\.(?P<block>\d+)\."
_RES = "res{s}.{block}."
# Stages and their blocks are named alike everywhere.
_BLOCKS = (
    (_BLOCK + r"conv(?P<i>[13])\.weight", _RES + "conv{i}.weight"),
    (_BLOCK + r"bn(?P<i>[13])\." + _REST, _RES + "conv{i}.norm.{rest}"),
    (_BLOCK + r"conv2\.conv\.weight", _RES + "conv2.conv.weight"),
    (_BLOCK + r"conv2\.bn\." + _REST, _RES + "conv2.bn0.{rest}"),
    (_BLOCK + r"conv2\.(?P<i>bn[01]|fc[12])\." + _REST, _RES + "conv2.{i}.{rest}"),
    (_BLOCK + r"downsample\.1\.weight", _RES + "shortcut.weight"),
    (_BLOCK + r"downsample\.2\." + _REST, _RES + "shortcut.norm.{rest}"),
)

IMAGENET = Naming(
    "the ImageNet files and timm",
    _compile(
        (r"conv1\.0\.weight", "stem.conv1_1.weight"),
        (r"conv1\.3\.weight", "stem.conv1_2.weight"),
        (r"conv1\.6\.weight", "stem.conv1_3.weight"),
        (r"conv1\.1\." + _REST, "stem.conv1_1.norm.{rest}"),
        (r"conv1\.4\." + _REST, "stem.conv1_2.norm.{rest}"),
        (r"bn1\." + _REST, "stem.conv1_3.norm.{rest}"),
        *_BLOCKS,
        (r"fc\." + _ENDS, "linear.{rest}"),
    ),
)

_MM_BACKBONE = (
    (r"stem\.0\.weight", "stem.conv1_1.weight"),
    (r"stem\.3\.weight", "stem.conv1_2.weight"),
    (r"stem\.6\.weight", "stem.conv1_3.weight"),
    (r"stem\.1\." + _REST, "stem.conv1_1.norm.{rest}"),
    (r"stem\.4\." + _REST, "stem.conv1_2.norm.{rest}"),
    (r"stem\.7\." + _REST, "stem.conv1_3.norm.{rest}"),
    *_BLOCKS,
)
OPENMMLAB_BACKBONE = Naming(
    "OpenMMLab's backbones",
    _compile(
        *_MM_BACKBONE,
        (r"head\.fc\." + _ENDS, "linear.{rest}"),
    ),
)
# Of the heads, those of a cascade have the stage's number behind their name.
_BOX = r"roi_head\.bbox_head(?P<stage>\.\d+)?\."
_MASK = r"roi_head\.mask_head(?P<stage>\.\d+)?\."
_RPN = "proposal_generator.rpn_head."
MMDETECTION = Naming(
    "MMDetection's detectors",
    _compile(
        *((r"backbone\." + pattern, "backbone.bottom_up." + new) for pattern, new in _MM_BACKBONE),
        (r"neck\.lateral_convs\.(?P<q>[0-3])\.conv\." + _ENDS, "backbone.fpn_lateral{q}.{rest}"),
        (r"neck\.lateral_convs\.(?P<q>[0-3])\.bn\." + _REST, "backbone.fpn_lateral{q}.norm.{rest}"),
        (r"neck\.fpn_convs\.(?P<q>[0-3])\.conv\." + _ENDS, "backbone.fpn_output{q}.{rest}"),
        (r"neck\.fpn_convs\.(?P<q>[0-3])\.bn\." + _REST, "backbone.fpn_output{q}.norm.{rest}"),
        (r"rpn_head\.rpn_conv\." + _ENDS, _RPN + "conv.{rest}"),
        (r"rpn_head\.rpn_cls\." + _ENDS, _RPN + "objectness_logits.{rest}"),
        (r"rpn_head\.rpn_reg\." + _ENDS, _RPN + "anchor_deltas.{rest}"),
        (
            _BOX + r"shared_convs\.(?P<p>\d+)\.conv\." + _ENDS,
            "roi_heads.box_head{stage}.conv{p}.{rest}",
        ),
        (
            _BOX + r"shared_convs\.(?P<p>\d+)\.bn\." + _REST,
            "roi_heads.box_head{stage}.conv{p}.norm.{rest}",
        ),
        (
            _BOX + r"shared_fcs\.(?P<p>\d+)\." + _ENDS,
            "roi_heads.box_head{stage}.fc{p}.{rest}",
        ),
        (_BOX + r"fc_cls\." + _ENDS, "roi_heads.box_predictor{stage}.cls_score.{rest}"),
        (_BOX + r"fc_reg\." + _ENDS, "roi_heads.box_predictor{stage}.bbox_pred.{rest}"),
        (
            _MASK + r"convs\.(?P<p>\d+)\.conv\." + _ENDS,
            "roi_heads.mask_head{stage}.mask_fcn{p}.{rest}",
        ),
        (
            _MASK + r"convs\.(?P<p>\d+)\.bn\." + _REST,
            "roi_heads.mask_head{stage}.mask_fcn{p}.norm.{rest}",
        ),
        (_MASK + r"upsample\." + _ENDS, "roi_heads.mask_head{stage}.deconv.{rest}"),
        (_MASK + r"conv_logits\." + _ENDS, "roi_heads.mask_head{stage}.predictor.{rest}"),
    ),
)

# The first that fits best is taken.
FOREIGN: tuple[Naming, ...] = (IMAGENET, OPENMMLAB_BACKBONE, MMDETECTION)
DETECTRON2 = "Detectron2"
DETECTRON2_KEY = re.compile(r"(.*\.)?(stem\.conv1_[123]|res[2-5]\.\d+\.(conv[123]|shortcut))\..+")
