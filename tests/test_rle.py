"""Run-length encoding, against pycocotools' own."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnest_d2.data.rle import encode_masks


def expected(masks):
    rles = [mask_util.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_random_masks(height, width, share, seed):
    masks = np.random.RandomState(seed).rand(3, height, width) < share
    assert encode_masks(torch.from_numpy(masks)) == expected(masks)


@pytest.mark.parametrize("kind", ["none", "all", "a column", "a row", "corners", "two columns"])
def test_masks_at_the_edges(kind):
    mask = np.zeros((5, 7), bool)
    if kind == "all":
        mask[:] = True
    elif kind == "a column":
        mask[:, 3] = True
    elif kind == "a row":
        mask[4] = True
    elif kind == "corners":
        mask[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    elif kind == "two columns":  # the run goes from the bottom of one to the top of the next
        mask[2:, 3] = mask[:2, 4] = True
    assert encode_masks(torch.from_numpy(mask[None])) == expected(mask[None])


def test_no_masks():
    assert encode_masks(torch.zeros(0, 5, 7, dtype=torch.bool)) == []
