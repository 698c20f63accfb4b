"""Names of published files to Detectron2's; test_timm.py and test_mmdet.py compare outputs too."""

import json
from pathlib import Path

import pytest
import timm
import torch
from helpers import image_shape, make_cfg
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet50

import resnest_d2
from resnest_d2.weights import convert
from resnest_d2.weights.convert import describe_conversion

OPTS = ["MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0]


@pytest.fixture(scope="module")
def openmmlab(imagenet):
    """The same in OpenMMLab's names, whose stem is numbered through."""
    stem = {f"conv1.{i}.": f"stem.{i}." for i in (0, 1, 3, 4, 6)} | {"bn1.": "stem.7."}
    renamed = {}
    for key, value in imagenet.items():
        start = next((s for s in stem if key.startswith(s)), "")
        renamed[stem.get(start, "") + key.removeprefix(start)] = value
    return {("head." if k.startswith("fc.") else "") + k: v for k, v in renamed.items()}


@pytest.fixture(scope="module")
def expected(imagenet):
    return convert(imagenet)


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[k], expected[k]) for k in expected)


def small_backbone():
    return resnest_d2.build_resnest_backbone(make_cfg(*OPTS), image_shape())


def test_whole_keys(imagenet, expected):
    assert set(expected) == set(small_backbone().state_dict()) | {"linear.weight", "linear.bias"}
    # The pair that renaming by substring confuses.
    assert torch.equal(expected["res2.0.conv2.bn1.weight"], imagenet["layer1.0.conv2.bn1.weight"])
    assert torch.equal(expected["res2.0.conv1.norm.weight"], imagenet["layer1.0.bn1.weight"])
    assert torch.equal(expected["stem.conv1_3.norm.bias"], imagenet["bn1.bias"])


def test_openmmlab_and_imagenet_names_are_the_same_network(openmmlab, expected):
    assert_equal(convert(openmmlab), expected)
    backbone = {f"backbone.{k}": v for k, v in openmmlab.items() if "fc" not in k or "conv2" in k}
    head = {k: v for k, v in openmmlab.items() if k.startswith("head.")}
    assert_equal(convert(backbone | head), expected)  # MMClassification's


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "module.model.", "backbone.", "backbone.bottom_up.", "encoder."]
)
def test_prefixes(prefix, imagenet, openmmlab, expected):
    for names in (imagenet, openmmlab):
        assert_equal(convert({prefix + key: value for key, value in names.items()}), expected)
        wrapped = {f"module.{prefix}{key}": value for key, value in names.items()}
        assert_equal(convert(wrapped), expected)


def test_detectron2_names_keep_their_place(expected):
    plain = small_backbone().state_dict()
    assert_equal(convert(plain), plain)
    detector = {f"backbone.bottom_up.{k}": v for k, v in plain.items()}
    detector |= {"backbone.fpn_output2.weight": torch.zeros(1), "anything.else": torch.zeros(2)}
    assert_equal(convert(detector), detector)
    for wrapper in ("module.", "model."):
        assert_equal(convert({wrapper + k: v for k, v in detector.items()}), detector)


@pytest.mark.parametrize("place", ["", "backbone.bottom_up."])
def test_old_shapes_and_names(imagenet, expected, place):
    def old(names):
        names = {k.replace("conv2.bn0.", "conv2.bn."): v for k, v in names.items()}
        return {
            k: v.flatten(1) if ".conv2.fc" in k and v.ndim == 4 else v for k, v in names.items()
        }

    assert_equal(convert(old(imagenet)), expected)
    detectron2 = {place + k: v for k, v in expected.items() if not k.startswith("linear.")}
    assert_equal(convert(old(detectron2)), detectron2)


def test_containers_and_averages(imagenet, expected):
    other = {key: value + 1 for key, value in imagenet.items()}
    for wrapped in (
        {"state_dict": imagenet, "optimizer": {"state": {}}, "epoch": 3},
        {"model": {"state_dict": imagenet}},
        # timm: the average is under its own key.
        {"state_dict": other, "state_dict_ema": imagenet},
        {"model": other, "model_ema": imagenet},
        # MMEngine: the average is the state_dict, what was averaged lies beside it.
        {
            "state_dict": imagenet,
            "ema_state_dict": {"steps": torch.tensor(1)}
            | {f"module.{k}": v for k, v in other.items()},
        },
        {"ema_state_dict": {f"module.{key}": value for key, value in imagenet.items()}},
        # MMDetection 2: copies beside the weights.
        imagenet | {"ema_" + k.replace(".", "_"): v for k, v in other.items()},
    ):
        assert_equal(convert(wrapped), expected)
    averaged = AveragedModel(small_backbone())
    assert_equal(convert(averaged.state_dict()), averaged.module.state_dict())


def test_arrays(imagenet, expected):
    assert_equal(convert({key: value.numpy() for key, value in imagenet.items()}), expected)


@pytest.mark.parametrize("extra", ["layer5.0.conv1.weight", "layer1.0.conv1.weight2", "module.x"])
def test_unknown_keys_are_listed(imagenet, expected, extra, caplog):
    more = {**imagenet, extra: torch.zeros(1)}
    with pytest.raises(ValueError, match=f"1 of {len(more)} keys .*of the ImageNet.*{extra}"):
        convert(more)
    assert_equal(convert(more, drop_unknown=True), expected)
    assert f"1 keys are of no known name: {extra}" in caplog.text
    many = imagenet | {f"x{i}": torch.zeros(1) for i in range(30)}
    with pytest.raises(ValueError, match="x0, x1, .*, x19 and 10 more"):
        convert(many)


