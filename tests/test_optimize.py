"""Optimised models: the same outputs, without norms."""

import copy

import pytest
import torch
import torch._dynamo.utils
from detectron2.layers import FrozenBatchNorm2d
from helpers import assert_features_equal, image_shape, make_cfg, randomize, relative_difference
from test_heads import MODELS, SIZE, small_config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import resnest_d2
from resnest_d2 import model_zoo
from resnest_d2.engine.trainer import prepare_to_train
from resnest_d2.modeling.deform_conv import DeformConv2d
from resnest_d2.modeling.detector import build_detector
from resnest_d2.modeling.split_attention import SplitAttentionConv2d
from resnest_d2.optimize import optimize_for_inference
from resnest_d2.optimize.fold import fold

TOLERANCE = 1e-4
NORMS = (_BatchNorm, FrozenBatchNorm2d)
FORMATS = [torch.contiguous_format, torch.channels_last]
VARIANTS = [
    {},
    {"RADIX": 0},
    {"RADIX": 1},
    {"RADIX": 4},
    {"NUM_GROUPS": 2, "BOTTLENECK_WIDTH": 40},
    {"RADIX": 1, "NUM_GROUPS": 4, "BOTTLENECK_WIDTH": 24, "AVD_FIRST": True},
    {"RADIX": 4, "NUM_GROUPS": 2, "BOTTLENECK_WIDTH": 40, "AVD_FIRST": True},
    {"DEEP_STEM": False, "AVG_DOWN": False, "AVD": False},
    {"RES5_DILATION": 2},
    {"DEFORM_ON_PER_STAGE": [False, True, True, True]},
    {"DEFORM_ON_PER_STAGE": [False, False, True, True], "DEFORM_MODULATED": True, "RADIX": 0},
    {"NORM": "SyncBN"},
    {"NORM": "FrozenBN"},
    {"NORM": "GN"},
    {"NORM": ""},
]

# Of seconds rather than minutes of compilation.
SMALLEST = {"WIDTH_PER_GROUP": 8, "RES2_OUT_CHANNELS": 32, "OUT_FEATURES": ["res2"]}


def backbone(**keys):
    opts = {"DEPTH": 14, "NORM": "BN", **keys}
    flat = [item for key, value in opts.items() for item in (f"MODEL.RESNETS.{key}", value)]
    model = resnest_d2.build_resnest_backbone(make_cfg(*flat), image_shape()).eval()
    randomize(model)
    return model


