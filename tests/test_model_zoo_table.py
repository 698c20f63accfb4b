"""MODEL_ZOO.md: up to date, nothing borrowed, and its costs counted anew in another way."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.cost import detector_cost
from benchmarks.model_zoo import render
from resnest_d2 import model_zoo
from resnest_d2.model_zoo.published import MMDETECTION, PUBLICATIONS
from resnest_d2.modeling.detector import build_detector

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
MODEL_ZOO = (ROOT / "MODEL_ZOO.md").read_text()
CLASSIFIER = 2048 * 1000


def tables():
    """Rows of MODEL_ZOO.md by their first cell's text, with the section's title."""
    rows = {}
    title = header = None
    for line in MODEL_ZOO.splitlines():
        if line.startswith("## "):
            title, header = line[3:], None
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line[1:-1].split("|")]
            if header is None:
                header = cells
            elif not set(line) <= set("|-: "):
                name = re.match(r"\[?`?([^`\]]+)", cells[0]).group(1)
                assert name not in rows, f"{name} is there twice"
                rows[name] = {"section": title, **dict(zip(header, cells, strict=True))}
    return rows


ROWS = tables()


# Published counts of whole ImageNet networks at 224, with the classifier: the first four from
# MMClassification's model zoo, the fast variants from the authors' ablation.md. Counters differ in
# what they take for batch norms and poolings, which is less than 1% of the whole.
@pytest.mark.parametrize(
    ("network", "published"),
    [
        ("resnest50", 5.41),
        ("resnest101", 10.27),
        ("resnest200", 17.53),
        ("resnest269", 22.58),
        ("resnest50_fast_1s1x64d", 4.34),
        ("resnest50_fast_2s1x64d", 4.34),
        ("resnest50_fast_4s1x64d", 4.35),
        ("resnest50_fast_1s2x40d", 4.38),
        ("resnest50_fast_2s2x40d", 4.38),
        ("resnest50_fast_4s2x40d", 4.41),
        ("resnest50_fast_1s4x24d", 4.42),
    ],
)
def test_backbones_in_the_table_cost_what_was_published(network, published):
    macs = float(ROWS[network]["GFLOPs"]) + CLASSIFIER / 1e9
    assert macs == pytest.approx(published, rel=0.01)


def closed_form(module, inputs, output):
    """What a layer costs, from its weight and the sizes of the maps; 0 for any other module."""
    if isinstance(module, nn.ConvTranspose2d):
        return module.weight.numel() * inputs[0].shape[0] * inputs[0][0, 0].numel()
    if isinstance(module, nn.Conv1d | nn.Conv2d):  # DeformConv2d is one
        return module.weight.numel() * output.shape[0] * output[0, 0].numel()
    if isinstance(module, nn.Linear):
        return module.weight.numel() * inputs[0].shape[0]
    if isinstance(module, _BatchNorm | FrozenBatchNorm2d):
        return 2 * output.numel()
    return 0


PROPOSALS, DETECTIONS = 20, 5
# One zoo model for each kind of head or backbone; the ResNeSts are made 14 layers deep.
KINDS = [
    "faster_resnest50_dcn",
    "faster_resnest50_dc5",
    "mask_resnest50_fast_2s2x40d",
    "cascade_resnest200_3x",
    "retinanet_resnest50",
    "keypoint_resnest50",
    "panoptic_resnest50",
    "pointrend_resnest50",
    "deeplabv3plus_resnest50",
    "baselines/mask_resnet50",
    "mask_resnest14_digits",
]


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_detector_costs_what_its_layers_cost_on_an_image(name):
    """The real model runs on a real image; nothing of it knows how it will be counted."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    if "resnest" in name:
        cfg.MODEL.RESNETS.DEPTH = 14
        if "RES5_MULTI_GRID" in cfg.MODEL.RESNETS:
            cfg.MODEL.RESNETS.RES5_MULTI_GRID = [2]
    # Nothing is sorted out, so there are as many boxes as there may be.
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = PROPOSALS
    cfg.MODEL.RPN.NMS_THRESH = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = DETECTIONS
    model = build_detector(cfg).eval()
    for parameter in model.backbone.parameters():  # untrained and without statistics, a ResNet
        parameter.data *= 0.5  # would double its activations until they overflow
    layers = []
    for module in model.modules():
        module.register_forward_hook(lambda *call: layers.append(closed_form(*call)))
    with torch.no_grad():
        (output,) = model([{"image": 255 * torch.rand(3, 75, 110)}])
    if "instances" in output:
        assert len(output["instances"]) == DETECTIONS

    cost = detector_cost(cfg, (75, 110))
    assert cost.macs == sum(layers) > 0
    state = model.state_dict()
    assert cost.parameters == sum(
        value.numel() for key, value in state.items() if key.endswith(("weight", "bias"))
    )
    assert cost.image_size == (75, 110)
    assert cost.proposals == (0 if name.startswith(("retina", "deeplab")) else PROPOSALS)
    masks = cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON
    assert cost.detections == (DETECTIONS if masks else 0)


def test_every_model_is_there():
    assert {n for n, r in ROWS.items() if r["section"] != "Backbones"} == {*model_zoo.names()}
    for name in model_zoo.names():
        is_converted = name in PUBLICATIONS and PUBLICATIONS[name].publisher is MMDETECTION
        assert (ROWS[name]["section"] == "MMDetection's models") == is_converted


@pytest.mark.parametrize("name", model_zoo.names())
def test_published_figures_are_in_their_row_and_no_others(name):
    cells = {column: ROWS[name].get(column) for column in ("box AP", "mask AP", "PQ", "mIoU")}
    figures = {}
    if name in PUBLICATIONS:
        columns = {"bbox/AP": "box AP", "segm/AP": "mask AP", "panoptic_seg/PQ": "PQ"}
        decimals = 1 if name.startswith("mmdet/") else 2
        metrics = PUBLICATIONS[name].metrics
        figures = {columns[key]: f"{value:.{decimals}f}" for key, value in metrics.items()}
        figures["box AP"] = f"[{figures['box AP']}]({model_zoo.get_checkpoint_url(name)})"
    assert {column: cell for column, cell in cells.items() if cell} == figures
    note = f"`{name}`: measured on test-dev2019, multi-scale." in MODEL_ZOO
    assert note == (name == "cascade_resnest200_dcn_3x_ms")


def test_the_file_is_up_to_date():
    assert render() == MODEL_ZOO, "run python -m benchmarks.model_zoo"