def test_what_fits_nothing():
    with pytest.raises(ValueError, match="not the weights of a known ResNeSt: the file is empty"):
        convert({})
    with pytest.raises(ValueError, match="weights of a known ResNeSt: no tensors under epoch$"):
        convert({"epoch": 3})
    with pytest.raises(ValueError, match="a checkpoint is a dict of tensors, got list"):
        convert([1])
    for names in (["a", "b"], ["conv1.weight", "fc.x"]):
        with pytest.raises(ValueError, match=f"2 of 2 keys fit no known naming .*{names[0]}"):
            convert({name: torch.zeros(1) for name in names}, drop_unknown=True)


def test_mixtures_are_refused(imagenet, openmmlab, expected):
    detector = {f"backbone.bottom_up.{k}": v for k, v in expected.items()}
    wrapped = {f"backbone.{k}": v for k, v in imagenet.items()}
    for weights, strange, message in (
        (imagenet, "stem.3.weight", r"1 of .* of the ImageNet files and timm, .*\(stem.3.weight\)"),
        (
            imagenet,
            "res2.0.conv1.weight",
            r"152 of 153 keys .* of Detectron2, .*\(conv1.0.weight, ",
        ),
        (detector, "neck.fpn_convs.0.conv.weight", r"1 of .* of Detectron2, .*\(neck.fpn_convs.0"),
        (detector, "layer1.0.conv1.weight", r"1 of .* of Detectron2, .*\(layer1.0.conv1.weight\)"),
        (wrapped, "rpn_head.rpn_cls.bias", r"20 of .* MMDetection's.*\(backbone.conv1.0.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(weights | {strange: torch.zeros(1)})


def test_what_is_in_a_bare_backbones_file(expected, caplog):
    """Nothing else: it would make a detector of it."""
    more = expected | {"foo.bar": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"1 of .* naming of Detectron2.*\(foo.bar\)"):
        convert(more)
    assert_equal(convert(more, drop_unknown=True), expected)
    both = expected | {"res2.0.conv2.bn.weight": expected["res2.0.conv2.bn0.weight"]}
    with pytest.raises(ValueError, match=r"1 of .*\(res2.0.conv2.bn.weight\)"):
        convert(both)


def test_settings_of_averaging_are_no_weights(imagenet, expected):
    for beside in ({"ema": {"decay": 1}}, {"ema_state": {"num_updates": 3}}, {"model_ema": {}}):
        assert_equal(convert({"model": imagenet} | beside), expected)
    endless = {}
    endless["model"] = endless
    with pytest.raises(ValueError, match="weights of a known ResNeSt: no tensors under model$"):
        convert(endless)


def test_what_is_left_of_a_resnet():
    with pytest.raises(ValueError, match="none of them is of a block's 3x3 convolution"):
        convert(resnet50().state_dict(), drop_unknown=True)


def test_two_names_for_one_weight(imagenet):
    both = imagenet | {"layer1.0.conv2.bn.weight": imagenet["layer1.0.conv2.bn0.weight"]}
    with pytest.raises(ValueError, match=r"1 of .*\(layer1.0.conv2.bn.weight\)"):
        convert(both)


def test_a_resnet_is_none():
    with pytest.raises(ValueError, match=r"117 of 320 keys .*of the ImageNet.*\(conv1.weight, "):
        convert(resnet50().state_dict())


def test_what_was_recognised(imagenet, openmmlab, expected):
    found = describe_conversion({"state_dict": openmmlab})
    assert (found.naming, found.container) == ("OpenMMLab's backbones", "state_dict")
    assert_equal(found.backbone, expected)
    assert describe_conversion(expected).naming == "Detectron2"
    detector = {f"backbone.bottom_up.{k}": v for k, v in expected.items()}
    assert_equal(describe_conversion(detector).backbone, expected)
    detector["backbone.fpn_output2.weight"] = torch.zeros(1)
    assert describe_conversion(detector).backbone is None


@pytest.mark.parametrize("radix", [1, 2, 4])
def test_timm_names_with_and_without_classifier(radix):
    model = timm.models.resnest.ResNet(
        block=timm.models.resnest.ResNestBottleneck,
        layers=[1, 1, 1, 1],
        stem_type="deep",
        stem_width=32,
        avg_down=True,
        base_width=64,
        num_classes=0,
        block_args={"radix": radix, "avd": True, "avd_first": False},
    )
    converted = convert(model.state_dict())
    ours = resnest_d2.build_resnest_backbone(
        make_cfg(*OPTS, "MODEL.RESNETS.RADIX", radix), image_shape()
    )
    assert converted.keys() == ours.state_dict().keys()
    ours.load_state_dict(converted)


def test_the_facts_that_the_tests_carry():
    urls = json.loads((Path(__file__).parent / "data/weight_files.json").read_text())
    assert len(urls) == len(set(urls)) == 22 + 4 + 8 + 21 + 8


def test_where_each_weight_came_from(imagenet):
    found = describe_conversion({f"module.{key}": value for key, value in imagenet.items()})
    assert found.origins["res2.0.conv2.bn1.weight"] == "layer1.0.conv2.bn1.weight"
    assert sorted(found.origins.values()) == sorted(imagenet)
    assert found.dropped == ()