def count_compilations():
    """How many graphs Dynamo has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def norms(model):
    return [module for module in model.modules() if isinstance(module, NORMS)]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("keys", VARIANTS, ids=str)
def test_backbones(keys, memory_format):
    model = backbone(**keys)
    before = copy.deepcopy(model.state_dict())
    optimized = optimize_for_inference(model, memory_format=memory_format)
    x = torch.randn(2, 3, 96, 127)
    with torch.no_grad():
        assert_features_equal(optimized(x), model(x), TOLERANCE)
    assert norms(optimized) == []
    assert not any(type(m) is SplitAttentionConv2d for m in optimized.modules())
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    # What it was made of is as it was.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert norms(model) or keys.get("NORM") in ("GN", "")


def detections(model):
    torch.manual_seed(0)
    image = torch.rand(3, SIZE, SIZE - 20) * 255
    with torch.no_grad():
        (output,) = model([{"image": image, "height": 2 * SIZE, "width": 2 * SIZE - 40}])
    return output


def drawn(kind):
    """A detector of each kind of head in the zoo, with statistics that folding would show."""
    model = build_detector(small_config(kind)).eval()
    mean, std = (getattr(model, name).clone() for name in ("pixel_mean", "pixel_std"))
    if kind == "baseline":  # whose depth random weights would let explode
        for norm in norms(model):
            randomize(norm)
    else:
        randomize(model)
    model.pixel_mean.copy_(mean)
    model.pixel_std.copy_(std)
    return model


def compare_detectors(model, optimized, tolerance):
    """Features, which are in fp32, and what is found."""
    image = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        features = optimized.backbone(image)
        assert_features_equal(features, model.backbone(image), tolerance)
    assert {value.dtype for value in features.values()} == {torch.float32}
    expected, actual = detections(model), detections(optimized)
    assert set(actual) == set(expected)
    if "sem_seg" in expected:
        assert relative_difference(actual["sem_seg"], expected["sem_seg"]) <= tolerance
    return expected.get("instances"), actual.get("instances")


@pytest.mark.parametrize("kind", MODELS)
def test_detectors(kind):
    """Plain ResNets too."""
    model = drawn(kind)
    optimized = optimize_for_inference(model, memory_format=torch.channels_last)
    assert norms(optimized) == []
    theirs, ours = compare_detectors(model, optimized, TOLERANCE)
    if theirs is not None:
        assert len(ours) == len(theirs) > 0
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        assert relative_difference(ours.scores, theirs.scores) <= TOLERANCE
        boxes = ours.pred_boxes.tensor, theirs.pred_boxes.tensor
        assert relative_difference(*boxes) <= TOLERANCE
        if theirs.has("pred_masks"):
            assert (ours.pred_masks != theirs.pred_masks).float().mean() <= 1e-3


@pytest.mark.parametrize(
    "kind", [k if k == "mask" else pytest.param(k, marks=pytest.mark.slow) for k in MODELS]
)
def test_detectors_in_half_precision(kind):
    """Features are nearly the same; coordinates and what comes out are in fp32."""
    model = drawn(kind)
    half = optimize_for_inference(model, dtype=torch.bfloat16)
    weights = {p.dtype for p in half.backbone.parameters()}
    assert weights == {torch.float32, torch.bfloat16} or kind == "baseline"
    theirs, ours = compare_detectors(model, half, 0.1)
    if theirs is not None:
        assert len(ours) > 0
        assert {ours.scores.dtype, ours.pred_boxes.tensor.dtype} == {torch.float32}
        assert abs(ours.scores.max() - theirs.scores.max()) <= 0.1


def test_half_precision_keeps_deformable_layers_and_refuses(monkeypatch, caplog):
    model = backbone(DEFORM_ON_PER_STAGE=[False, True, True, True], DEFORM_MODULATED=True)
    half = optimize_for_inference(model, dtype=torch.bfloat16)
    deformable = [m for m in half.modules() if isinstance(m, DeformConv2d)]
    assert {m.weight.dtype for m in deformable} == {torch.float32}
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_features_equal(half(x), model(x), 0.1)
    with pytest.raises(ValueError, match=r"torch.float16 is for GPUs; CPUs take torch.bfloat16"):
        optimize_for_inference(model, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"dtype must be torch.bfloat16, .* got torch.float64"):
        optimize_for_inference(model, dtype=torch.float64)
    for capability in ("AVX2", "AVX512"):
        caplog.clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        optimize_for_inference(model, dtype=torch.bfloat16)
        assert ("it will be slower in bfloat16" in caplog.text) == (capability == "AVX2")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_folding(affine, transposed, groups, bias):
    """A convolution and its norm, one after the other."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = kind(6, 9, 3, stride=2, groups=groups, bias=bias)
    norm = nn.BatchNorm2d(9, affine=affine)
    randomize(norm)
    norm.eval()
    x = torch.randn(2, 6, 11, 12)
    with torch.no_grad():
        expected = norm(conv(x))
        fold(conv, norm)
        assert relative_difference(conv(x), expected) <= 1e-6


