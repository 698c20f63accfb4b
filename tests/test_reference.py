"""Against the published implementation, PyPI's ``resnest``: names, shapes, outputs, gradients."""

import pytest
import torch
from helpers import (
    TorchvisionModulatedDeformConv,
    assert_features_equal,
    gradients,
    image_shape,
    make_cfg,
    randomize,
    relative_difference,
)

import resnest_d2
from resnest_d2.modeling.resnest import make_resnest
from resnest_d2.weights import convert


def reference_cfg(cfg):
    """The reference reads STRIDE_IN_1X1, which its own ``add_resnest_config`` turns off."""
    cfg = cfg.clone()
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    return cfg


def both(reference, cfg, fpn=False):
    """The reference's model with random weights, and ours with the same ones."""
    name = "build_resnest_fpn_backbone" if fpn else "build_resnest_backbone"
    theirs = getattr(reference, name)(reference_cfg(cfg), image_shape())
    ours = getattr(resnest_d2, name)(cfg, image_shape())
    randomize(theirs)
    expected = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def check(reference, cfg, size=64, fpn=False, train=False):
    """Names, shapes, outputs and, in training, gradients and what is frozen."""
    ours, theirs = (m.train(train) for m in both(reference, cfg, fpn))
    x = torch.randn(2, 3, size, size)
    with torch.set_grad_enabled(train):
        actual, expected = ours(x), theirs(x)
    assert_features_equal(actual, expected, 1e-5)
    assert ours.output_shape() == theirs.output_shape()
    if train:
        frozen = [n for n, p in theirs.named_parameters() if not p.requires_grad]
        assert [n for n, p in ours.named_parameters() if not p.requires_grad] == frozen
        if any(p.requires_grad for p in theirs.parameters()):
            expected_grads = gradients(theirs, expected.values())
            actual_grads = gradients(ours, actual.values())
            for name, gradient in expected_grads.items():
                assert relative_difference(actual_grads[name], gradient) <= 1e-5, name


@pytest.mark.parametrize("depth", [50, 101, 152, 200, 269])
def test_depths(reference, depth):
    check(reference, make_cfg("MODEL.RESNETS.DEPTH", depth))


@pytest.mark.parametrize("radix", [2, 4])
@pytest.mark.parametrize(
    "norm", ["BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"]
)
def test_radix_and_norm(reference, radix, norm):
    check(reference, make_cfg("MODEL.RESNETS.RADIX", radix, "MODEL.RESNETS.NORM", norm))


@pytest.mark.parametrize("freeze_at", range(6))
def test_training_with_frozen_stages(reference, freeze_at):
    check(reference, make_cfg("MODEL.BACKBONE.FREEZE_AT", freeze_at), train=True)


@pytest.mark.parametrize("train", [False, True])
def test_fpn(reference, train):
    cfg = make_cfg("MODEL.FPN.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0)
    check(reference, cfg, size=128, fpn=True, train=train)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("depth", [50, 101])
def test_deformable(reference, monkeypatch, depth, modulated, train):
    operator = "ModulatedDeformConv" if modulated else "DeformConv"
    monkeypatch.setattr(reference, operator, TorchvisionModulatedDeformConv)
    deform = [False, True, True, True]
    cfg = make_cfg("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", deform)
    cfg.MODEL.RESNETS.DEFORM_MODULATED = modulated
    cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS = 2
    check(reference, cfg, train=train)


def test_without_attention_or_pooling(reference):
    # RADIX 0 is the reference's RADIX 1: a plain convolution in the 3x3.
    cfg = make_cfg("MODEL.RESNETS.RADIX", 0, "MODEL.RESNETS.AVD", False)
    cfg.MODEL.RESNETS.DEEP_STEM = False
    cfg.MODEL.RESNETS.AVG_DOWN = False
    theirs_cfg = reference_cfg(cfg)
    theirs_cfg.MODEL.RESNETS.RADIX = 1
    theirs = reference.build_resnest_backbone(theirs_cfg, image_shape()).eval()
    ours = resnest_d2.build_resnest_backbone(cfg, image_shape()).eval()
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_features_equal(ours(x), theirs(x), 1e-5)


def imagenet_network(blocks, **args):
    """The reference's class for classification."""
    from resnest.torch.models.resnet import Bottleneck, ResNet

    args |= {"radix": 2, "deep_stem": True, "stem_width": 32, "avg_down": True, "avd": True}
    return ResNet(Bottleneck, blocks, **args)


@pytest.mark.usefixtures("reference")
def test_the_names_that_other_tests_take_for_those_of_imagenet(imagenet):
    theirs = imagenet_network([1, 1, 1, 1]).state_dict()
    assert {k: (v.shape, v.dtype) for k, v in imagenet.items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.items()
    }


@pytest.mark.parametrize(
    ("theirs_args", "ours_args", "stride"),
    [
        ({"dilation": 2}, {"res5_dilation": 2}, 16),
        ({"dilated": True}, {"res4_dilation": 2, "res5_dilation": 4}, 8),
    ],
)
@pytest.mark.usefixtures("reference")
def test_dilated_stages_are_the_imagenet_networks(theirs_args, ours_args, stride):
    # The reference's Detectron2 wrapper loses the pooling here, so the ImageNet class is asked.
    theirs = imagenet_network([3, 4, 6, 3], **theirs_args).eval()
    randomize(theirs)
    ours = make_resnest(50, **ours_args, num_classes=1000, out_features=["res5", "linear"])
    ours.load_state_dict(convert(theirs.state_dict()))
    ours.eval()
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        output = ours(x)
        assert relative_difference(output["linear"], theirs(x)) <= 1e-5
    assert output["res5"].shape == (2, 2048, 96 // stride, 96 // stride)
    assert ours.output_shape()["res5"].stride == stride
