"""SplitAttentionConv2d against a loop over cardinal groups and plain convolutions."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomize, relative_difference

from resnest_d2 import SplitAttentionConv2d
from resnest_d2.modeling.split_attention import attention_channels

CHANNELS = 144  # divides by every product of radix and cardinality below


def naive(module: SplitAttentionConv2d, x: torch.Tensor) -> torch.Tensor:
    """The paper's equations 1 and 2, one cardinal group and one split at a time."""
    radix, cardinality = module.radix, module.groups
    inputs = x.shape[1] // (radix * cardinality)
    outputs = module.channels // cardinality
    hidden = module.fc1.out_channels // cardinality
    weight, fc1, fc2 = (m.weight for m in (module.conv, module.fc1, module.fc2))

    def norm(bn, value, start, size):
        part = slice(start, start + size)
        return F.batch_norm(
            value, bn.running_mean[part], bn.running_var[part], bn.weight[part], bn.bias[part]
        )

    results = []
    for k in range(cardinality):
        splits = []
        for r in range(radix):
            g = r * cardinality + k  # radix-major
            piece = x[:, g * inputs : (g + 1) * inputs]
            out = F.conv2d(piece, weight[g * outputs : (g + 1) * outputs], padding=1)
            splits.append(norm(module.bn0, out, g * outputs, outputs).clamp(min=0))
        s = sum(splits).mean((2, 3), keepdim=True)
        mlp = slice(k * hidden, (k + 1) * hidden)
        z = F.conv2d(s, fc1[mlp], module.fc1.bias[mlp])
        z = norm(module.bn1, z, k * hidden, hidden).clamp(min=0)
        logits = []
        for r in range(radix):
            rows = slice((k * radix + r) * outputs, (k * radix + r + 1) * outputs)
            logits.append(F.conv2d(z, fc2[rows], module.fc2.bias[rows]))
        if radix == 1:
            weights = [1 / (1 + torch.exp(-logits[0]))]
        else:
            total = sum(torch.exp(v) for v in logits)
            weights = [torch.exp(v) / total for v in logits]
        results.append(sum(a * u for a, u in zip(weights, splits, strict=True)))
    return torch.cat(results, 1)


@pytest.mark.parametrize("radix", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_equals_a_loop_over_cardinal_groups(radix, groups):
    module = SplitAttentionConv2d(CHANNELS, CHANNELS, padding=1, groups=groups, radix=radix)
    randomize(module.double().eval())
    x = torch.randn(2, CHANNELS, 7, 9, dtype=torch.double, requires_grad=True)
    actual, expected = module(x), naive(module, x)
    assert relative_difference(actual, expected) <= 1e-12
    (gradient,) = torch.autograd.grad(actual.square().sum(), x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    assert relative_difference(gradient, expected_gradient) <= 1e-12


@pytest.mark.parametrize(("radix", "groups"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_zero_offsets_with_mask_one_half_is_half_the_plain_convolution(radix, groups):
    args = {"padding": 1, "stride": 2, "radix": radix, "groups": groups, "norm": ""}
    plain = SplitAttentionConv2d(32, 32, 3, **args)
    deformable = SplitAttentionConv2d(32, 32, 3, **args, deformable=True, deform_modulated=True)
    randomize(plain)
    deformable.load_state_dict(plain.state_dict())
    x = torch.randn(2, 32, 9, 9)
    zeros = torch.zeros(2, 27 * 2, 5, 5)
    # Through the attention too: halve the plain convolution's weights.
    with torch.no_grad():
        plain.conv.weight /= 2
    assert relative_difference(deformable(x, zeros), plain(x)) <= 1e-5


def test_integer_offsets_shift_the_taps():
    # Detectron2's layout: (dy, dx) interleaved per tap; all taps one down, two to the right.
    module = SplitAttentionConv2d(8, 8, 3, padding=1, norm="", deformable=True)
    x = torch.randn(1, 8, 10, 12)
    offset = torch.tensor([1.0, 2.0]).repeat(9).view(1, 18, 1, 1).expand(1, 18, 10, 12)
    shifted = torch.zeros_like(x)
    shifted[:, :, :-1, :-2] = x[:, :, 1:, 2:]
    expected = F.conv2d(shifted, module.conv.weight, padding=1, groups=2)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert relative_difference(module.conv(x, offset)[inner], expected[inner]) <= 1e-5


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deformable_convolution_computes_in_fp32_under_autocast(modulated, dtype):
    module = SplitAttentionConv2d(
        16, 16, 3, padding=1, deformable=True, deform_modulated=modulated
    ).eval()
    x = torch.randn(1, 16, 8, 8).to(dtype)
    offset = torch.randn(1, 27 if modulated else 18, 8, 8)
    expected = module.conv(x.float(), offset)
    with torch.autocast("cpu", dtype=dtype):
        actual = module.conv(x, offset)
    assert actual.dtype == dtype
    assert torch.equal(actual, expected.to(dtype))  # rounded once, at the end


def test_deformable_convolution_in_double_precision_has_exact_gradients():
    module = SplitAttentionConv2d(
        4, 4, 3, padding=1, norm="", deformable=True, deform_modulated=True
    ).double()
    x = torch.randn(1, 4, 4, 4, dtype=torch.double, requires_grad=True)
    offset = (0.3 * torch.randn(1, 27, 4, 4, dtype=torch.double)).requires_grad_()
    assert torch.autograd.gradcheck(module.conv, (x, offset))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"radix": 0}, "radix and groups must be at least 1, got 0 and 1"),
        ({"groups": 0}, "radix and groups must be at least 1, got 2 and 0"),
        ({"radix": 3}, r"in_channels 64 must be a multiple of groups \* radix = 1 \* 3"),
        ({"norm": "BatchNorm"}, "norm must be one of '', 'BN', .*, got 'BatchNorm'"),
    ],
)
def test_wrong_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        SplitAttentionConv2d(64, 64, 3, **args)


def test_offset_where_it_does_not_belong():
    x, offset = torch.randn(1, 8, 5, 5), torch.zeros(1, 18, 5, 5)
    with pytest.raises(ValueError, match="deformable=False. is given an offset"):
        SplitAttentionConv2d(8, 8, 3, padding=1)(x, offset)
    with pytest.raises(ValueError, match="deformable=True. needs an offset"):
        SplitAttentionConv2d(8, 8, 3, padding=1, deformable=True)(x)


@pytest.mark.parametrize(
    ("channels", "radix", "groups", "width"),
    [(64, 2, 1, 32), (512, 2, 1, 256), (96, 1, 4, 32), (80, 4, 2, 80), (48, 1, 3, 33)],
)
def test_attention_width(channels, radix, groups, width):
    # The first four are shapes of published files; the last shows the rounding to the cardinality.
    assert attention_channels(channels, radix, groups) == width