def test_what_cannot_be_optimised():
    model = backbone()
    with pytest.raises(ValueError, match="the model is in training; call model.eval"):
        optimize_for_inference(model.train())
    model.eval().res3.train()
    with pytest.raises(ValueError, match="its part res3 is in training"):
        optimize_for_inference(model)
    model.eval()
    model.res2[0].conv1.norm = nn.BatchNorm2d(64, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="res2.0.conv1.norm takes its statistics from the batch"):
        optimize_for_inference(model)


def test_saved_and_loaded(tmp_path):
    """Whole, and as weights for another one that was optimised in the same way."""
    optimized, other = (
        optimize_for_inference(build_detector(small_config("mask")).eval()) for _ in range(2)
    )
    torch.save(optimized, tmp_path / "optimized.pt")
    again = torch.load(tmp_path / "optimized.pt", weights_only=False)
    again.to(memory_format=torch.channels_last)  # a file does not keep it
    other.load_state_dict(optimized.state_dict())
    image = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = optimized.backbone(image)
        for model in (again, other):
            assert_features_equal(model.backbone(image), expected, 0)


@pytest.mark.slow
def test_compiled(tmp_path):
    """Two compilations, not one for every size, and weights that are constants in the code."""
    model = backbone(**SMALLEST)
    compiled = optimize_for_inference(model, compile=True, memory_format=torch.channels_last)
    names = list(compiled.state_dict())
    torch._dynamo.reset()  # what other tests compiled would be looked up first
    before = count_compilations()
    counts = []
    with torch.no_grad():
        for size in ((96, 128), (320, 352), (384, 384), (352, 320), (96, 128)):
            x = torch.randn(1, 3, *size)
            assert_features_equal(compiled(x), model(x), TOLERANCE)
            counts.append(count_compilations() - before)
    assert counts == [1, 2, 2, 2, 2]
    with pytest.raises(ValueError, match="a compiled model keeps the weights it was compiled with"):
        compiled.load_state_dict(compiled.state_dict())
    assert not torch._inductor.config.freezing  # other people's compilations are theirs
    assert list(compiled.state_dict()) == names
    torch.save(compiled, tmp_path / "compiled.pt")
    again = torch.load(tmp_path / "compiled.pt", weights_only=False)
    again.load_state_dict(compiled.state_dict())
    with torch.no_grad():
        assert_features_equal(again(x), model(x), TOLERANCE)
    with pytest.raises(ValueError, match="there is no backbone to compile in a Conv2d"):
        optimize_for_inference(nn.Conv2d(3, 3, 1).eval(), compile=True)


def test_compiled_for_training(monkeypatch):
    """MODEL.COMPILE: the same gradients under the same names; without Inductor's minute of C++."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_(self, backend="aot_eager"))
    small = {**SMALLEST, "OUT_FEATURES": ["res3"]}
    plain, compiled = (nn.ModuleDict({"backbone": backbone(**small)}).train() for _ in range(2))
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(["MODEL.COMPILE", True, "MODEL.DEVICE", "cpu"])
    prepare_to_train(cfg, compiled)
    torch._dynamo.reset()
    before = count_compilations()
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, compiled):
        model["backbone"](x)["res3"].square().mean().backward()
    assert count_compilations() > before
    assert list(compiled.state_dict()) == list(plain.state_dict())
    # The bias before a batch norm has no gradient but rounding: all are compared with the largest.
    expected, actual = (
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        for model in (plain, compiled)
    )
    assert relative_difference(actual, expected) <= TOLERANCE
    cfg.MODEL.RESNETS.GRAD_CHECKPOINT = True
    with pytest.raises(ValueError, match=r"MODEL.COMPILE and MODEL.RESNETS.GRAD_CHECKPOINT cannot"):
        prepare_to_train(cfg, compiled)


def test_a_layer_alone():
    layer = SplitAttentionConv2d(32, 32, padding=1, norm="BN").eval()
    randomize(layer)
    x = torch.randn(1, 32, 9, 9)
    with torch.no_grad():
        assert relative_difference(optimize_for_inference(layer)(x), layer(x)) <= TOLERANCE
