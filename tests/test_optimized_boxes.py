"""RoIAlign and activations of optimised models, against torchvision and Detectron2."""

import pytest
import torch
from detectron2.layers import Conv2d, ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn

from resnest_d2.optimize import optimize_for_inference
from resnest_d2.optimize.layers import SparseROIAlign

HEIGHT, WIDTH, STRIDE = 23, 37, 8


def draw_boxes(number, spread=400.0):
    """Boxes inside, across and outside of the picture, whole-numbered and degenerate ones."""
    centers = torch.rand(number, 2) * torch.tensor([WIDTH, HEIGHT]) * STRIDE * 1.4 - 40
    sides = torch.rand(number, 2) ** 3 * spread
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], 1)
    boxes[:5, 2:] = boxes[:5, :2]  # points
    boxes[5:9, 2] = boxes[5:9, 0]  # lines
    boxes[9:12, 2:] = boxes[9:12, :2] - 7  # turned over
    boxes[12] = torch.tensor([0, -STRIDE, STRIDE * WIDTH, STRIDE * HEIGHT])
    boxes[13] = torch.tensor([1e4, 1e4, 1e4 + 5, 1e4 + 5])
    boxes[14:40] = boxes[14:40].round()
    return torch.cat([torch.randint(0, 2, (number, 1)).float(), boxes], 1)


def refuse(*_):
    raise AssertionError("torchvision's RoIAlign was called")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(7, 7), (3, 5), (14, 14), (1, 1)])
def test_equals_torchvision(monkeypatch, dtype, aligned, ratio, size):
    layer = ROIAlign(size, 1 / STRIDE, ratio, aligned)
    fast = SparseROIAlign(layer)
    assert repr(fast).endswith(repr(layer).removeprefix("ROIAlign"))
    boxes = draw_boxes(300)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        features = torch.randn(2, 8, HEIGHT, WIDTH, dtype=dtype).to(memory_format=memory_format)
        expected = layer(features, boxes)
        with monkeypatch.context() as patch:
            patch.setattr(ROIAlign, "forward", refuse)
            actual = fast(features, boxes)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("value", [1e6, torch.inf, torch.nan])
def test_boxes_far_larger_than_their_features_are_torchvisions(monkeypatch, value):
    boxes = draw_boxes(50)
    boxes[20, 3] = value
    fast = SparseROIAlign(ROIAlign((7, 7), 1 / STRIDE, 0, True))
    monkeypatch.setattr(ROIAlign, "forward", lambda *args: "torchvision's")
    assert fast(torch.randn(2, 3, 5, 6), boxes) == "torchvision's"


def test_no_box_gradients_and_graphs_are_torchvisions():
    layer = ROIAlign((7, 7), 1 / STRIDE, 0, True)
    fast = SparseROIAlign(layer)
    features, boxes = torch.randn(1, 3, HEIGHT, WIDTH), draw_boxes(40)
    boxes[:, 0] = 0
    assert fast(features, boxes[:0]).shape == (0, 3, 7, 7)
    leaf = features.clone().requires_grad_()
    fast(leaf, boxes).sum().backward()
    expected = leaf.grad.clone()
    leaf.grad = None
    layer(leaf, boxes).sum().backward()
    assert torch.equal(leaf.grad, expected)
    traced = torch.jit.trace(fast, (features, boxes))
    assert "roi_align" in str(traced.graph)
    other = draw_boxes(70, spread=100)
    other[:, 0] = 0
    torch.testing.assert_close(traced(features, other), layer(features, other))


class OwnROIAlign(ROIAlign):
    """Somebody's own layer."""


def test_what_is_replaced_in_a_model():
    sizes = {"scales": [1 / 4, 1 / 8], "sampling_ratio": 0, "output_size": 7}
    pooler = ROIPooler(pooler_type="ROIAlignV2", **sizes)
    watched = ROIPooler(pooler_type="ROIAlign", **sizes)
    watched.level_poolers[0].register_forward_hook(lambda *_: None)
    watched.level_poolers[1] = OwnROIAlign((7, 7), 1 / 8, 0)
    old = ROIPooler(pooler_type="ROIPool", **sizes)
    model = nn.ModuleList([pooler, watched, old]).eval()
    optimized = optimize_for_inference(model)
    kinds = [type(m).__name__ for m in optimized.modules() if not list(m.children())]
    expected = ["SparseROIAlign", "SparseROIAlign", "ROIAlign", "OwnROIAlign", "RoIPool", "RoIPool"]
    assert kinds == expected
    features = [torch.randn(2, 4, 80, 96), torch.randn(2, 4, 40, 48)]
    boxes = draw_boxes(120)
    lists = [Boxes(boxes[boxes[:, 0] == image, 1:].abs()) for image in (0, 1)]
    with torch.no_grad():
        expected, actual = pooler(features, lists), optimized[0](features, lists)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


def test_activations_in_place_are_those_of_known_convolutions_alone():
    shared = nn.ReLU()
    conv = Conv2d(3, 4, 1, activation=shared)
    hooked = Conv2d(4, 4, 1, activation=nn.ReLU())
    hooked.activation.register_forward_hook(lambda *_: None)
    model = nn.Sequential(conv, shared, hooked, nn.ReLU()).eval()
    optimized = optimize_for_inference(model)
    in_place = [m.inplace for m in optimized.modules() if isinstance(m, nn.ReLU)]
    assert in_place == [True, False, False, False]
    assert not shared.inplace
    image = torch.randn(1, 3, 5, 5)
    kept = image.clone()
    with torch.no_grad():
        torch.testing.assert_close(optimized(image), model(image))
    assert torch.equal(image, kept)
