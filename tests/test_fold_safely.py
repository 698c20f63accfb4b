"""What only looks like a convolution and its norm is not folded, and outputs stay the same."""

import pytest
import torch
from detectron2.layers import Conv2d
from helpers import randomize, relative_difference
from torch import nn
from torch.nn.utils import parametrizations, prune

from resnest_d2.modeling.split_attention import SplitAttentionConv2d
from resnest_d2.optimize import optimize_for_inference
from resnest_d2.optimize.fold import fold_norms

CHANNELS = 4


class NormOfEachLevel(nn.Module):
    """A convolution that levels share and a norm that they do not, as in RetinaNet-SepBN."""

    def __init__(self, conv):
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(conv, norm(), nn.ReLU()) for _ in range(3))

    def forward(self, x):
        return torch.cat([tower(x) for tower in self.towers])


class NormFirst(nn.Sequential):
    def forward(self, x):
        return self[0](self[1](x))


class NormBeforeConvolution(Conv2d):
    def forward(self, x):
        return super(Conv2d, self).forward(self.norm(x))


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledAttention(SplitAttentionConv2d):
    def forward(self, x, offset=None):
        return 2 * super().forward(x, offset)


def norm():
    return nn.BatchNorm2d(CHANNELS)


def conv(kind=nn.Conv2d, **settings):
    return kind(CHANNELS, CHANNELS, 3, padding=1, **settings)


def hooked(module, layer):
    layer.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return module


def pruned(module, layer):
    prune.random_unstructured(layer, "weight", amount=0.5)
    return module


MADE = {
    "a norm for each level": lambda: NormOfEachLevel(conv()),
    "twice in a sequence": lambda: nn.Sequential(c := conv(), n := norm(), nn.ReLU(), c, n),
    "an activation between": lambda: nn.Sequential(conv(), nn.ReLU(), norm()),
    "an activated layer": lambda: nn.Sequential(conv(Conv2d, activation=nn.ReLU()), norm()),
    "another order": lambda: NormFirst(conv(), norm()),
    "a norm before its convolution": lambda: conv(NormBeforeConvolution, norm=norm()),
    "standardized weights": lambda: nn.Sequential(conv(Standardized), norm()),
    "a norm of another kind": lambda: conv(Conv2d, norm=DoubledNorm(CHANNELS)),
    "a hooked convolution": lambda: hooked(m := nn.Sequential(conv(), norm()), m[0]),
    "a hooked norm of a layer": lambda: hooked(m := conv(Conv2d, norm=norm()), m.norm),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(conv()), norm()),
    "pruned": lambda: pruned(m := nn.Sequential(conv(), norm()), m[0]),
    "attention of another kind": lambda: DoubledAttention(CHANNELS, CHANNELS, norm="BN"),
    "a hook in attention": lambda: hooked(m := SplitAttentionConv2d(CHANNELS, CHANNELS), m.fc1),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_more_than_a_convolution_and_a_norm(name):
    torch.manual_seed(0)
    model = MADE[name]().eval()
    if not name.startswith(("weight", "pruned")):
        randomize(model)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in norms:
        layer.running_mean.uniform_(-1, 1)
    x = torch.randn(2, CHANNELS, 9, 9)
    with torch.no_grad():
        expected = model(x)
        optimized = optimize_for_inference(model)
        assert relative_difference(optimized(x), expected) < 1e-6
    left = [m for m in optimized.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) == len(norms), "folded after all"


def test_a_norm_that_several_convolutions_share_is_folded_into_each():
    shared = norm()
    model = nn.Sequential(conv(), shared, nn.ReLU(), conv(), shared).eval()
    randomize(model)
    x = torch.randn(2, CHANNELS, 9, 9)
    with torch.no_grad():
        expected = model(x)
        assert fold_norms(model) == 2
        assert relative_difference(model(x), expected) < 1e-5
