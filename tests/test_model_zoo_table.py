"""MODEL_ZOO.md: up to date, nothing borrowed, and its costs counted anew in other ways."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.cost import detector_cost
from benchmarks.model_zoo import IMAGENET, render
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


class Features(nn.Module):
    """For tracing, which has no dictionaries."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return tuple(self.backbone(x).values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["mask_resnest14_digits", "mask_resnest50", "baselines/mask_resnet50"]
)
def test_fvcore_counts_the_same(name):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    backbone = build_detector(cfg).eval().backbone
    with torch.no_grad():
        analysis = FlopCountAnalysis(Features(backbone), torch.zeros(1, 3, 64, 96))
        operators = analysis.unsupported_ops_warnings(False).by_operator()
    # It also takes one for each value of the resizing in the pyramid.
    assert set(operators) == {"conv", "batch_norm", "upsample_nearest2d"}
    expected = operators["conv"] + operators["batch_norm"]
    assert detector_cost(cfg, (64, 96)).parts["backbone"] == expected


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


def test_a_model_is_counted_at_the_size_that_the_table_says():
    cost = detector_cost(model_zoo.get_config("mask_resnest50"))
    assert cost.image_size == (800, 1333)
    assert (cost.proposals, cost.detections) == (1000, 100)
    # Four convolutions with norms and a fully connected layer on 7x7 maps, and two predictors.
    box = 4 * (9 * 256 * 256 * 49 + 2 * 256 * 49) + 256 * 49 * 1024 + 1024 * (81 + 4 * 80)
    assert cost.parts["boxes"] == 1000 * box


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


@pytest.mark.parametrize("name", model_zoo.names())
def test_what_differs_is_said_above_the_table(name):
    cfg, row = model_zoo.get_config(name), ROWS[name]
    (note,) = re.findall(rf"^## {re.escape(row['section'])}\n\n(.*?)\|", MODEL_ZOO, re.M | re.S)
    said = [part for part in note.split(". ") if f"`{name}`" in part or "`: " not in part]
    wanted = {
        "270k iterations": cfg.SOLVER.MAX_ITER == 270_000,
        "160k iterations": cfg.SOLVER.MAX_ITER == 160_000,
        "87960 iterations": cfg.SOLVER.MAX_ITER == 87_960,
        "8 images an iteration": cfg.SOLVER.IMS_PER_BATCH == 8,
        "DCN v2": any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE),
        "no pyramid": "fpn" not in cfg.MODEL.BACKBONE.NAME,
    }
    assert {text: text in " ".join(said) for text in wanted} == wanted


def test_every_imagenet_figure_is_in_its_row():
    figures = {
        name: (row["top-1 (%)"], row["crop"])
        for name, row in ROWS.items()
        if row["section"] == "Backbones"
    }
    expected = {name: (f"{top1:.2f}", str(crop)) for name, (top1, crop) in IMAGENET.items()}
    assert figures == expected | dict.fromkeys(("resnest14", "resnest26"), ("", ""))


def test_the_file_is_up_to_date():
    assert render() == MODEL_ZOO, "run python -m benchmarks.model_zoo"
