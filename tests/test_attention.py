"""resnest-d2 attention: weights of split attention, and Grad-CAM, against loops and autograd."""

import json
import sys

import numpy as np
import pytest
import torch
from helpers import randomize
from PIL import Image
from test_heads import small_config
from torch.nn import functional as F

from resnest_d2 import Predictor, make_resnest, model_zoo
from resnest_d2.commands.attention import main
from resnest_d2.config import InputError
from resnest_d2.inference import attention
from resnest_d2.modeling.split_attention import SplitAttentionConv2d

SMALL = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64, "TEST.DETECTIONS_PER_IMAGE", 5]
SMALL += ["MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.RPN.PRE_NMS_TOPK_TEST", 100]


def make_predictor(cfg):
    """With drawn weights, so that every detection has a score of its own."""
    cfg.merge_from_list(SMALL)
    cfg.MODEL.WEIGHTS = ""
    predictor = Predictor(cfg, allow_untrained=True)
    randomize(predictor.model)
    predictor.set_score_threshold(0.0)
    return predictor


@pytest.fixture(scope="module")
def predictor():
    return make_predictor(model_zoo.get_config("mask_resnest14_digits"))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 255, (48, 60, 3), np.uint8)


def naive_weights(layer, pooled):
    """Softmax over the splits, channel by channel, of logits that are sorted by cardinal group."""
    logits = layer.fc2(F.relu(layer.bn1(layer.fc1(pooled))))[:, :, 0, 0]
    each = layer.channels // layer.groups
    weights = torch.zeros(len(pooled), layer.radix, layer.channels)
    for channel in range(layer.channels):
        group, place = divmod(channel, each)
        at = [(group * layer.radix + split) * each + place for split in range(layer.radix)]
        exps = logits[:, at].exp()
        weights[:, :, channel] = exps / exps.sum(1, keepdim=True)
    return weights


@pytest.mark.parametrize("radix", [2, 4])
def test_weights_are_those_of_the_layer_and_sum_to_1(radix):
    layer = SplitAttentionConv2d(16, 24, groups=2, radix=radix, padding=1).eval()
    randomize(layer)
    pooled = []
    layer.fc1.register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
    image = torch.randn(3, 16, 9, 7)
    with torch.no_grad():
        expected_output = layer(image)
        with attention.split_attention_weights(layer) as found:
            assert torch.equal(layer(image), expected_output)
            layer(2 * image)
        (weights,) = found.values()
        expected = torch.cat([naive_weights(layer, one) for one in pooled[1:]])
        layer(image)
    assert weights.shape == (6, radix, 24)  # the third run was not watched any more
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(weights.sum(1), torch.ones(6, 24))
    assert expected.std() > 0.01


def test_the_summary_is_that_of_loops_over_channels():
    weights = torch.rand(2, 3, 5).softmax(1)
    (block,) = attention.summarize({"backbone.res4.0.conv2": weights})["res4"]
    for branch in range(3):
        values = [weights[n, branch, c].item() for n in range(2) for c in range(5)]
        wins = sum(
            weights[n, branch, c] == max(weights[n, :, c]) for n in range(2) for c in range(5)
        )
        assert block["mean"][branch] == pytest.approx(np.mean(values))
        assert block["std"][branch] == pytest.approx(np.std(values))
        assert block["wins"][branch] == pytest.approx(wins.item() / 10)


@pytest.mark.parametrize(("radix", "branches"), [(0, None), (1, 1), (2, 2)])
def test_weights_of_a_backbone_by_stage(radix, branches, tmp_path):
    model = make_resnest(26, radix=radix, width_per_group=16, res2_out_channels=32).eval()
    randomize(model)
    with torch.no_grad(), attention.split_attention_weights(model) as weights:
        model(torch.rand(1, 3, 64, 64))
    stages = attention.by_stage(weights)
    if branches is None:
        assert not stages
        return
    assert {stage: len(blocks) for stage, blocks in stages.items()} == dict.fromkeys(
        ("res2", "res3", "res4", "res5"), 2
    )
    assert all(block.shape[1] == branches for blocks in stages.values() for block in blocks)
    attention.draw_weights(weights, tmp_path / "weights.png")
    assert np.ptp(np.array(Image.open(tmp_path / "weights.png"))) > 100


