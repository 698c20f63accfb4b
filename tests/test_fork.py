"""YAMLs of ResNeSt's fork of Detectron2, where a plain ResNet's builder builds a ResNeSt."""

import pytest

from resnest_d2 import model_zoo
from resnest_d2.config import ConfigError
from resnest_d2.config.load import PLAIN_BUILDERS
from resnest_d2.engine import Trainer, load_config
from resnest_d2.modeling.detector import build_detector

# The spelling and settings of detectors for microscopy that people publish.
CELLS = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {{NAME: "{}", FREEZE_AT: 0}}
  MASK_ON: False
  RESNETS:
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
    DEPTH: 200
    STRIDE_IN_1X1: False
    RADIX: 2
    DEFORM_ON_PER_STAGE: [False, True, True, True]
    DEFORM_MODULATED: True
    DEFORM_NUM_GROUPS: 2
    NORM: "SyncBN"
  FPN: {{NORM: "SyncBN", IN_FEATURES: ["res2", "res3", "res4", "res5"]}}
  ANCHOR_GENERATOR:
    SIZES: [[4], [9], [17], [31], [64], [127]]
  RPN: {{IN_FEATURES: ["p2", "p2", "p3", "p4", "p5", "p6"]}}
  ROI_HEADS: {{NUM_CLASSES: 1, NAME: CascadeROIHeads, IN_FEATURES: ["p2", "p3", "p4", "p5"]}}
  ROI_BOX_HEAD:
    {{NAME: "FastRCNNConvFCHead", NUM_CONV: 1, NUM_FC: 1, NORM: "SyncBN",
     POOLER_RESOLUTION: 14, CLS_AGNOSTIC_BBOX_REG: True}}
VERSION: 2
"""


@pytest.mark.parametrize("builder", PLAIN_BUILDERS)
@pytest.mark.parametrize(
    ("setting", "refused"),
    [
        ("RADIX: 2", "RADIX 2"),
        ("AVD: True", "AVD True"),
        ("DEEP_STEM: True", "DEEP_STEM True"),
        ("AVD: False, DEEP_STEM: False, AVG_DOWN: False, RADIX: 1, DEPTH: 101", None),
    ],
)
def test_a_plain_builder_with_settings_of_a_resnest(tmp_path, builder, setting, refused):
    file = tmp_path / "config.yaml"
    (tmp_path / "base.yaml").write_text(f"MODEL: {{RESNETS: {{{setting}}}}}\nVERSION: 2")
    file.write_text(f"_BASE_: base.yaml\nMODEL: {{BACKBONE: {{NAME: {builder}}}}}\nVERSION: 2")
    if refused is None:
        assert load_config(str(file)).MODEL.BACKBONE.NAME == builder
        return
    with pytest.raises(ConfigError) as error:
        load_config(str(file))
    assert f"MODEL.RESNETS.{refused} is a ResNeSt's" in str(error.value)
    right = builder.replace("resnet", "resnest")
    assert f"write {right!r}" in str(error.value)
    assert load_config(str(file), ["MODEL.BACKBONE.NAME", right])


def test_options_count_as_well():
    file = model_zoo.get_config_file("baselines/mask_resnet50")
    with pytest.raises(ConfigError, match=r"MODEL.RESNETS.RADIX 2 is .*'build_resnest_fpn_backbon"):
        load_config(file, ["MODEL.RESNETS.RADIX", "2"])
    assert load_config(file, ["MODEL.RESNETS.RADIX", "1"])


def test_a_builder_that_does_not_exist():
    file = model_zoo.get_config_file("mask_resnest14_digits")
    options = ["MODEL.BACKBONE.NAME", "build_resnst_fpn_backbone", "MODEL.DEVICE", "cpu"]
    cfg = load_config(file, options)
    for build in (build_detector, Trainer.build_model):
        with pytest.raises(
            ConfigError,
            match="MODEL.BACKBONE.NAME: no builder is called 'build_resnst_fpn_backbone'; did you "
            "mean .*build_resnest_fpn_backbone",
        ):
            build(cfg)


def test_the_right_name_builds_a_resnest(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CELLS.format("build_resnet_fpn_backbone"))
    with pytest.raises(ConfigError, match=r"RADIX 2 is .* write 'build_resnest_fpn_backbone'"):
        load_config(str(file))
    file.write_text(CELLS.format("build_resnest_fpn_backbone"))
    cfg = load_config(str(file), ["MODEL.DEVICE", "meta"])
    cfg.OUTPUT_DIR = str(tmp_path)
    assert Trainer.build_model(cfg).backbone.bottom_up.res3[0].conv2.radix == 2
