"""Against timm: every ResNeSt it has, as classifiers with the same weights."""

import pytest
import timm
import torch
from helpers import randomize, relative_difference

from resnest_d2.modeling.resnest import make_resnest
from resnest_d2.weights import convert

FAST = {"avd_first": True, "bottleneck_width": 40, "radix": 4, "num_groups": 2}
VARIANTS = {
    "resnest14d": {"depth": 14},
    "resnest26d": {"depth": 26},
    "resnest50d": {"depth": 50},
    "resnest101e": {"depth": 101},
    "resnest200e": {"depth": 200},
    "resnest269e": {"depth": 269},
    "resnest50d_4s2x40d": {"depth": 50, **FAST},
    "resnest50d_1s4x24d": {
        "depth": 50,
        "avd_first": True,
        "bottleneck_width": 24,
        "radix": 1,
        "num_groups": 4,
    },
}


def test_every_resnest_of_timm_is_covered():
    assert set(timm.list_models("*resnest*")) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_same_logits(name):
    theirs = timm.create_model(name).eval()
    randomize(theirs)
    ours = make_resnest(**VARIANTS[name], num_classes=1000).eval()
    ours.load_state_dict(convert(theirs.state_dict()))
    x = torch.randn(2, 3, 96, 80)
    with torch.no_grad():
        assert relative_difference(ours(x)["linear"], theirs(x)) <= 1e-5
