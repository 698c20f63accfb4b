"""What the golden files of MMDetection's detectors are made of, on both sides of the comparison.

The weights of a detector are too large to be kept, so each is drawn anew, from a generator that
its name seeds. ``tests/data/make_mmdet_golden.py`` gives them to MMDetection and keeps what comes
out; ``tests/test_mmdet.py`` converts them and gives them to Detectron2.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

FAMILIES = ("faster", "mask", "cascade_box", "cascade")
# Height and width of the image that the networks see, and of the one that it was resized from.
IMAGE_SIZE = (160, 224)
ORIGINAL_SIZE = (240, 336)
# Half-widths of the uniform distributions that give detections of many sizes, classes and scores.
SCALES = {"fc_cls.weight": 150.0, "fc_reg.weight": 1.5, "conv_logits.weight": 4.0}
SCALES |= {"rpn_cls.weight": 10.0, "rpn_reg.weight": 0.7}


def draw(name: str, shape: Sequence[int]) -> torch.Tensor:
    """A parameter or statistic; ``RandomState`` promises the same numbers for ever."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        low, high = 0.8, 1.2
    elif len(shape) == 1:
        low, high = (0.6, 1.0) if name.endswith("weight") else (-0.1, 0.1)
    else:
        factor = next((v for k, v in SCALES.items() if name.endswith(k)), 1.0)
        high = factor * math.sqrt(3 / np.prod(shape[1:]))
        low = -high
    return torch.from_numpy(random.uniform(low, high, shape).astype(np.float32))


def draw_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """A detector's state dict."""
    return {name: draw(name, shape) for name, shape in shapes.items()}


def image() -> torch.Tensor:
    """An RGB image of coloured tiles, uint8 of shape (3, height, width)."""
    tiles = np.random.RandomState(5).randint(0, 256, (3, IMAGE_SIZE[0] // 16, IMAGE_SIZE[1] // 16))
    return torch.from_numpy(np.kron(tiles, np.ones((1, 16, 16))).astype(np.uint8))