def by_hand(predictor, module, image, index):
    """Both maps from the gradient of a score with respect to a module's output, by autograd."""
    kept = []
    hook = module.register_forward_hook(lambda _, __, output: kept.append(output))
    inputs = predictor.prepare(image)
    score = predictor.model([inputs])[0]["instances"].scores[index]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    height, width = inputs["image"].shape[1:]
    padded = [-(-side // 32) * 32 for side in (height, width)]
    maps = {}
    for name, weight in {"GradCAM": gradient.mean((2, 3), True), "HiResCAM": gradient}.items():
        raw = (weight * kept[0]).sum(1, keepdim=True).clamp(min=0).detach()
        raw = F.interpolate(raw, padded, mode="bilinear")
        raw = ((raw - raw.min()) / (raw - raw.min()).max())[:, :, :height, :width]
        maps[name] = F.interpolate(raw, image.shape[:2], mode="bilinear")[0, 0].numpy()
    return maps


@pytest.mark.parametrize("layer", ["", "res4"])
def test_grad_cam_is_that_of_autograd_by_hand(predictor, pixels, layer):
    result = predictor(pixels)
    index = attention.choose_detection(result, 2)
    maps, name = attention.grad_cam(predictor, pixels, result.instances[index], layer)
    assert name == layer or (not layer and name in ("p2", "p3", "p4", "p5"))
    backbone = predictor.model.backbone
    module = (
        getattr(backbone.bottom_up, layer) if layer else getattr(backbone, f"fpn_output{name[1]}")
    )
    for method, expected in by_hand(predictor, module, pixels, index).items():
        assert expected.max() > 0.3
        np.testing.assert_allclose(maps[method], expected, atol=2e-3)
    assert not any(p.grad is not None for p in predictor.model.parameters())


LEVELS = ["p2", "p3", "p4", "p5"]


@pytest.mark.parametrize(
    ("kind", "features"),
    [
        ("retinanet", ["p3", "p4", "p5", "p6", "p7"]),
        ("dc5", ["res5"]),
        ("baseline", LEVELS),
        pytest.param("cascade", LEVELS, marks=pytest.mark.slow),
        pytest.param("faster dcn", LEVELS, marks=pytest.mark.slow),
        pytest.param("keypoint", LEVELS, marks=pytest.mark.slow),
        pytest.param("panoptic", LEVELS, marks=pytest.mark.slow),
        pytest.param("pointrend", LEVELS, marks=pytest.mark.slow),
        pytest.param("averaging cascade", LEVELS, marks=pytest.mark.slow),
    ],
)
def test_other_heads_and_frozen_backbones(kind, features, pixels):
    other = make_predictor(small_config(kind, "MODEL.BACKBONE.FREEZE_AT", 5))
    with attention.split_attention_weights(other.model) as weights:
        result = other(pixels)
    assert bool(weights) == (kind != "baseline")
    index = attention.choose_detection(result)
    maps, layer = attention.grad_cam(other, pixels, result.instances[index])
    assert layer in features
    for heat in maps.values():
        assert heat.shape == (48, 60)
        assert heat.min() >= 0
        assert heat.max() <= 1
    assert maps["GradCAM"].any() or maps["HiResCAM"].any()


def test_what_cannot_be_explained_is_said(predictor, pixels):
    result = predictor(pixels)
    detection = result.instances[0]
    with pytest.raises(InputError, match="--layer p6: the score of this detection does not depend"):
        attention.grad_cam(predictor, pixels, detection, "p6")
    assert attention.choose_detection(result, 6) is None
    assert attention.choose_detection(result.above(1.0)) is None
    semantic = make_predictor(small_config("deeplab"))
    with pytest.raises(InputError, match="the model finds no instances; its output has sem_seg"):
        attention.choose_detection(semantic(pixels))


def test_a_class_is_chosen_by_its_name(predictor, pixels):
    result = predictor(pixels)
    scores, names = result.instances.scores.tolist(), result.names
    for name in set(names):
        best = max((score, -i) for i, score in enumerate(scores) if names[i] == name)
        assert attention.choose_detection(result, name=name) == -best[1]


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    monkeypatch.delitem(sys.modules, "pytorch_grad_cam.utils.image", raising=False)
    with pytest.raises(ImportError, match=r"not installed: pip install 'resnest_d2\[explain\]'"):
        attention.import_grad_cam()


@pytest.fixture
def command(predictor, pixels, tmp_path):
    """Arguments of the command for a checkpoint and two pictures of one name."""
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(SMALL)
    content = {"model": predictor.model.state_dict(), "config": cfg.dump()}
    torch.save(content, tmp_path / "model_final.pth")
    files = [tmp_path / "a.png", tmp_path / "b" / "a.jpg"]
    files[1].parent.mkdir()
    for file in files:
        Image.fromarray(pixels).save(file)
    return [*files, "--model", tmp_path / "model_final.pth", "--output", tmp_path / "out"]


def test_the_command_writes_figures_and_numbers(command, tmp_path, capsys):
    assert main(list(map(str, [*command, "--confidence-threshold", 0.01]))) == 0
    assert "2 of 2 detections explained" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "out/attention.json").read_text())
    assert list(numbers) == [str(command[0]), str(command[1])]
    for one in numbers.values():
        for blocks in one["stages"].values():
            for block in blocks:
                assert sum(block["mean"]) == pytest.approx(1)
                assert sum(block["wins"]) == pytest.approx(1)
        assert list(one["stages"]) == ["res2", "res3", "res4", "res5"]
        assert 0.01 <= one["detection"]["score"] <= 1
    kinds = ("weights", "gradcam", "hirescam")
    names = {f"{stem}_{kind}.png" for stem in ("a", "a_2") for kind in kinds}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "attention.json"}


def test_no_detection_leaves_the_weights(command, tmp_path, capsys):
    assert main(list(map(str, [*command, "--confidence-threshold", 1]))) == 1
    said = capsys.readouterr()
    assert "0 of 2 detections explained" in said.out
    assert "has no detection 1 of score 1 or more (it has 0 in all), so there is no" in said.err
    numbers = json.loads((tmp_path / "out/attention.json").read_text())
    assert [one["detection"] for one in numbers.values()] == [None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--confidence-threshold", 2], "--confidence-threshold must be between 0 and 1, got 2.0"),
        (["--detection", 0], "--detection must be at least 1, got 0"),
        (["--layer", "res9"], "--layer res9 is none of p2, p3, p4, p5, p6, res2, res3, res4, res5"),
        (["--class", "77"], "--class: the model knows no '77'; did you mean 7"),
        (["--model", "model.onnx"], "model.onnx is exported and cannot be looked into"),
        (["--model", "mask_resnest5"], "mask_resnest5"),
    ],
)
def test_wrong_options_end_in_a_sentence(options, message, command, monkeypatch, capsys):
    class Exported:
        def __init__(self, predictor, *_):
            predictor.model = lambda inputs: inputs

    monkeypatch.setattr(Predictor, "_open_exported", lambda self, *_: Exported(self))
    with pytest.raises(SystemExit, match="2"):
        main(list(map(str, [*command, *options])))
    assert message in capsys.readouterr().err
