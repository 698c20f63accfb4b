"""Registered builders: defaults, whole detectors, and wrong settings."""

import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from commands import ROOT
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.projects.deeplab import add_deeplab_config, build_resnet_deeplab_backbone
from detectron2.projects.point_rend import PointRendMaskHead, add_pointrend_config
from detectron2.utils.file_io import PathManager
from helpers import image_shape, make_cfg

import resnest_d2
from resnest_d2.config import ConfigError
from resnest_d2.config.keys import RESNEST_DEFAULTS

BUILDERS = (
    "build_resnest_backbone",
    "build_resnest_fpn_backbone",
    "build_retinanet_resnest_fpn_backbone",
)
DEEPLAB = "build_resnest_deeplab_backbone"


@pytest.mark.parametrize("name", BUILDERS)
def test_works_on_a_config_without_our_keys(name):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    backbone = build_backbone(cfg).eval()
    resnest = backbone.bottom_up if isinstance(backbone, FPN) else backbone
    assert resnest.res3[0].conv2.radix == RESNEST_DEFAULTS["RADIX"]
    with torch.no_grad():
        output = backbone(torch.randn(1, 3, 128, 128))
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    assert {k: 128 // v.shape[-1] for k, v in output.items()} == strides
    expected = {
        "build_resnest_backbone": ["res2", "res3", "res4", "res5"],
        "build_resnest_fpn_backbone": ["p3", "p4", "p5", "p6"],
        "build_retinanet_resnest_fpn_backbone": ["p3", "p4", "p5", "p6", "p7"],
    }
    assert sorted(output) == expected[name]


def test_add_resnest_config_adds_and_changes_nothing():
    before, cfg = get_cfg(), get_cfg()
    resnest_d2.add_resnest_config(cfg)
    assert cfg.MODEL.pop("COMPILE") is False
    assert cfg.SOLVER.pop("BACKBONE_MULTIPLIER") == 1
    assert not cfg.INPUT.pop("LSJ").ENABLED
    assert not cfg.INPUT.pop("PIXEL_RANGE")
    for key in RESNEST_DEFAULTS:
        assert cfg.MODEL.RESNETS.pop(key) == RESNEST_DEFAULTS[key]
    assert cfg == before
    cfg.MODEL.RESNETS.RADIX = 4
    resnest_d2.add_resnest_config(cfg)
    assert cfg.MODEL.RESNETS.RADIX == 4


def test_stride_in_1x1_has_no_say():
    cfg = make_cfg("MODEL.RESNETS.STRIDE_IN_1X1", True, "MODEL.RESNETS.AVD", False)
    block = resnest_d2.build_resnest_backbone(cfg, image_shape()).res3[0]
    assert block.conv1.stride == (1, 1)
    assert block.conv2.conv.stride == (2, 2)


def test_group_width_counts_cardinality_once():
    # conv2's input in the published 2s2x40d file: int(64 * 40 / 64) * 2 = 80.
    cfg = make_cfg("MODEL.RESNETS.NUM_GROUPS", 2, "MODEL.RESNETS.BOTTLENECK_WIDTH", 40)
    model = resnest_d2.build_resnest_backbone(cfg, image_shape())
    assert model.res2[0].conv1.out_channels == 80


RESNETS = "MODEL.RESNETS."


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (RESNETS + "DEPTH", 18, "RESNETS.DEPTH must be one of 14, 26, 50.*got 18"),
        (RESNETS + "RADIX", -1, "RESNETS.RADIX must be at least 0, got -1"),
        (RESNETS + "RADIX", 3, r"res2: in_channels 64 must be a multiple of .*RADIX = 1 \* 3"),
        (RESNETS + "NORM", "BatchNorm", "RESNETS.NORM must be one of.*'SyncBN'.*got 'Ba"),
        (RESNETS + "RES5_DILATION", 3, "RESNETS.RES5_DILATION must be one of 1, 2, got 3"),
        (RESNETS + "OUT_FEATURES", ["c5"], r"OUT_FEATURES must name .*stem, res2.*\['c5'\]"),
        (RESNETS + "DEFORM_ON_PER_STAGE", [True], "DEFORM_ON_PER_STAGE must have 4 .* got 1"),
        (RESNETS + "WIDTH_PER_GROUP", 48, "NORM 'GN' does not fit 48 channels: 32 must divide"),
        ("MODEL.BACKBONE.FREEZE_AT", 6, "BACKBONE.FREEZE_AT must be one of 0, .*5, got 6"),
        ("MODEL.FPN.IN_FEATURES", ["res1"], r"FPN.IN_FEATURES \['res1'\] must name features"),
    ],
)
def test_wrong_settings_name_the_key(key, value, message):
    cfg = make_cfg(RESNETS + "NORM", "GN", key, value)
    with pytest.raises(ConfigError, match=message):
        resnest_d2.build_resnest_fpn_backbone(cfg, image_shape())


