"""examples/attention.py against the library grad-cam, and examples/web.py without a browser."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from commands import ROOT
from PIL import Image
from torch.nn import functional as F

from resnest_d2 import Predictor


def load_example(name):
    """A script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def predictor(small_detector):
    return Predictor(small_detector)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 60, 3), np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def attention():
    return load_example("attention")


def test_weights_are_those_of_a_loop_over_channels(attention, predictor, picture):
    image = np.asarray(Image.open(picture))
    layer = predictor.model.backbone.bottom_up.res3[0].conv2
    pooled = []
    hook = layer.fc1.register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
    weights = attention.split_attention_weights(predictor, image)
    hook.remove()
    assert len(weights) == 4
    found = weights["backbone.bottom_up.res3.0.conv2"]
    with torch.no_grad():
        logits = layer.fc2(F.relu(layer.bn1(layer.fc1(pooled[0]))))[0, :, 0, 0]
    for channel in range(layer.channels):
        splits = [logits[channel], logits[layer.channels + channel]]
        total = sum(split.exp() for split in splits)
        for split, logit in enumerate(splits):
            assert found[split, channel].item() == pytest.approx((logit.exp() / total).item())


class Detector(torch.nn.Module):
    """A detector as grad-cam calls it: padded pixels in, instances out."""

    def __init__(self, predictor, inputs):
        super().__init__()
        self.model, self.inputs = predictor.model, inputs

    def forward(self, padded):
        height, width = self.inputs["image"].shape[1:]
        image = padded[0, :, :height, :width]
        return [one["instances"] for one in self.model([{**self.inputs, "image": image}])]


def test_maps_are_those_of_grad_cam(attention, predictor, picture):
    """Another implementation, of PyPI's ``grad-cam``."""
    library = pytest.importorskip("pytorch_grad_cam")
    image = np.asarray(Image.open(picture))
    maps, layer = attention.grad_cam(predictor, image, 1)
    inputs = predictor.prepare(image)
    height, width = inputs["image"].shape[1:]
    padding = (0, -width % 32, 0, -height % 32)
    pixels = F.pad(inputs["image"][None], padding).requires_grad_()
    target, module = Detector(predictor, inputs), predictor.model.get_submodule(layer)
    for name, method in (("gradcam", library.GradCAM), ("hirescam", library.HiResCAM)):
        with method(target, [module]) as cam:
            heat = cam(pixels, [lambda found: found.scores[1]])[0, :height, :width]
        heat = Image.fromarray(heat).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
        assert np.ptp(heat) > 0.3
        assert np.abs(maps[name] - heat).mean() < 0.02
    predictor.model.zero_grad()


def test_the_command(attention, small_detector, picture, tmp_path, capsys):
    attention.main([str(picture), "--model", str(small_detector), "--output", str(tmp_path)])
    for name in ("weights.png", "gradcam.png", "hirescam.png"):
        assert np.ptp(np.asarray(Image.open(tmp_path / name))) > 100
    assert f"{tmp_path}/hirescam.png: where backbone.fpn_output" in capsys.readouterr().out


@pytest.fixture(scope="module")
def web():
    pytest.importorskip("gradio")
    return load_example("web")


def test_the_slider_changes_drawing_table_and_json_alike(web, small_detector, picture):
    (first, none), (last, result) = web.detect(str(small_detector), str(picture))
    assert first.startswith("Running")
    assert none is None
    assert last == "12 detections of any score."
    scores = result.instances.scores
    drawn, rows, coco = web.show(result, scores[3].item())
    assert drawn.shape == (512, 640, 3)
    assert len(rows) == len(json.loads(coco)) == 4
    assert [row[1] for row in rows] == pytest.approx(scores[:4].tolist(), abs=1e-3)
    corners = result.instances.pred_boxes.tensor[0].tolist()
    assert rows[0][2:] == pytest.approx(corners, abs=0.1)
    fewer, _, _ = web.show(result, scores[0].item() + 1e-6)
    assert (fewer != drawn).any()
    assert web.show(None, 0.5) == (None, [], "")


def test_what_is_wrong_is_said_in_a_sentence(web, small_detector, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 100)
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (101, 100)).save(tmp_path / "large.png")

    def said(model, file):
        text, result = list(web.detect(str(model), file and str(file)))[-1]
        assert result is None
        return text

    assert said(small_detector, None).startswith("Drop a picture first")
    text = said(small_detector, tmp_path / "text.png")
    assert text.startswith("The picture cannot be read as a picture: it is none of AVIF, BMP, ")
    text = said(small_detector, tmp_path / "large.png")
    assert text.startswith("The picture cannot be read as a picture: Image size (10100 pixels)")
    assert "no model 'absent'" in said("absent", tmp_path / "text.png")


def test_models_that_can_be_had_come_first(web):
    for models, first in (([], "mmdet/cascade_box_resnest101"), (["own.pth"], "own.pth")):
        blocks = web.build_page(models).blocks.values()
        (model,) = [block for block in blocks if block.get_block_name() == "dropdown"]
        assert model.value == first
