"""State-dict names of published ResNeSt files, mapped to Detectron2's."""

import re

import torch

# ImageNet and timm naming, matched against whole keys: a substring would also hit conv2.bn1.
_BLOCK = r"layer(?P<layer>[1-4])\.(?P<block>\d+)\."
_RULES: tuple[tuple[re.Pattern, str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"conv1\.0\.weight", "stem.conv1_1.weight"),
        (r"conv1\.3\.weight", "stem.conv1_2.weight"),
        (r"conv1\.6\.weight", "stem.conv1_3.weight"),
        (r"conv1\.1\.(?P<rest>\w+)", "stem.conv1_1.norm.{rest}"),
        (r"conv1\.4\.(?P<rest>\w+)", "stem.conv1_2.norm.{rest}"),
        (r"bn1\.(?P<rest>\w+)", "stem.conv1_3.norm.{rest}"),
        (_BLOCK + r"conv(?P<i>[13])\.weight", "{res}.conv{i}.weight"),
        (_BLOCK + r"bn(?P<i>[13])\.(?P<rest>\w+)", "{res}.conv{i}.norm.{rest}"),
        (_BLOCK + r"conv2\.conv\.weight", "{res}.conv2.conv.weight"),
        (_BLOCK + r"conv2\.bn\.(?P<rest>\w+)", "{res}.conv2.bn0.{rest}"),
        (_BLOCK + r"conv2\.(?P<i>bn[01]|fc[12])\.(?P<rest>\w+)", "{res}.conv2.{i}.{rest}"),
        (_BLOCK + r"downsample\.1\.weight", "{res}.shortcut.weight"),
        (_BLOCK + r"downsample\.2\.(?P<rest>\w+)", "{res}.shortcut.norm.{rest}"),
        (r"fc\.(?P<rest>weight|bias)", "linear.{rest}"),
    )
)
_DETECTRON2_KEY = re.compile(r"(.*\.)?(stem\.conv1_[123]|res[2-5]\.\d+\.(conv[123]|shortcut))\..+")
_ATTENTION_WEIGHT = re.compile(r".*\.conv2\.fc[12]\.weight")


def convert(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a ResNeSt's weights to Detectron2's names.

    Known are the naming of the ImageNet files, which timm shares, and Detectron2's own. Old files
    hold the attention's ``fc1`` and ``fc2`` as matrices; they become 1x1 convolutions.

    Args:
        state_dict: names to tensors.

    Returns:
        a new dict; a backbone's names have no prefix (``stem.``, ``res2.`` to ``res5.``,
        ``linear.``), Detectron2 names keep theirs.

    Raises:
        ValueError: no naming fits all keys; the message lists some of those that do not fit.
    """
    if any(_DETECTRON2_KEY.fullmatch(key) for key in state_dict):
        renamed = dict(state_dict)
    else:
        renamed = {}
        unknown = []
        for key, value in state_dict.items():
            new = _rename(key)
            if new is None:
                unknown.append(key)
            else:
                renamed[new] = value
        if unknown or not renamed:
            examples = ", ".join(unknown[:5]) or "the file is empty"
            raise ValueError(
                f"not the weights of a known ResNeSt: {len(unknown)} of {len(state_dict)} keys fit "
                f"no known naming ({examples})"
            )
    return {
        key: value[:, :, None, None]
        if value.ndim == 2 and _ATTENTION_WEIGHT.fullmatch(key)
        else value
        for key, value in renamed.items()
    }


def _rename(key: str) -> str | None:
    for pattern, replacement in _RULES:
        match = pattern.fullmatch(key)
        if match:
            parts = match.groupdict()
            if "layer" in parts:
                parts["res"] = f"res{int(parts['layer']) + 1}.{parts['block']}"
            return replacement.format(**parts)
    return None