def test_a_width_without_a_channel_is_refused():
    cfg = make_cfg(RESNETS + "WIDTH_PER_GROUP", 21, RESNETS + "BOTTLENECK_WIDTH", 3)
    with pytest.raises(ConfigError, match="RESNETS.BOTTLENECK_WIDTH 3 leaves no channel of .*21"):
        resnest_d2.build_resnest_fpn_backbone(cfg, image_shape())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"RES4_DILATION": 2}, "RES5_DILATION with MODEL.RESNETS.RES4_DILATION 2 must be one of 4"),
        ({"RES5_DILATION": 2, "RES5_MULTI_GRID": [1, 2]}, "RES5_MULTI_GRID must have 3 factors"),
    ],
)
def test_dilations_of_detectron2s_deeplab(keys, message):
    cfg = make_cfg("MODEL.BACKBONE.NAME", DEEPLAB)
    add_deeplab_config(cfg)
    backbone = build_backbone(cfg)
    assert backbone.output_shape()["res5"].stride == 32  # its default multi-grid changes nothing
    cfg.MODEL.RESNETS.update(keys)
    with pytest.raises(ConfigError, match=message):
        build_backbone(cfg)
    cfg.MODEL.RESNETS.update(RES4_DILATION=2, RES5_DILATION=4, RES5_MULTI_GRID=[1, 2, 4])
    backbone = build_backbone(cfg)
    assert backbone.output_shape()["res5"].stride == 8
    assert [b.conv2.conv.dilation[0] for b in backbone.res5] == [2, 8, 16]


@pytest.mark.parametrize("name", BUILDERS)
def test_keys_of_deeplab_are_only_its_builders(name):
    """Another project adds them with DeepLab's values, and its dilated res5 is its own."""
    dilation = 2 if name == "build_resnest_backbone" else 1  # FPN needs all strides
    cfg = make_cfg("MODEL.BACKBONE.NAME", name, "MODEL.RESNETS.RES5_DILATION", dilation)
    add_deeplab_config(cfg)
    cfg.MODEL.RESNETS.update(RES4_DILATION=2, RES5_MULTI_GRID=[1, 2, 4])
    backbone = build_backbone(cfg)
    res5 = getattr(backbone, "bottom_up", backbone).res5
    assert [block.conv2.conv.dilation[0] for block in res5] == [1, dilation, dilation]


def test_import_without_detectron2_says_how_to_install_it():
    code = "import sys; sys.modules['detectron2'] = None; import resnest_d2"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    error = result.stderr.strip().splitlines()[-1]
    assert re.match("ImportError: resnest_d2 needs Detectron2.*make setup", error)


def test_import_registers_builders_and_weight_names():
    assert all(name in BACKBONE_REGISTRY for name in (*BUILDERS, DEEPLAB))
    assert PathManager.exists("resnest://ImageNet/resnest50")
    assert all(getattr(resnest_d2, name) is not None for name in resnest_d2.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        resnest_d2.Predicter  # noqa: B018


def test_a_project_keeps_its_own_fpn(monkeypatch):
    """As FCOS's and CenterNet2's: a builder that finds build_resnet_backbone in its module."""
    project = ModuleType("project")
    project.build_resnet_backbone = build_resnet_backbone

    def build_fcos_fpn_backbone(cfg, input_shape):
        bottom_up = project.build_resnet_backbone(cfg, input_shape)
        top = LastLevelP6P7(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.OUT_CHANNELS, "p5")
        return FPN(bottom_up, cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS, top_block=top)

    monkeypatch.setattr(project, "build_resnet_backbone", resnest_d2.build_resnest_backbone)
    cfg = make_cfg("MODEL.RESNETS.DEPTH", 14)
    model = build_fcos_fpn_backbone(cfg, image_shape()).eval()
    assert type(model.bottom_up) is resnest_d2.ResNeSt
    assert model.top_block.in_feature == "p5"
    features = model(torch.rand(1, 3, 128, 96))
    assert features["p6"].shape[2:] == (2, 2)
    assert features["p7"].shape[2:] == (1, 1)


def test_pointrend_is_detectron2s_in_other_programs():
    cfg = get_cfg()
    resnest_d2.add_resnest_config(cfg)
    add_pointrend_config(cfg)
    cfg.merge_from_file(resnest_d2.model_zoo.get_config_file("pointrend_resnest50"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 14])
    assert type(build_model(cfg).roi_heads.mask_head) is PointRendMaskHead
    mended = resnest_d2.build_detector(cfg).roi_heads.mask_head
    assert isinstance(mended, PointRendMaskHead)
    assert type(mended).__name__ == "AnyBatchPointRendMaskHead"
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == "PointRendMaskHead"  # what is saved


def test_a_grid_dilates_res5_of_stride_32_as_detectron2s():
    """MaskFormer's R101c configs have one."""
    cfg = make_cfg("MODEL.RESNETS.DEPTH", 50)
    add_deeplab_config(cfg)
    cfg.MODEL.RESNETS.update(RES5_DILATION=1, RES5_MULTI_GRID=[1, 2, 4])
    theirs = build_resnet_deeplab_backbone(cfg, image_shape())
    ours = BACKBONE_REGISTRY.get(DEEPLAB)(cfg, image_shape()).eval()
    expected = [block.conv2.dilation for block in theirs.res5]
    assert expected == [(1, 1), (2, 2), (4, 4)]
    assert [block.conv2.conv.dilation for block in ours.res5] == expected
    assert ours(torch.rand(1, 3, 96, 64))["res5"].shape[2:] == (3, 2)
