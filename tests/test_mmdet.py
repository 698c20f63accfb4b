"""MMDetection's detectors, converted: the same names, shapes and detections as its own."""

import gzip
import json
from pathlib import Path

import mmdet_golden
import numpy as np
import pytest
import torch

from resnest_d2 import model_zoo
from resnest_d2.modeling.detector import build_detector
from resnest_d2.weights import convert

DATA = Path(__file__).parent / "data"
# Of all eight, read off mmdet 3.3.0 by data/make_mmdet_golden.py.
NAMES = json.loads(gzip.decompress((DATA / "mmdet_names.json.gz").read_bytes()))


def zoo_model(name, device="cpu"):
    cfg = model_zoo.get_config(f"mmdet/{name}")
    cfg.MODEL.DEVICE = device
    return build_detector(cfg).eval()


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes(name):
    theirs = {k: torch.empty(shape, device="meta") for k, shape in NAMES[name].items()}
    ours = zoo_model(name, "meta").state_dict()
    converted = {k: v.shape for k, v in convert(theirs).items()}
    assert converted == {k: v.shape for k, v in ours.items() if not k.startswith("pixel_")}


@pytest.mark.parametrize("family", mmdet_golden.FAMILIES)
def test_detections(family):
    golden = {
        key.removeprefix(f"{family}/"): torch.from_numpy(value)
        for key, value in np.load(DATA / "mmdet_golden.npz").items()
        if key.startswith(f"{family}/")
    }
    weights = mmdet_golden.draw_weights(NAMES[f"{family}_resnest50"])
    weights |= {key: value for key, value in golden.items() if key in weights}
    model = zoo_model(f"{family}_resnest50")
    loaded = model.load_state_dict(convert({"meta": {}, "state_dict": weights}), strict=False)
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
    height, width = mmdet_golden.ORIGINAL_SIZE
    with torch.no_grad():
        (output,) = model([{"image": mmdet_golden.image(), "height": height, "width": width}])
    found = output["instances"]
    assert len(golden["scores"]) > 50
    assert len(golden["classes"].unique()) > 10
    assert torch.equal(found.pred_classes, golden["classes"])
    assert (found.scores - golden["scores"]).abs().max() <= 1e-3
    assert (found.pred_boxes.tensor - golden["boxes"]).abs().max() <= 1e-3  # pixels
    if "masks" in golden:
        masks = np.unpackbits(golden["masks"].numpy(), count=found.pred_masks.numel())
        masks = torch.from_numpy(masks).view_as(found.pred_masks).bool()
        assert 0.02 < masks.float().mean() < 0.98
        assert (masks != found.pred_masks).float().mean() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_settings(name):
    """What mmdet 3.3.0's configs say, in Detectron2's keys."""
    cfg = model_zoo.get_config(f"mmdet/{name}")
    model, cascade = cfg.MODEL, "cascade" in name
    mask = name.startswith(("mask", "cascade_resnest"))
    assert (cfg.INPUT.FORMAT, model.PIXEL_MEAN) == ("RGB", [123.68, 116.779, 103.939])
    assert model.PIXEL_STD == [58.393, 57.12, 57.375]
    # 12 epochs over 117,266 images, 2 on each of 8 GPUs; the rate falls after 8 and 11.
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, solver.STEPS) == (12 * 7330, (8 * 7330, 11 * 7330))
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.MOMENTUM) == (0.02, 16, 0.9)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (500, 0.001)
    assert solver.WEIGHT_DECAY == solver.WEIGHT_DECAY_NORM == 0.0001
    assert solver.WEIGHT_DECAY_BIAS in (None, 0.0001)
    assert cfg.TEST.PRECISE_BN.ENABLED is False
    sampling = ("choice", (640, 672, 704, 736, 768, 800)) if mask else ("range", (640, 800))
    assert (cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.MIN_SIZE_TRAIN) == sampling
    norms = (model.RESNETS.NORM, model.ROI_BOX_HEAD.NORM, model.FPN.NORM)
    assert norms == ("SyncBN", "SyncBN", "")
    assert model.BACKBONE.FREEZE_AT == 2  # frozen_stages 1
    assert model.RPN.SMOOTH_L1_BETA == pytest.approx(1 / 9 if cascade else 0)
    assert model.ROI_BOX_HEAD.SMOOTH_L1_BETA == (1 if cascade else 0)
    assert model.RPN.POST_NMS_TOPK_TRAIN == (2000 if cascade else 1000)
    assert model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG == cascade
    assert model.MASK_ON == mask
    if cascade:
        stds = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
        for weights, std in zip(model.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS, stds, strict=True):
            assert [1 / weight for weight in weights] == pytest.approx(std)
        assert model.ROI_BOX_CASCADE_HEAD.IOUS == (0.5, 0.6, 0.7)
