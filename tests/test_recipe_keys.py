"""Keys for recipes that Detectron2 has in its LazyConfigs or projects only."""

import math

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from short_training import make

from resnest_d2 import model_zoo
from resnest_d2.data.mapper import Mapper, large_scale_jitter
from resnest_d2.engine import Trainer

LSJ = {"INPUT.LSJ.ENABLED": "True", "INPUT.LSJ.IMAGE_SIZE": "96"}


def config(*opts):
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


def test_jitter_scales_crops_and_pads(registered_digits):
    cfg = config("INPUT.LSJ.ENABLED", True, "INPUT.LSJ.IMAGE_SIZE", 96, "INPUT.LSJ.MIN_SCALE", 0.5)
    mapper = Mapper(cfg, is_train=True, **large_scale_jitter(cfg))
    (entry, *_) = DatasetCatalog.get("digits_train")
    areas = []
    for _ in range(40):
        record = mapper(entry)
        assert record["image"].shape == (3, 96, 96)
        boxes = record["instances"].gt_boxes.tensor
        assert ((boxes >= 0) & (boxes <= 96)).all()
        areas += record["instances"].gt_boxes.area().tolist()
        assert len(record["instances"].gt_masks) == len(boxes)
    assert max(areas) > 4 * min(areas)  # scales of 0.5 to 2


def test_a_training_with_jitter_and_what_it_excludes(tmp_path, registered_digits):
    make(tmp_path, keys={**LSJ, "SOLVER.MAX_ITER": "1"}).train()
    for keys, message in (
        (["INPUT.LSJ.IMAGE_SIZE", 0], "INPUT.LSJ.IMAGE_SIZE must be at least 1, got 0"),
        (["INPUT.LSJ.MIN_SCALE", 3.0], "INPUT.LSJ.MIN_SCALE must be above 0 and at most MAX_SCALE"),
        (["INPUT.LSJ.MIN_SCALE", 0.0], "INPUT.LSJ.MIN_SCALE must be above 0"),
        (["INPUT.CROP.ENABLED", True], "INPUT.LSJ.ENABLED and INPUT.CROP.ENABLED exclude each"),
    ):
        with pytest.raises(ValueError, match=message):
            large_scale_jitter(config("INPUT.LSJ.ENABLED", True, *keys))
    assert large_scale_jitter(config("INPUT.LSJ.MIN_SCALE", 3.0)) == {}


def rates(cfg):
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    by_id = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("clip", [True, False])
def test_the_rate_of_the_bottom_up_network(clip):
    keys = ["SOLVER.BASE_LR", 0.04, "SOLVER.CLIP_GRADIENTS.ENABLED", clip]
    keys += ["SOLVER.BIAS_LR_FACTOR", 2.0]
    plain = rates(config(*keys))
    scaled = rates(config(*keys, "SOLVER.BACKBONE_MULTIPLIER", 0.1))
    assert scaled.keys() == plain.keys()
    for name, rate in scaled.items():
        # Detectron2's rate of biases counts over factors.
        is_slow = name.startswith("backbone.bottom_up.") and not name.endswith(".bias")
        assert rate == pytest.approx(plain[name] * (0.1 if is_slow else 1))
    assert {round(rate, 6) for rate in plain.values()} == {0.04, 0.08}


def test_a_backbone_alone_and_wrong_factors():
    cfg = config("SOLVER.BACKBONE_MULTIPLIER", 0.0, "SOLVER.BASE_LR", 0.04)
    model = torch.nn.Module()
    model.backbone, model.head = torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 1)
    found = {g["lr"]: len(g["params"]) for g in Trainer.build_optimizer(cfg, model).param_groups}
    assert found == {0.0: 2, 0.04: 2}
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="SOLVER.BACKBONE_MULTIPLIER must be 0 or more, got"):
            Trainer.build_optimizer(config("SOLVER.BACKBONE_MULTIPLIER", wrong), model)


def test_defaults_change_nothing():
    cfg = config()
    assert not cfg.INPUT.LSJ.ENABLED
    assert cfg.SOLVER.BACKBONE_MULTIPLIER == 1
    assert large_scale_jitter(cfg) == {}
    assert set(rates(cfg).values()) == {cfg.SOLVER.BASE_LR}
