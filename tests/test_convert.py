"""Names of published files to Detectron2's; test_timm.py and test_mmdet.py compare outputs too."""

import pytest
import torch
from helpers import small_backbone
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet50

from resnest_d2.weights import Checkpoint, UnreadableError, convert
from resnest_d2.weights.convert import rename


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


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.bottom_up.", "encoder."])
def test_prefixes(prefix, imagenet, openmmlab, expected):
    for names in (imagenet, openmmlab):
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
    backbone = {k: v for k, v in expected.items() if not k.startswith("linear.")}
    assert_equal(convert(old(detectron2)), backbone)  # alone, it has no prefix


def test_containers_and_averages(imagenet, expected):
    other = {key: value + 1 for key, value in imagenet.items()}
    copies = {"steps": torch.tensor(1)} | {f"module.{key}": value for key, value in other.items()}
    for wrapped in (
        {"model": {"state_dict": imagenet}, "model_ema": other},
        # MMEngine: the average is the state_dict, what was averaged lies beside it.
        {"state_dict": imagenet, "ema_state_dict": copies},
        # MMDetection 2: copies among the weights.
        imagenet | {"ema_" + k.replace(".", "_"): v for k, v in other.items()},
    ):
        assert_equal(convert(wrapped), expected)
    averaged = AveragedModel(small_backbone())
    assert_equal(convert(averaged.state_dict()), averaged.module.state_dict())


def test_what_fits_nothing():
    for nothing in (
        *({}, {"epoch": 3}, {"a": torch.zeros(1)}, resnet50().state_dict()),
        {"conv1.0.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
    ):
        with pytest.raises(UnreadableError, match="^the checkpoint holds no known ResNeSt"):
            convert(nothing)


def test_of_a_mixture_the_larger_part_is_taken(imagenet, expected, caplog):
    """And of a bare backbone's file nothing else, which would make a detector of it."""
    for weights, strange in (
        (imagenet, "stem.3.weight"),
        (imagenet, "layer5.0.conv1.weight"),
        (expected, "foo.bar"),
    ):
        assert_equal(convert(weights | {strange: torch.zeros(1)}), convert(weights))
        assert caplog.messages[-1].endswith(f"are left out: {strange}")


def test_what_was_recognised(openmmlab, expected):
    found = rename(Checkpoint("x", openmmlab))
    assert_equal(found.weights, expected)
    assert found.by_suffix
    detector = {f"backbone.bottom_up.{k}": v for k, v in expected.items()}
    assert rename(Checkpoint("x", detector)).by_suffix  # a backbone alone
    detector["backbone.fpn_output2.weight"] = torch.zeros(1)
    assert not rename(Checkpoint("x", detector)).by_suffix


def test_pruned_weights_are_multiplied_with_their_masks(imagenet, expected):
    """As ``torch.nn.utils.prune`` saves them, in foreign names and in Detectron2's."""
    for names, whole in ((imagenet, expected), (expected, expected)):
        masks = {k: (v > 0).float() for k, v in names.items() if v.ndim == 4}
        pruned = {k: v for k, v in names.items() if k not in masks}
        pruned |= {f"{k}_orig": names[k] for k in masks}
        pruned |= {f"{k}_mask": mask for k, mask in masks.items()}
        found = convert(pruned)
        assert found.keys() == whole.keys()
        for key, value in whole.items():
            assert torch.equal(found[key], value * (value > 0) if value.ndim == 4 else value), key


@pytest.mark.parametrize(
    "change",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.orthogonal,
        torch.nn.utils.parametrizations.spectral_norm,
    ],
)
def test_parametrized_weights_are_refused(change):
    model = small_backbone()
    change(model.res3[0].conv1)
    with pytest.raises(UnreadableError, match=r"parts that weights are computed from \(res3.0"):
        convert(model.state_dict())


def test_a_weight_norm_of_somebodys_head_is_left_out(imagenet, expected):
    head = {f"head.last_layer.weight_{part}": torch.ones(1) for part in "gv"}
    assert_equal(convert(imagenet | head), expected)
