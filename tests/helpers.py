"""What several test files need."""

from collections.abc import Iterable, Mapping

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from torch import nn
from torchvision.ops import deform_conv2d

from resnest_d2 import add_resnest_config, build_resnest_backbone

STAGES = ["res2", "res3", "res4", "res5"]


def make_cfg(*opts: object) -> CfgNode:
    """Defaults of Detectron2 and ResNeSt with all stages put out, then KEY, VALUE pairs."""
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.OUT_FEATURES = STAGES
    cfg.MODEL.FPN.IN_FEATURES = STAGES
    cfg.merge_from_list(list(opts))
    return cfg


def image_shape(channels: int = 3) -> ShapeSpec:
    return ShapeSpec(channels=channels)


# A ResNeSt-14 that trains as a whole.
SMALL = ["MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0]


def small_backbone(channels: int = 3, *opts: object) -> nn.Module:
    return build_resnest_backbone(make_cfg(*SMALL, *opts), image_shape(channels))


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter and statistic, so that nothing hides behind zeros and ones.

    Scales keep activations near 1 in networks of any depth.
    """
    randomize_tensors(model.state_dict(), seed)


def randomize_tensors(state_dict: Mapping[str, torch.Tensor], seed: int = 0) -> None:
    """Draw them in place, each as its name and shape ask for."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for name, tensor in state_dict.items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var"):
                draw(tensor, 0.8, 1.2)
            elif tensor.ndim == 4:
                bound = (3 / tensor[0].numel()) ** 0.5
                if "offset" in name:
                    bound *= 0.5
                draw(tensor, -bound, bound)
            elif tensor.ndim == 1 and name.endswith("weight"):
                draw(tensor, 0.6, 1.0)
            else:
                draw(tensor, -0.1, 0.1)


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation, as a share of the expectation's largest value."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().item()
    assert scale > 0, "the expectation is all zero and would prove nothing"
    return (actual - expected).abs().max().item() / scale


def assert_features_equal(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float
) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert relative_difference(actual[name], value) <= tolerance, name


def gradients(model: nn.Module, outputs: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of a fixed random projection of the outputs."""
    generator = torch.Generator().manual_seed(7)
    loss = sum((o * torch.randn(o.shape, generator=generator)).mean() for o in outputs)
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


class TorchvisionModulatedDeformConv(nn.Module):
    """Stands in for ``detectron2.layers.ModulatedDeformConv``, which only exists compiled."""

    modulated = True

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        deformable_groups=1,
        bias=True,
        norm=None,
    ):
        super().__init__()
        assert not bias
        self.args = {"stride": stride, "padding": padding, "dilation": dilation}
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.norm = norm

    def forward(self, x, offset, mask=None):
        out = deform_conv2d(x, offset, self.weight, mask=mask, **self.args)
        return out if self.norm is None else self.norm(out)
