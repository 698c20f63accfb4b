"""The zoo: settings equal to the reference's, configs that travel with the package."""

import itertools
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer

from resnest_d2 import model_zoo
from resnest_d2.config.keys import RESNEST_DEFAULTS, flat_items, portable_config
from resnest_d2.model_zoo.published import PUBLICATIONS
from resnest_d2.modeling.detector import build_detector
from resnest_d2.weights import UntrainedParametersError, loading, open_weights

ROOT = Path(__file__).parents[1]
# Per published model, each setting of the merged reference config that differs from Detectron2's
# defaults. Read off the reference, weights left out.
REFERENCE = json.loads((ROOT / "tests/data/zoo_settings.json").read_text())
PUBLISHED = [name for name in model_zoo.names() if name in REFERENCE]


def flatten(node):
    """Values by their dotted keys, with lists for tuples."""
    return {key: json.loads(json.dumps(value)) for key, value in flat_items(node)}


FAST = ("1s1x64d", "2s1x64d", "4s1x64d", "1s2x40d", "2s2x40d", "4s2x40d", "1s4x24d")
# What the reference does not have.
NEW = {
    *(f"retinanet_resnest{depth}" for depth in (50, 101)),
    *(f"mask_resnest{name}" for name in (14, 26, 269, "50_dcn", "14_digits")),
    *(f"mask_resnest50_fast_{variant}" for variant in FAST),
    *(f"deeplabv3plus_resnest{depth}" for depth in (50, 101)),
    *("keypoint_resnest50", "cascade_resnest269", "panoptic_resnest50", "faster_resnest50_dc5"),
    "pointrend_resnest50",
}
MMDET = {
    f"mmdet/{head}_resnest{depth}"
    for head in ("faster", "mask", "cascade_box", "cascade")
    for depth in (50, 101)
}


def test_the_zoo_is_complete():
    assert len(REFERENCE) == 21
    multi_scale = {"cascade_resnest200_dcn_3x_ms"}
    assert set(model_zoo.names()) == set(REFERENCE) | NEW | MMDET | multi_scale
    assert len(model_zoo.names()) == 51


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_equal_the_reference(name):
    expected = flatten(get_cfg()) | REFERENCE[name]
    for key, value in RESNEST_DEFAULTS.items():
        expected.setdefault(f"MODEL.RESNETS.{key}", value)
    expected |= {"MODEL.COMPILE": False, "SOLVER.BACKBONE_MULTIPLIER": 1.0}
    expected |= {"INPUT.LSJ.ENABLED": False, "INPUT.LSJ.IMAGE_SIZE": 1024}
    expected |= {"INPUT.LSJ.MIN_SCALE": 0.1, "INPUT.LSJ.MAX_SCALE": 2.0, "INPUT.PIXEL_RANGE": []}
    actual = flatten(model_zoo.get_config(name))
    del expected["MODEL.WEIGHTS"], actual["MODEL.WEIGHTS"]
    assert actual == expected


# Configs with a key of ours or of one of Detectron2's projects; plain Detectron2 reads all others.
WITH_OTHER_KEYS = {name for name in model_zoo.names() if "_fast_" in name}
WITH_OTHER_KEYS |= {"pointrend_resnest50", "deeplabv3plus_resnest50", "deeplabv3plus_resnest101"}


@pytest.mark.parametrize("name", model_zoo.names())
def test_other_detectron2_programs_read_the_configs(name):
    cfg = get_cfg()
    file = model_zoo.get_config_file(name)
    if name in WITH_OTHER_KEYS:
        resnets = "RADIX|AVD_FIRST|RES4_DILATION|RES5_MULTI_GRID"
        keys = f"MODEL.(RESNETS.({resnets})|ROI_MASK_HEAD.POINT_HEAD_ON)"
        with pytest.raises(KeyError, match=f"Non-existent config key: {keys}"):
            cfg.merge_from_file(file)
        return
    cfg.merge_from_file(file)
    ours = model_zoo.get_config(name)
    plain = yaml.safe_load(portable_config(ours).dump())
    assert CfgNode(plain) == CfgNode(yaml.safe_load(cfg.dump()))


