"""COCO's run-length encoding of masks, both ways."""

import numpy as np
import pycocotools.mask as mask_util
import torch

from ..config import InputError


def encode_masks(masks: torch.Tensor) -> list[dict[str, object]]:
    """The RLE that ``pycocotools.mask.encode`` gives, in less time.

    It encodes a mask column by column, and an image's rows are what is contiguous: most of its time
    goes into turning large images that are mostly empty. Here only the part that is not is turned.

    Args:
        masks: bool, of shape (N, H, W), on the CPU.

    Returns:
        N dicts of "size" [H, W] and "counts", a str as JSON needs.
    """
    _, height, width = masks.shape
    arrays = masks.numpy()
    rows = masks.view(torch.uint8).amax(2).numpy() if masks.numel() else np.zeros((len(arrays), 0))
    found = []
    for mask, has_any in zip(arrays, rows, strict=True):
        rle = {"size": [height, width], "counts": _counts(mask, has_any)}
        found.append(as_text(mask_util.frPyObjects(rle, height, width)))
    return found


def as_text(rle: dict[str, object]) -> dict[str, object]:
    """Return a compressed RLE of pycocotools, whose counts are bytes, as JSON needs it."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _counts(mask: np.ndarray, has_any: np.ndarray) -> list[int]:
    """Lengths of runs of zeros and ones in turn, down the columns, zeros first."""
    height, width = mask.shape
    (where,) = np.nonzero(has_any)
    if not len(where):
        return [height * width]
    top, bottom = where[0], where[-1] + 1
    strip = mask[top:bottom]
    (columns,) = np.nonzero(strip.any(0))
    left, right = columns[0], columns[-1] + 1
    # A row of zeros above and below keeps columns apart.
    stride = bottom - top + 2
    part = np.zeros((right - left, stride), bool)
    part[:, 1:-1] = strip[:, left:right].T
    flat = part.ravel()
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), stride)
    # Changes, as positions in the whole image: from 0 to 1 and back in turn.
    changes = (left + column) * height + top + row
    starts, ends = changes[::2], changes[1::2]
    # One that ends at the bottom of a column may go on at the top of the next.
    goes_on = starts[1:] == ends[:-1]
    starts = starts[np.concatenate(([True], ~goes_on))]
    ends = ends[np.concatenate((~goes_on, [True]))]
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[-1] = 0, height * width
    edges[1:-1:2], edges[2:-1:2] = starts, ends
    counts = np.diff(edges)
    return (counts[:-1] if counts[-1] == 0 else counts).tolist()


def decode_counts(text: str) -> list[int]:
    """Lengths of runs in a compressed RLE.

    pycocotools reads it too, but without seeing where it is broken. Each number takes characters
    of five bits and a bit for "goes on", the lowest first; from the fourth on, numbers are
    differences to the last but one (``maskApi.c``, ``rleFrString``).

    Raises:
        InputError: a character is no part of an RLE, or a number is cut short.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise InputError(f"{character!r} is no part of one")
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > 35:  # pycocotools counts in 32 bits
            raise InputError("it has a number of more than 32 bits")
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise InputError("it is cut short")
    return lengths
