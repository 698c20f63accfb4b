"""Grey and multi-channel models from weights for three channels."""

import numpy as np
import pytest
import torch
from helpers import randomize

from resnest_d2 import model_zoo
from resnest_d2.engine import load_config
from resnest_d2.inference import Predictor
from resnest_d2.modeling.detector import build_detector
from resnest_d2.weights import load_weights

DIGITS = model_zoo.get_config_file("mask_resnest14_digits")
CPU = ["MODEL.DEVICE", "cpu"]


@pytest.fixture
def colours(tmp_path):
    model = build_detector(load_config(DIGITS, CPU)).eval()
    randomize(model)
    torch.save({"model": model.state_dict()}, tmp_path / "colours.pth")
    return model, str(tmp_path / "colours.pth")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_equal_channels_get_the_same_response(colours, caplog, channels):
    model, file = colours
    options = ["MODEL.PIXEL_MEAN", str([9.0] * channels), "MODEL.PIXEL_STD", str([1.0] * channels)]
    other = build_detector(load_config(DIGITS, [*CPU, *options])).eval()
    assert load_weights(other, file) == []
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = model.backbone(image.expand(-1, 3, -1, -1))
        found = other.backbone(image.expand(-1, channels, -1, -1))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    (message,) = [m for m in caplog.messages if "three channels" in m]
    assert f"summed and divided among {channels}, in backbone.bottom_up.stem.conv1" in message


def test_grey_with_the_means_of_colours(colours, caplog):
    options = [*CPU, "INPUT.FORMAT", "L", "MODEL.WEIGHTS", colours[1]]
    cfg = load_config(DIGITS, options)
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx([(123.68 + 116.779 + 103.939) / 3])
    assert len(cfg.MODEL.PIXEL_STD) == 1
    assert "INPUT.FORMAT 'L' has one channel: MODEL.PIXEL_MEAN" in caplog.text
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    assert "instances" in Predictor(cfg)(image)