@pytest.mark.usefixtures("registered_digits")
def test_a_stock_trainer_trains_a_config_as_it_stands(tmp_path):
    """With two images a batch; Detectron2 scales nothing unless a config asks for it."""
    assert not any(model_zoo.get_config(n).SOLVER.REFERENCE_WORLD_SIZE for n in model_zoo.names())
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("faster_resnest50"))
    options = f"""
        MODEL.DEVICE cpu MODEL.WEIGHTS - OUTPUT_DIR {tmp_path} SOLVER.IMS_PER_BATCH 2
        MODEL.RESNETS.DEPTH 14 MODEL.ROI_HEADS.NUM_CLASSES 10 TEST.PRECISE_BN.NUM_ITER 1
        MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN MODEL.ROI_BOX_HEAD.NORM BN
        INPUT.MIN_SIZE_TRAIN (64,64) DATASETS.TRAIN ("digits_train",) DATASETS.TEST ()
        DATALOADER.NUM_WORKERS 0
    """
    cfg.merge_from_list(options.split())
    cfg.MODEL.WEIGHTS = ""
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1, ()
    trainer = DefaultTrainer(cfg)
    trainer.train()
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.parametrize("name", sorted(NEW))
def test_variants_are_the_ones_in_their_names(name):
    cfg = model_zoo.get_config(name)
    resnets = cfg.MODEL.RESNETS
    backbone, depth = re.search(r"resnest(\d+)(?:_fast_\w+)?", name).group(0, 1)
    assert resnets.DEPTH == int(depth)
    is_scratch = "digits" in name
    assert cfg.MODEL.WEIGHTS == ("" if is_scratch else f"resnest://ImageNet/{backbone}")
    fast = re.search(r"(\d)s(\d)x(\d+)d", name)
    assert resnets.AVD_FIRST == bool(fast)
    expected = [*map(int, fast.groups())] if fast else [2, 1, 64]
    assert [resnets.RADIX, resnets.NUM_GROUPS, resnets.BOTTLENECK_WIDTH] == expected


# Parameters of the ImageNet networks, in millions, without their classifier (2.049 M).
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mask_resnest50", 27.5),
        ("mask_resnest101", 48.3),
        ("cascade_resnest200_3x", 70.2),
        ("mask_resnest269", 110.9),
        ("mask_resnest14", 10.6),
        ("mask_resnest26", 17.1),
        ("mask_resnest50_fast_1s4x24d", 25.7),
        ("mask_resnest50_fast_4s2x40d", 30.4),
    ],
)
def test_backbones_have_the_published_number_of_parameters(name, millions):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        backbone = build_detector(cfg).backbone.bottom_up
    count = sum(p.numel() for p in backbone.parameters()) + 2048 * 1000 + 1000
    # Frozen statistics of FREEZE_AT's norms are buffers there.
    frozen = (m for m in backbone.modules() if type(m).__name__ == "FrozenBatchNorm2d")
    count += sum(m.weight.numel() + m.bias.numel() for m in frozen)
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_leaves_repeat_nothing_that_a_base_could_hold():
    def lines(path):
        return {line.strip() for line in path.read_text().splitlines() if ":" in line}

    leaves = {name: lines(Path(model_zoo.get_config_file(name))) for name in model_zoo.names()}
    for (a, lines_a), (b, lines_b) in itertools.combinations(leaves.items(), 2):
        shared = {s for s in lines_a & lines_b if not s.endswith(":") and "_BASE_" not in s}
        assert len(shared) < 3, f"{a} and {b} share {shared}"


def plain(name, tmp_path, monkeypatch):
    """A small model of that name, whose weights are a file's."""
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.MODEL.DEVICE = "cpu"
    model = build_detector(cfg)
    file = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, file)
    cfg.MODEL.WEIGHTS = str(file)
    (tmp_path / f"{name}.yaml").write_text(portable_config(cfg).dump())
    monkeypatch.setattr(model_zoo, "config_dir", lambda: tmp_path)
    return model, file


def test_get_loads_the_weights_of_its_config(tmp_path, monkeypatch):
    """And is in training mode, as detectron2.model_zoo.get."""
    model, file = plain("mine", tmp_path, monkeypatch)
    found = model_zoo.get("mine", device="cpu")
    assert found.training
    states = model.state_dict()
    assert all(torch.equal(value, states[key]) for key, value in found.state_dict().items())
    with pytest.raises(ValueError, match="no checkpoint of 'mine' was published"):
        model_zoo.get("mine", trained=True)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file .*weights.pth"):
        model_zoo.get("mine", device="cpu")


def test_get_loads_the_published_checkpoint(tmp_path, monkeypatch):
    """Which has to fill the model."""
    _, file = plain("mask_resnest50", tmp_path, monkeypatch)
    assert model_zoo.get_config("mask_resnest50", trained=True).MODEL.WEIGHTS == (
        "resnest://COCO/mask_resnest50"
    )
    assert model_zoo.get_config("mask_resnest50.yaml").MODEL.WEIGHTS == str(file)
    opened = open_weights(file)
    monkeypatch.setattr(loading, "open_weights", lambda path: opened)
    assert model_zoo.get("mask_resnest50", trained=True, device="cpu").training
    opened.weights.pop("roi_heads.mask_head.predictor.weight")
    with pytest.raises(UntrainedParametersError, match="leaves 1 parameters .*roi_heads.mask_head"):
        model_zoo.get("mask_resnest50", trained=True, device="cpu")


