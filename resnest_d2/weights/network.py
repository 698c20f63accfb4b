"""Which ResNet or ResNeSt a state dict is of, by its keys."""

import re
from collections.abc import Iterable

from ..modeling.resnest import ARCHITECTURES

# A block of a stage in Detectron2's names, or in those of torchvision, timm and OpenMMLab.
_BLOCK = re.compile(r"(?:.*\.)?(?:res(?P<res>[2-5])|layer(?P<layer>[1-4]))\.(?P<block>\d+)\..+")
_ATTENTION = re.compile(r".*\.conv2\.fc[12]\..+")
_RESNETS = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "50", (3, 4, 23, 3): "101", (3, 8, 36, 3): "152"}


class Network:
    """Blocks of each stage and the kind of block."""

    def __init__(self, blocks: tuple[int, ...], has_attention: bool) -> None:
        self.blocks = blocks
        self.has_attention = has_attention

    def __str__(self) -> str:
        depths = {a.blocks: str(depth) for depth, a in ARCHITECTURES.items()}
        known = (depths if self.has_attention else _RESNETS).get(self.blocks)
        kind = "ResNeSt" if self.has_attention else "ResNet"
        return f"{kind}-{known}" if known else f"{kind} with {list(self.blocks)} blocks"

    def fits(self, model: "Network") -> bool:
        """Whether a file of this network is one of the model's, which may end earlier."""
        stages = len(model.blocks)
        same = self.blocks[:stages] == model.blocks
        return same and self.has_attention == model.has_attention


def network_of(keys: Iterable[str]) -> Network | None:
    """The network that the keys of a state dict are of; None if they are of another family."""
    counts = [0, 0, 0, 0]
    has_attention = False
    for key in keys:
        match = _BLOCK.fullmatch(key)
        if match:
            stage = int(match["res"]) - 2 if match["res"] else int(match["layer"]) - 1
            counts[stage] = max(counts[stage], int(match["block"]) + 1)
            has_attention = has_attention or bool(_ATTENTION.fullmatch(key))
    blocks = tuple(counts[: next((i for i, n in enumerate(counts) if n == 0), 4)])
    return Network(blocks, has_attention) if blocks else None
