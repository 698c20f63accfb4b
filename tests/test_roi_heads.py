"""The averaging cascade in training, against Detectron2's cascade; test_mmdet.py has inference."""

import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import _LOG_COUNTER
from test_heads import SIZE, batch, small_config

from resnest_d2.config import ConfigError
from resnest_d2.engine.trainer import prepare_to_train
from resnest_d2.modeling.detector import build_detector
from resnest_d2.modeling.resnest import make_resnest


def losses_of(model, inputs, seed=0):
    torch.manual_seed(seed)  # proposals are sampled
    with EventStorage():
        return model(copy.deepcopy(inputs))


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    return small_config("averaging cascade", "MODEL.RESNETS.NORM", "FrozenBN")


def test_losses_are_detectron2s_under_the_stages_weights(cfg):
    """The box losses of CascadeROIHeads with the same weights, times 1, 0.5 and 0.25."""
    ours = build_detector(cfg).train()
    plain_cfg = cfg.clone()
    plain_cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    plain = build_detector(plain_cfg).train()
    renamed = {
        key.replace("roi_heads.mask_head.0.", "roi_heads.mask_head."): value
        for key, value in ours.state_dict().items()
        if not key.startswith(("roi_heads.mask_head.1.", "roi_heads.mask_head.2."))
    }
    plain.load_state_dict(renamed)
    actual, expected = (losses_of(model, batch(cfg)) for model in (ours, plain))
    for stage, weight in enumerate((1, 0.5, 0.25)):
        for name in (f"loss_cls_stage{stage}", f"loss_box_reg_stage{stage}"):
            assert torch.allclose(actual[name], expected[name] * weight, rtol=1e-5), name
    # The first stage's masks are those of the only mask head that Detectron2's cascade has.
    assert torch.allclose(actual["loss_mask_stage0"], expected["loss_mask"], rtol=1e-5)


def test_every_stage_learns_its_masks(cfg):
    model = build_detector(cfg).train()
    sum(losses_of(model, batch(cfg)).values()).backward()
    for head in model.roi_heads.mask_head:
        assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_images_without_objects(cfg):
    model = prepare_to_train(cfg, build_detector(cfg).train())
    one_empty = batch(cfg)
    one_empty[1]["instances"] = one_empty[1]["instances"][:0]
    none = batch(cfg)
    for item in none:
        item["instances"] = item["instances"][:0]
    for inputs in (one_empty, none):
        losses = losses_of(model, inputs)
        assert {f"loss_mask_stage{k}" for k in range(3)} <= set(losses)
        total = sum(losses.values())
        assert torch.isfinite(total)
        total.backward()


def test_no_detections(cfg):
    strict = cfg.clone()
    strict.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    with torch.no_grad():
        (output,) = build_detector(strict).eval()([{"image": torch.zeros(3, SIZE, SIZE)}])
    assert output["instances"].pred_masks.shape == (0, SIZE, SIZE)


def test_more_stages_than_weights(cfg):
    longer = cfg.clone()
    head = longer.MODEL.ROI_BOX_CASCADE_HEAD
    head.IOUS = (*head.IOUS, 0.8)
    head.BBOX_REG_WEIGHTS = (*head.BBOX_REG_WEIGHTS, head.BBOX_REG_WEIGHTS[-1])
    with pytest.raises(ConfigError, match="a cascade of 4 stages .* got 4 and 3: .*HEAD.IOUS"):
        build_detector(longer)


def test_a_cascade_of_two(cfg):
    shorter = cfg.clone()
    head = shorter.MODEL.ROI_BOX_CASCADE_HEAD
    head.IOUS, head.BBOX_REG_WEIGHTS = head.IOUS[:2], head.BBOX_REG_WEIGHTS[:2]
    model = build_detector(shorter).train()
    assert "loss_mask_stage1" in losses_of(model, batch(shorter))


C4 = [
    *("MODEL.BACKBONE.NAME", "build_resnest_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res4"]),
    *("MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.IN_FEATURES", ["res4"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64, 128]], "MODEL.ROI_MASK_HEAD.NUM_CONV", 0),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14, "MODEL.RESNETS.NORM", "BN"),
]


def test_c4_heads_have_the_backbones_res5():
    """Of a file of the whole ResNeSt nothing of res5 stays behind, and the heads train."""
    cfg = small_config("mask", *C4, "MODEL.ROI_HEADS.NAME", "ResNeStRes5ROIHeads")
    model = build_detector(cfg)
    whole = make_resnest(14, width_per_group=32, res2_out_channels=128)
    weights = whole.state_dict()
    DetectionCheckpointer(model)._load_model({"model": dict(weights), "matching_heuristics": True})
    expected = {key.removeprefix("res5."): v for key, v in weights.items() if key[:4] == "res5"}
    loaded = model.roi_heads.res5.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[k], v) for k, v in expected.items() if "num_batches" not in k)
    x = torch.rand(2, 512, 14, 14)
    assert torch.equal(model.roi_heads.res5.eval()(x), whole.res5.eval()(x))
    losses = losses_of(model.train(), batch(cfg))
    assert losses.keys() >= {"loss_cls", "loss_box_reg", "loss_mask"}
    sum(losses.values()).backward()
    assert model.roi_heads.res5[0].conv2.fc1.weight.grad.abs().sum() > 0


def test_c4_heads_are_not_frozen_with_the_backbone():
    opts = ["MODEL.ROI_HEADS.NAME", "ResNeStRes5ROIHeads", "MODEL.BACKBONE.FREEZE_AT", 5]
    model = build_detector(small_config("mask", *C4, *opts))
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.roi_heads.res5.parameters())


@pytest.mark.parametrize(
    ("heads", "kind", "is_warned"),
    [
        ("Res5ROIHeads", "GeneralizedRCNN", True),
        ("ResNeStRes5ROIHeads", "GeneralizedRCNN", False),
        ("Res5ROIHeads", "ProposalNetwork", False),
    ],
)
def test_plain_c4_heads_are_warned_of(heads, kind, is_warned, caplog):
    _LOG_COUNTER.clear()
    opts = ["MODEL.ROI_HEADS.NAME", heads, "MODEL.META_ARCHITECTURE", kind]
    build_detector(small_config("mask", *C4, *opts))
    assert ("has a plain ResNet's res5, half of which stays random" in caplog.text) == is_warned