# Read off the reference's tables: box AP, mask AP, the end of the checkpoint's name.
FACTS = {
    "faster_resnest50": (42.33, None, "ResNeSt_50_FPN_syncbn_range-scale_1x-ad123c0b.pth"),
    "faster_resnest50_dcn": (44.11, None, "ResNeSt_50_FPN_dcn_syncbn_range-scale_1x.pth"),
    "faster_resnest101": (44.72, None, "-d8f284b6.pth"),
    "cascade_box_resnest50": (45.41, None, "ResNeSt_50_FPN_syncbn_range-scale-1x-e9955232.pth"),
    "cascade_box_resnest101": (47.50, None, "_101_FPN_syncbn_range-scale_1x-3627ef78.pth"),
    "cascade_box_resnest200": (49.03, None, "-1be2a87e.pth"),
    "mask_resnest50": (42.81, 38.14, "/mask_rcnn_ResNeSt_50_FPN_syncBN_1x-f442d863.pth"),
    "mask_resnest101": (45.75, 40.65, "-528502c6.pth"),
    "cascade_resnest50": (46.19, 39.55, "-c58bd325.pth"),
    "cascade_resnest101": (48.30, 41.56, "-62448b9c.pth"),
    "cascade_resnest200_3x": (50.54, 44.21, "ResNeSt_200_FPN_syncBN_all_tricks_3x.pth"),
    "cascade_resnest200_dcn_3x": (50.91, 44.50, "_200_FPN_dcn_syncBN_all_tricks_3x-e1901134.pth"),
    "panoptic_resnest200_3x": (51.00, 43.68, "-43f8b731.pth"),
    "baselines/faster_resnet50": (39.25, None, "-fde56e2b.pth"),
    "baselines/faster_resnet101": (41.37, None, "-57c73356.pth"),
    "baselines/cascade_box_resnet50": (42.52, None, "-3c7f2ef2.pth"),
    "baselines/cascade_box_resnet101": (44.03, None, "-4073359b.pth"),
    "baselines/mask_resnet50": (39.97, 36.05, "-4939bd58.pth"),
    "baselines/mask_resnet101": (41.78, 37.51, "-55493cc2.pth"),
    "baselines/cascade_resnet50": (43.06, 37.19, "-03310c9b.pth"),
    "baselines/cascade_resnet101": (44.79, 38.52, "-8cec1631.pth"),
    "cascade_resnest200_dcn_3x_ms": (53.30, 47.10, "-e1901134.pth"),
    "mmdet/faster_resnest50": (42.0, None, "-range_1x_coco_20200926_125502-20289c16.pth"),
    "mmdet/faster_resnest101": (44.5, None, "-range_1x_coco_20201006_021058-421517f1.pth"),
    "mmdet/mask_resnest50": (42.6, 38.1, "mstrain_1x_coco_20200926_125503-8a2c3d47.pth"),
    "mmdet/mask_resnest101": (45.2, 40.2, "mstrain_1x_coco_20201005_215831-af60cdf9.pth"),
    "mmdet/cascade_box_resnest50": (44.5, None, "-range_1x_coco_20201122_213640-763cc7b5.pth"),
    "mmdet/cascade_box_resnest101": (46.8, None, "-range_1x_coco_20201005_113242-b9459f8f.pth"),
    "mmdet/cascade_resnest50": (45.4, 39.5, "mstrain_1x_coco_20201122_104428-99eca4c7.pth"),
    "mmdet/cascade_resnest101": (
        47.7,
        41.4,
        "/cascade_mask_rcnn_s101_fpn_syncbn-backbone%2Bhead_mstrain_1x_coco/cascade_mask_rcnn_s101_"
        "fpn_syncbn-backbone%2Bhead_mstrain_1x_coco_20201005_113243-42607475.pth",
    ),
}
PQ = {"panoptic_resnest200_3x": {"panoptic_seg/PQ": 47.90}}


def test_published_figures_and_checkpoints():
    assert set(PUBLISHED) <= set(FACTS)
    for name in model_zoo.names():
        if name not in FACTS:
            assert model_zoo.published(name) == {}
            for verb in (model_zoo.get_checkpoint_url, partial(model_zoo.get, trained=True)):
                with pytest.raises(ValueError, match=f"no checkpoint of '{name}' was published"):
                    verb(name)
            continue
        box, mask, ending = FACTS[name]
        expected = {"bbox/AP": box} | ({"segm/AP": mask} if mask else {}) | PQ.get(name, {})
        assert model_zoo.published(name) == model_zoo.published(f"{name}.yaml") == expected
        assert model_zoo.get_checkpoint_url(name).endswith(ending)
        assert model_zoo.get_checkpoint_url(f"{name}.yaml") == model_zoo.get_checkpoint_url(name)


def test_figures_are_of_the_data_set_that_the_config_tests_on():
    for name, publication in PUBLICATIONS.items():
        tested_on = publication.dataset
        if name.startswith("panoptic"):
            tested_on += "_panoptic_separated"
        assert model_zoo.get_config(name).DATASETS.TEST == (tested_on,)


VERBS = ("get_config_file", "get_config", "get", "get_checkpoint_url", "published")


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_name_lists_the_closest(verb):
    """Which may lie in another folder."""
    for name, message in {
        "cascade_resnet101": "no model 'cascade_resnet101'; did you mean .*cascade_r",
        "mask_resnet50": "no model 'mask_resnet50'; did you mean baselines/mask_resnet50",
        "lazy/mask_resnest50": "did you mean mask_resnest50 or mmdet/mask_resnest50",
    }.items():
        with pytest.raises(ValueError, match=message):
            getattr(model_zoo, verb)(name)
