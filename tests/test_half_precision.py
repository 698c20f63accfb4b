"""Split attention under autocast and in half precision, against the same layer in fp64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import randomize, relative_difference

from resnest_d2 import SplitAttentionConv2d
from resnest_d2.optimize.layers import FusedSplitAttentionConv2d

CHANNELS = 64
LARGE = 1e4  # fp16 ends at 65504; eight splits sum to more, and so do 64 channels


def make(radix, norm="BN", groups=1):
    """A layer whose convolution is left out: its maps are what a test gives it."""
    layer = SplitAttentionConv2d(
        CHANNELS * radix, CHANNELS, 1, radix=radix, norm=norm, groups=groups
    )
    randomize(layer)
    layer.bn0 = None
    layer.conv = torch.nn.Identity()
    return layer


def large_maps(radix):
    return LARGE * (0.5 + torch.rand(2, CHANNELS * radix, 7, 9))


def expected_of(layer, x):
    """In fp64, from the paper's equations."""
    wide = copy.deepcopy(layer).double()
    splits = x.double().view(len(x), layer.radix, CHANNELS, *x.shape[2:])
    pooled = splits.sum(1).mean((2, 3), keepdim=True)
    hidden = wide.fc1(pooled)
    logits = wide.fc2(F.relu(wide.bn1(hidden) if wide.bn1 is not None else hidden))
    logits = logits.view(len(x), layer.groups, layer.radix, -1).transpose(1, 2)
    shares = torch.sigmoid(logits) if layer.radix == 1 else logits.softmax(1)
    return (splits * shares.reshape(len(x), layer.radix, CHANNELS, 1, 1)).sum(1)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("way", ["fp16 autocast", "bf16 autocast", "fp16", "bf16"])
@pytest.mark.parametrize(("radix", "groups"), [(1, 1), (2, 1), (2, 2), (8, 1)])
def test_large_activations_do_not_overflow(radix, groups, way, fused):
    layer = make(radix, groups=groups).eval()
    kind = torch.float16 if way.startswith("fp16") else torch.bfloat16
    x = large_maps(radix).to(kind)
    if "autocast" not in way:
        layer = layer.to(kind)
    expected = expected_of(layer, x)
    assert expected.abs().max() < 65504  # the result itself fits
    if fused:
        layer = FusedSplitAttentionConv2d(layer)
    with torch.no_grad(), torch.autocast("cpu", dtype=kind, enabled="autocast" in way):
        actual = layer(x)
    assert actual.dtype == kind
    assert relative_difference(actual.double(), expected) <= 4 * torch.finfo(kind).eps


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["BN", "GN", ""])
def test_training_under_autocast(norm, kind):
    """Attention, with its softmax, is computed in fp32; what it learns and keeps is finite."""
    layer = make(8, norm).train()
    types = []
    for part in (layer.fc1, layer.bn1, layer.fc2):
        if part is not None:
            part.register_forward_hook(lambda m, inputs, output: types.append(output.dtype))
    leaf = large_maps(8).to(kind).requires_grad_()
    x = leaf * 1  # the activation is in place
    with torch.autocast("cpu", dtype=kind):
        out = layer(x)
        shares = layer.attention(
            x.detach().float().view(2, 8, CHANNELS, 7, 9).sum(1).mean((2, 3), True)
        )
    assert set(types) == {torch.float32}
    assert shares.dtype == torch.float32
    assert (shares.sum(1) - 1).abs().max() <= 1e-6
    out.float().mean().backward()
    values = [leaf.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
    assert all(value.isfinite().all() for value in [*values, *layer.buffers()])
    if norm == "BN":
        assert layer.bn1.num_batches_tracked == 2


def test_training_in_half_precision_updates_statistics():
    layer = make(2).half().train()
    before = layer.bn1.running_mean.clone()
    assert layer(torch.rand(2, 2 * CHANNELS, 7, 9).half()).dtype == torch.float16
    assert not torch.equal(layer.bn1.running_mean, before)
