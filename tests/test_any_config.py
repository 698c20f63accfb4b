"""Any settings: a step is taken, or a ConfigError names a key, or another project's error says."""

import os
import re
import traceback
from pathlib import Path

import torch
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resnest_d2
from resnest_d2 import model_zoo
from resnest_d2.config import ConfigError
from resnest_d2.engine import Trainer, load_config

PACKAGE = Path(resnest_d2.__file__).resolve().parent
# 500 take three minutes; `make test` tries some of them.
CASES = int(os.getenv("CONFIG_CASES", "40"))

numbers = st.sampled_from([-1, 0, 1, 2, 3, 4, 8])
stages = st.lists(
    st.sampled_from(["stem", "res2", "res3", "res4", "res5", "linear", "res6", "p2"]), max_size=5
)
pyramid = st.sampled_from(["['res2','res3','res4','res5']", "['res3','res4','res5']"])
norms = st.sampled_from(["BN", "SyncBN", "FrozenBN", "GN", "LN", "naiveSyncBN", "", "Foo"])
flags = st.booleans()
junk = st.sampled_from(["abc", "'1'", "None", "[]", "(1, 2)", "1.5", "{}", "nan"])

RESNETS = {
    "DEPTH": st.sampled_from([14, 26, 50, 101, 18, 34, 7, 0]),
    "NUM_GROUPS": numbers,
    "WIDTH_PER_GROUP": st.sampled_from([-4, 0, 1, 3, 8, 16]),
    "RES2_OUT_CHANNELS": st.sampled_from([-4, 0, 7, 8, 16, 32]),
    "STEM_OUT_CHANNELS": st.sampled_from([-4, 0, 1, 5, 8, 16]),
    "RADIX": numbers,
    "BOTTLENECK_WIDTH": st.sampled_from([-1, 0, 1, 16, 64]),
    "DEEP_STEM": flags,
    "AVD": flags,
    "AVD_FIRST": flags,
    "AVG_DOWN": flags,
    "GRAD_CHECKPOINT": flags,
    "NORM": norms,
    "RES4_DILATION": numbers,
    "RES5_DILATION": numbers,
    "RES5_MULTI_GRID": st.sampled_from(["[1,1,1]", "[1,2,4]", "[1,2]", "[0,1,1]", "[]"]),
    "DEFORM_ON_PER_STAGE": st.lists(flags, min_size=3, max_size=5),
    "DEFORM_MODULATED": flags,
    "DEFORM_NUM_GROUPS": numbers,
    "OUT_FEATURES": st.one_of(pyramid, stages),
}
OTHERS = {
    "MODEL.BACKBONE.FREEZE_AT": numbers,
    "MODEL.FPN.IN_FEATURES": st.one_of(pyramid, stages),
    "MODEL.FPN.OUT_CHANNELS": st.sampled_from([-1, 0, 1, 16, 32, 33]),
    "MODEL.FPN.NORM": norms,
    "MODEL.FPN.FUSE_TYPE": st.sampled_from(["sum", "avg", "max"]),
    "MODEL.ROI_HEADS.IN_FEATURES": st.one_of(st.just("['p2','p3','p4','p5']"), stages),
    "MODEL.RPN.IN_FEATURES": st.one_of(st.just("['p2','p3','p4','p5','p6']"), stages),
    "MODEL.ANCHOR_GENERATOR.SIZES": st.sampled_from(
        ["[[8],[16],[32],[64],[128]]", "[[32]]", "[[8,16],[16],[32],[64],[128]]", "[[8]]", "[]"]
    ),
    "MODEL.ROI_HEADS.NUM_CLASSES": st.sampled_from([-1, 0, 1, 2, 10]),
    "MODEL.ROI_BOX_HEAD.NORM": norms,
    "INPUT.FORMAT": st.sampled_from(["RGB", "BGR", "L", "HSV"]),
    "INPUT.MIN_SIZE_TRAIN": st.sampled_from(["(64,)", "(0,)", "()", "(-5,)", "64", "(64, 96)"]),
    "SOLVER.IMS_PER_BATCH": st.sampled_from([-1, 0, 1, 2]),
    "MODEL.DEVICE": st.sampled_from(["cpu", "cpu", "cpu", "nonsense"]),
}
KEYS = {f"MODEL.RESNETS.{key}": values for key, values in RESNETS.items()} | OTHERS
# A network of this size takes its step in a fraction of a second.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "16",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.NORM": "",
    "MODEL.ROI_BOX_HEAD.NORM": "",
}


@st.composite
def configs(draw):
    """A few settings of the digits' Mask R-CNN, each plausible or of the wrong type."""
    names = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True))
    return {name: str(draw(st.one_of(KEYS[name], KEYS[name], KEYS[name], junk))) for name in names}


def image():
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 10:50, 20:45] = True
    instances = Instances((64, 64), gt_masks=BitMasks(masks), gt_classes=torch.tensor([0]))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    return {"image": torch.rand(3, 64, 64) * 255, "height": 64, "width": 64, "instances": instances}


def is_foreign(error):
    """Whether an error was raised outside of this package."""
    frames = traceback.extract_tb(error.__traceback__)
    return PACKAGE not in Path(frames[-1].filename).resolve().parents


@settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(configs())
def test_it_trains_or_says_why_not(given_settings):
    """What this package refuses names a key; what others trip over stays their error."""
    opts = [part for pair in {**SMALL, **given_settings}.items() for part in pair]
    message = None
    try:
        cfg = load_config(model_zoo.get_config_file("mask_resnest14_digits"), opts)
        model = Trainer.build_model(cfg)
        inputs = [image(), image()]
        for one in inputs:
            one["image"] = one["image"][: len(cfg.MODEL.PIXEL_MEAN)]
        with EventStorage():
            sum(model(inputs).values()).backward()
    except ConfigError as error:
        message = str(error)
    except Exception as error:  # of a builder or layer of Detectron2 or PyTorch
        if not is_foreign(error):
            raise
    if message is not None:
        named = re.findall(r"\b(?:MODEL|INPUT|SOLVER)\.[A-Z0-9_.]*[A-Z0-9]", message)
        assert {*named} & {*given_settings}, f"{given_settings}: {message}"
