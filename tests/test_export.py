"""Exported detectors: the graph, the files of every format, their readers and the check."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from commands import run_tool
from detectron2.data import Metadata as CatalogMetadata
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.roi_heads import cascade_rcnn, fast_rcnn
from detectron2.structures import Boxes, Instances
from helpers import randomize
from onnx import TensorProto, helper
from PIL import Image

from resnest_d2 import build_detector, model_zoo
from resnest_d2.commands.export_model import main as export_command
from resnest_d2.data.images import read_image
from resnest_d2.export import ExportedModel, export_model, functions, load_exported, standalone
from resnest_d2.export.check import compare, expected_outputs, make_images
from resnest_d2.export.graph import DetectorGraph, check_exportable
from resnest_d2.export.metadata import Metadata
from resnest_d2.export.writers import check_format
from resnest_d2.inference import set_score_threshold

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 14,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 150,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 100,
    "MODEL.ROI_HEADS.NUM_CLASSES": 5,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.RETINANET.NUM_CLASSES": 5,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 100,
    "TEST.DETECTIONS_PER_IMAGE": 30,
}
DCN = {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, True, True]}
HEADS = {
    "faster": ("faster_resnest50", {}),
    "mask": ("mask_resnest50", {}),
    "cascade box": ("cascade_box_resnest50", {}),
    "cascade mask": ("cascade_resnest50", {}),
    "MMDetection's cascade": ("mmdet/cascade_resnest50", {}),
    "retinanet": ("retinanet_resnest50", {}),
    "dcn v1": ("faster_resnest50", DCN | {"MODEL.RESNETS.DEFORM_MODULATED": False}),
    "dcn v2": ("mask_resnest50", DCN | {"MODEL.RESNETS.DEFORM_MODULATED": True}),
}
ENDINGS = {"onnx": "onnx", "pt2": "pt2", "aoti": "pt2", "torchscript": "ts"}
RESIZE = T.ResizeShortestEdge([128, 128], 200)
IDS = {2 * index + 3: index for index in reversed(range(5))}
NAMES = CatalogMetadata(thing_classes=list("abcde"), thing_dataset_id_to_contiguous_id=IDS)
FACTS = {"names": NAMES, "input_format": "RGB", "augmentation": RESIZE}


def make(name, options=None, least=None):
    """A small model with drawn weights.

    ``least`` is how many detections pass the threshold on :func:`picture`.
    """
    cfg = model_zoo.get_config(name)
    for key, value in {**SMALL, **(options or {})}.items():
        cfg.merge_from_list([key, value])
    torch.manual_seed(0)
    model = build_detector(cfg).eval()
    randomize(model)
    set_score_threshold(model, 0.0)
    if least is not None:
        scores = expected_outputs(DetectorGraph(model), model, picture())["scores"]
        set_score_threshold(model, scores[least - 1 : least + 1].mean().item())
    return model.requires_grad_(False)


def picture(height=128, width=192, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, height, width, generator=generator) * 255


# --- the functions that are replaced


@pytest.mark.parametrize("least", [None, 5], ids=["full rows", "empty rows"])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_graph_finds_what_detectron2_finds(head, least):
    model = make(*HEADS[head], least)
    graph = DetectorGraph(model)
    for size in ((128, 192), (192, 96), (64, 64)):
        image = picture(*size)
        expected = expected_outputs(graph, model, image)
        actual = dict(zip(graph.names, graph(image), strict=True))
        assert len(actual["scores"]) == 30
        if size == (128, 192):
            assert len(expected["scores"]) == (30 if least is None else least)
        result = compare(size, expected, actual)
        assert not result.problem, head
        filled = len(expected["scores"])
        assert (actual["scores"][filled:] == -1).all()
        assert not actual["boxes"][filled:].any()
        assert actual["classes"].dtype == torch.int64


@pytest.mark.parametrize("number", [100, 700], ids=["moved", "by level"])
@pytest.mark.parametrize("kept", [40, 3000])
def test_proposals_are_detectron2s(number, kept):
    generator = torch.Generator().manual_seed(1)
    boxes, logits = [], []
    for size in (900, 300, 40):
        low = torch.rand(1, size, 2, generator=generator) * 150 - 20
        high = low + torch.rand(1, size, 2, generator=generator) * 60
        boxes.append(torch.cat([low, high], 2))
        logits.append(torch.randn(1, size, generator=generator))
    boxes[0][0, 3] = torch.nan
    boxes[1][0, 5, 2] = torch.inf
    logits[2][0, 7] = torch.nan
    boxes[2][0, :4, 2:] = boxes[2][0, :4, :2]  # no area
    arguments = ([(100, 120)], 0.7, number, kept, 0.0, False)
    expected = find_top_rpn_proposals(boxes, logits, *arguments)[0]
    actual = functions.find_top_rpn_proposals(boxes, logits, *arguments)[0]
    found = len(expected)
    assert len(actual) == kept
    assert 0 < found <= kept
    assert torch.equal(actual.proposal_boxes.tensor[:found], expected.proposal_boxes.tensor)
    assert torch.equal(actual.objectness_logits[:found], expected.objectness_logits)
    assert (actual.objectness_logits[found:] == -torch.inf).all()
    assert not actual.proposal_boxes.tensor[found:].any()


@pytest.mark.parametrize("classes", [1, 4], ids=["one box", "a box a class"])
@pytest.mark.parametrize("least", [0.05, 0.6, 2.0], ids=["many", "few", "none"])
def test_detections_are_detectron2s(classes, least):
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(60, classes, 2, generator=generator) * 100 - 10
    boxes = torch.cat([low, low + torch.rand(60, classes, 2, generator=generator) * 50], 2)
    scores = torch.rand(60, 5, generator=generator)
    boxes[4, 0, 1], scores[9, 2] = torch.nan, torch.inf
    arguments = ([boxes.flatten(1)], [scores], [(80, 90)], least, 0.5, 70)
    (expected,), (rows,) = fast_rcnn.fast_rcnn_inference(*arguments)
    empty = torch.zeros(3, 4 * classes)  # as proposals in rows that are empty give them
    arguments = (
        [torch.cat([boxes.flatten(1), empty])],
        [torch.cat([scores, torch.ones(3, 5)])],
        *arguments[2:],
    )
    (actual,), (actual_rows,) = functions.fast_rcnn_inference(*arguments)
    found = len(expected)
    assert len(actual) == 70
    assert bool(found) == (least < 1)
    assert torch.equal(actual.pred_boxes.tensor[:found], expected.pred_boxes.tensor)
    assert torch.equal(actual.scores[:found], expected.scores)
    assert torch.equal(actual.pred_classes[:found], expected.pred_classes)
    finite = torch.tensor([row for row in range(60) if row not in (4, 9)])
    assert torch.equal(actual_rows[:found], finite[rows])  # Detectron2 counts without the others
    assert (actual.scores[found:] == -1).all()


@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIAlign"])
@pytest.mark.parametrize("levels", [1, 3])
def test_pooling_is_detectron2s(kind, levels):
    scales = [1 / 4, 1 / 8, 1 / 16][:levels]
    pooler = ROIPooler(7, scales, 0, kind)
    features = [torch.randn(2, 5, int(256 * s), int(256 * s)) for s in scales]
    boxes = [Boxes(torch.rand(n, 4) * torch.tensor([90.0, 90, 160, 160])) for n in (30, 7)]
    for one in boxes:
        one.tensor[:, 2:] += one.tensor[:, :2]
    assert torch.equal(functions.pool(pooler, features, boxes), pooler(features, boxes))


def test_functions_are_put_back_also_after_an_error():
    places = (
        (rpn, "find_top_rpn_proposals"),
        (fast_rcnn, "fast_rcnn_inference"),
        (cascade_rcnn, "fast_rcnn_inference"),
        (RetinaNet, "inference_single_image"),
        (ROIPooler, "forward"),
        (Boxes, "clip"),
    )
    before = [inspect.getattr_static(*place) for place in places]
    during = []

    def fail():
        during.extend(inspect.getattr_static(*place) for place in places)
        raise KeyError

    with pytest.raises(KeyError), functions.exportable():
        fail()
    assert not any(new is old for new, old in zip(during, before, strict=True))
    after = [inspect.getattr_static(*place) for place in places]
    assert all(new is old for new, old in zip(after, before, strict=True))


# --- what is refused


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("keypoint_resnest50", "a keypoint head cannot be exported; --backbone exports"),
        ("panoptic_resnest50", "a model of type PanopticFPN cannot be exported; --backbone"),
        ("pointrend_resnest50", "a mask head of type PointRendMaskHead cannot be exported; --back"),
        ("deeplabv3plus_resnest50", "a model of type SemanticSegmentor cannot be exported"),
    ],
)
def test_what_no_graph_holds_is_refused(name, words):
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 14])
    if "RES5_MULTI_GRID" in cfg.MODEL.RESNETS:
        cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1]
    with pytest.raises(ValueError, match=words):
        check_exportable(build_detector(cfg))


def test_a_model_without_a_limit_is_refused():
    with pytest.raises(ValueError, match="without a limit of detections .TEST.DETECTIONS_PER_IMAG"):
        check_exportable(make("faster_resnest50", {"TEST.DETECTIONS_PER_IMAGE": -1}))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tflite", "x.onnx"), "format must be one of onnx, pt2, aoti, torchscript, got 'tflite'"),
        (("pt2", "x.onnx"), "a file of the format pt2 must end in .pt2, got x.onnx"),
        (("pt2", "x.pt2", True), "8 bits are written to ONNX files alone, not to pt2"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(arguments, words):
    from resnest_d2.export.writers import check_format

    format, name, *int8 = arguments
    with pytest.raises(ValueError, match=words):
        check_format(format, Path(name), bool(int8))


def test_a_compiler_and_packages_that_are_missing_are_named(monkeypatch):
    from resnest_d2.export.writers import check_format

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="aoti needs a C.. compiler, g.. or what CXX names"):
        check_format("aoti", Path("x.pt2"), False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxscript"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ImportError, match="need onnxscript, which is not installed: pip install 're"
    ):
        check_format("onnx", Path("x.onnx"), False)


# --- files


def export(model, target, format, **options):
    images = [picture(160, 320, 1), picture(288, 192, 2)]
    comparisons = export_model(model, target, format, images=images, **FACTS, **options)
    assert len(comparisons) == 2
    assert all(one.expected and not one.problem for one in comparisons)
    return load_exported(target)


def test_a_file_is_the_model_in_detectron2s_contract(tmp_path):
    model = make("mask_resnest50", None, 8)
    exported = export(model, tmp_path / "x.ts", "torchscript")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ts"]
    assert exported.metadata.category_ids == [3, 5, 7, 9, 11]  # in the order of the classes
    inputs = [
        {"image": picture(), "height": 64, "width": 300},
        {"image": picture(256, 96, 1).to(torch.uint8), "height": 512, "width": 192},
    ]
    expected = [model([one])[0] for one in inputs]
    for actual, wanted in zip(exported(inputs), expected, strict=True):
        actual, wanted = actual["instances"], wanted["instances"]
        assert len(wanted) > 2
        assert actual.image_size == wanted.image_size
        assert torch.allclose(actual.pred_boxes.tensor, wanted.pred_boxes.tensor, atol=1e-2)
        assert torch.allclose(actual.scores, wanted.scores, atol=1e-4)
        assert torch.equal(actual.pred_classes, wanted.pred_classes)
        assert (actual.pred_masks != wanted.pred_masks).float().mean() < 1e-3
    data = exported.metadata
    assert data.classes == list("abcde")
    assert (data.format, data.input_format, data.size_divisibility) == ("torchscript", "RGB", 32)
    assert (data.min_size, data.max_size, data.nms_threshold) == (128, 200, 0.5)
    assert data.pixel_mean == pytest.approx([123.68, 116.779, 103.939])


def test_a_backbone_is_exported_alone(tmp_path):
    model = make("keypoint_resnest50")
    exported = export(model, tmp_path / "x.ts", "torchscript", backbone=True)
    assert exported.metadata.outputs == ["p2", "p3", "p4", "p5", "p6"]
    image = picture(96, 128)
    pixels = (image - model.pixel_mean) / model.pixel_std
    actual = exported.run(image)
    for name, feature in model.backbone(pixels[None]).items():
        assert torch.allclose(actual[name], feature, atol=1e-4 * feature.abs().max())
    with pytest.raises(ValueError, match="the file holds a backbone, which finds no objects"):
        exported([{"image": image}])


def test_a_file_that_differs_is_not_left(tmp_path, monkeypatch):
    from resnest_d2.export import writers

    def wrong(graph):
        other = make("faster_resnest50")
        other.roi_heads.box_predictor.bbox_pred.bias += 0.5
        return DetectorGraph(other)

    monkeypatch.setattr(writers, "optimize_for_inference", wrong)
    words = "the exported file is wrong: .* differ by .* on an image of 160x320 pixels"
    with pytest.raises(ValueError, match=words):
        export_model(make("faster_resnest50"), tmp_path / "x.ts", "torchscript", **FACTS)
    assert not list(tmp_path.iterdir())


def test_the_check_tells_what_differs():
    expected = {
        "boxes": torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20]]),
        "scores": torch.tensor([0.9, 0.9]),
        "classes": torch.tensor([1, 2]),
    }
    swapped = {name: value.flip(0) for name, value in expected.items()}
    assert not compare((9, 9), expected, swapped).problem
    for name, words in (("boxes", "boxes differ by 0.01"), ("scores", "scores differ by 0.01")):
        other = {**expected, name: expected[name] + 0.01}
        assert compare((9, 9), expected, other).problem.startswith(words)
    other = {**expected, "classes": torch.tensor([1, 1])}
    assert "classes differ by 1 on an image of 9x9" in compare((9, 9), expected, other).problem
    other = {**expected, "scores": torch.tensor([0.9, -1])}
    assert compare((9, 9), expected, other).problem == (
        "the file finds 1 objects on an image of 9x9 pixels, the model 2"
    )


def test_the_check_draws_noise_until_something_is_found():
    """Above the best score in the first images there is something in later ones, or in none."""
    model = make("faster_resnest50")
    graph = DetectorGraph(model)
    first = make_images(graph, model)
    best = [expected_outputs(graph, model, image)["scores"].max().item() for image in first]
    set_score_threshold(model, max(best))
    second = make_images(graph, model)
    assert [image.shape for image in second] == [image.shape for image in first]
    assert not any(torch.equal(*pair) for pair in zip(first, second, strict=True))
    found = [len(expected_outputs(graph, model, image)["scores"]) for image in second]
    assert max(found) > 0
    set_score_threshold(model, 1.0)
    assert [image.shape for image in make_images(graph, model)] == [image.shape for image in first]


def test_files_of_another_version_are_refused(made):
    model = onnx.load(made / "x.onnx")
    facts = json.loads(model.metadata_props[0].value)
    del facts["min_side"]
    helper.set_model_props(model, {"resnest_d2": json.dumps(facts)})
    onnx.save(model, made / "x.onnx")
    with pytest.raises(ValueError, match="x.onnx was written by another version of resnest_d2"):
        load_exported(made / "x.onnx")
    result = run_standalone("x.onnx", "photo.png", folder=made)
    assert result.returncode == 2
    assert "x.onnx is of another version than this script: it does not tell 'min_s" in result.stderr
    del model.metadata_props[:]
    onnx.save(model, made / "x.onnx")
    result = run_standalone("x.onnx", "photo.png", folder=made)
    assert result.stderr == "error: x.onnx was not written by `resnest-d2 export`\n"


def test_a_script_of_someone_else_is_not_overwritten(tmp_path):
    (tmp_path / "run_model.py").write_text("print('mine')")
    with pytest.raises(ValueError, match="run_model.py is not this package's and would be overwr"):
        check_format("onnx", tmp_path / "x.onnx", False)
    check_format("onnx", tmp_path / "x.onnx", False, backbone=True)  # has no script
    shutil.copy(standalone.__file__, tmp_path / "run_model.py")
    check_format("onnx", tmp_path / "x.onnx", False)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2", "aoti"])
@pytest.mark.parametrize("head", ["mask", "cascade mask", "retinanet"])
def test_a_file_finds_nothing_where_nothing_is(tmp_path, head, format):
    model = make(*HEADS[head])
    set_score_threshold(model, 1.0)
    target = tmp_path / f"x.{ENDINGS[format]}"
    export_model(model, target, format, **FACTS)
    assert (load_exported(target).run(picture(160, 192))["scores"] == -1).all()


def test_an_exported_file_is_not_exported(capsys):
    with pytest.raises(SystemExit):
        export_command(["--model", "x.onnx", "--output", "y.ts", "--format", "torchscript"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: --model x.onnx is exported already: give its checkpoint"


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_files_of_others_are_refused(tmp_path, ending):
    file = tmp_path / f"x.{ending}"
    with pytest.raises(FileNotFoundError, match=f"there is no file .*x.{ending}"):
        load_exported(file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"x.{ending} cannot be read as an exported model"):
        load_exported(file)
    torch.save({}, file)
    with pytest.raises(ValueError, match="was not written by `resnest-d2 export`"):
        load_exported(file)


# --- the standalone script


def write_onnx(file, boxes, scores, classes, masks):
    """An ONNX file whose outputs are these, where boxes move by the image's first pixel."""
    values = {"boxes": boxes, "scores": scores, "classes": classes, "masks": masks}
    tensors = [onnx.numpy_helper.from_array(v, f"{k}_") for k, v in values.items()]
    tensors += [
        onnx.numpy_helper.from_array(np.zeros(3, np.int64), "start"),
        onnx.numpy_helper.from_array(np.ones(3, np.int64), "end"),
        onnx.numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    nodes = [
        helper.make_node("Slice", ["image", "start", "end"], ["corner"]),
        helper.make_node("Reshape", ["corner", "one"], ["first"]),
        helper.make_node("Add", ["boxes_", "first"], ["boxes"]),
    ]
    nodes += [helper.make_node("Identity", [f"{k}_"], [k]) for k in list(values)[1:]]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [3, "height", "width"])
    kinds = {"classes": TensorProto.INT64}
    outputs = [
        helper.make_tensor_value_info(k, kinds.get(k, TensorProto.FLOAT), v.shape)
        for k, v in values.items()
    ]
    graph = helper.make_graph(nodes, "made", [image], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    data = Metadata(
        *("onnx", list(values), ["circle", "square"], [7, 9], "BGR", [10.0, 20.0, 30.0], [1.0] * 3),
        *(32, 64, 64, 100, 0.05, 0.5),
    )
    helper.set_model_props(model, {"resnest_d2": data.to_json()})
    onnx.save(model, file)


@pytest.fixture
def made(tmp_path):
    """An ONNX file of known outputs, and a turned photo of 40x60 pixels that has blue 8."""
    boxes = np.float32([[-8, -8, 32, 40], [10, 12, 60, 50], [0, 0, 0, 0]])
    masks = np.random.default_rng(0).random((3, 28, 28), np.float32)
    scores, classes = np.float32([0.9, 0.6, -1]), np.int64([1, 0, 0])
    write_onnx(tmp_path / "x.onnx", boxes, scores, classes, masks)
    photo = Image.new("RGB", (40, 60), (200, 100, 8))
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.png", exif=exif)
    return tmp_path


BLOCKED = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "detectron2", "resnest_d2", "torchvision"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Absent())
sys.path[:] = [path for path in sys.path if path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_standalone(*arguments, folder):
    script = shutil.copy(standalone.__file__, folder / "run_model.py")
    command = [sys.executable, "-c", BLOCKED, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_the_script_runs_where_torch_is_not(made):
    files = ["--json", "found.json", "--output", "drawn.png"]
    result = run_standalone("x.onnx", "photo.png", *files, folder=made)
    assert result.returncode == 0, result.stderr
    # Upright it is 60x40, which is resized to 96x64 and padded; the boxes move by blue's 8.
    boxes = [[0, 0, 40 / 1.6, 40.0], [18 / 1.6, 20 / 1.6, 68 / 1.6, 58 / 1.6]]
    boxes[0][3] = 48 / 1.6
    lines = result.stdout.splitlines()
    for line, box, start in zip(lines, boxes, ("square 0.900", "circle 0.600"), strict=True):
        assert line.startswith(f"{start} at ")
        assert list(map(float, line.split()[3:])) == pytest.approx(box, abs=0.051)
    records = json.loads((made / "found.json").read_text())
    assert [record["category"] for record in records] == ["square", "circle"]
    assert [record["category_id"] for record in records] == [9, 7]
    x, y, width, height = records[1]["bbox"]
    assert [x, y, x + width, y + height] == pytest.approx(boxes[1], abs=1e-4)
    drawn = np.asarray(Image.open(made / "drawn.png"))
    assert drawn.shape == (40, 60, 3)
    assert (drawn[39, 59] == (200, 100, 8)).all()
    assert (drawn[15, 15] != (200, 100, 8)).any()
    exported = load_exported(made / "x.onnx")
    assert isinstance(exported, ExportedModel)
    pixels = np.array(Image.new("RGB", (96, 64), (8, 100, 200))).transpose(2, 0, 1)
    given = {"image": torch.from_numpy(pixels), "height": 40, "width": 60}
    found = exported([given])[0]["instances"]
    assert torch.allclose(found.pred_boxes.tensor, torch.tensor(boxes), atol=1e-4)
    session = exported._function.__closure__[0].cell_contents
    data = json.loads(session.get_modelmeta().custom_metadata_map["resnest_d2"])
    photo = standalone.read_picture(str(made / "photo.png"))
    masks = standalone.detect(session, data, photo)["masks"]
    assert (masks != found.pred_masks.numpy()).mean() < 1e-3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photo.png", "photo.png"], "error: "),
        (["x.onnx", "absent.png"], "error: .*No such file.*absent.png"),
        (["x.onnx", "x.onnx"], "error: cannot identify image file"),
    ],
)
def test_the_script_names_what_it_cannot_use(made, arguments, words):
    import re

    result = run_standalone(*arguments, folder=made)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert re.search(words, result.stderr)


def test_the_script_numbers_classes_without_names(made):
    model = onnx.load(made / "x.onnx")
    facts = json.loads(model.metadata_props[0].value) | {"classes": [], "category_ids": None}
    onnx.helper.set_model_props(model, {"resnest_d2": json.dumps(facts)})
    onnx.save(model, made / "x.onnx")
    result = run_standalone("x.onnx", "photo.png", "--output", "drawn.png", folder=made)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "0"]


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_the_script_names_what_it_cannot_write(made, option):
    result = run_standalone("x.onnx", "photo.png", option, "absent/found.png", folder=made)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "absent/found.png" in result.stderr


def test_the_script_reads_pictures_as_the_package_does(tmp_path):
    values = np.linspace(0, 65535, 12 * 8).reshape(12, 8)
    for name, pixels in (
        ("deep.png", values.astype(np.uint16)),
        ("deep.tif", values.astype(np.uint16)),
        ("grey.png", (values // 257).astype(np.uint8)),
    ):
        Image.fromarray(pixels).save(tmp_path / name)
        found = np.asarray(standalone.read_picture(str(tmp_path / name)))
        assert (found == read_image(tmp_path / name)).all()
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="f.tif has pixels of 32 bits, whose range is not known"):
        standalone.read_picture(str(tmp_path / "f.tif"))


def test_the_scripts_sizes_are_detectron2s():
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 3000, (300, 2)).tolist():
        for short, long in ((800, 1333), (128, 1333), (600, 601)):
            expected = T.ResizeShortestEdge.get_output_shape(height, width, short, long)
            assert standalone.resized_shape(height, width, short, long) == expected
    assert standalone.resized_shape(7, 9, 0, 0) == (7, 9)


def test_the_scripts_masks_are_detectron2s():
    masks = torch.rand(40, 28, 28)
    boxes = torch.rand(40, 4) * 60 - 5
    boxes[:, 2:] = boxes[:, :2] + 0.5 + torch.rand(40, 2) * 60
    expected = paste_masks_in_image(masks, boxes, (70, 90), 0.5).numpy()
    for mask, box, wanted in zip(masks.numpy(), boxes.numpy(), expected, strict=True):
        pasted = standalone.paste(mask, box, 70, 90)
        assert (pasted != wanted).sum() <= 1  # a probability of 0.5, to rounding


# --- whole exports


def test_the_command_exports_a_checkpoint(tmp_path):
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    model = build_detector(cfg)
    randomize(model)
    names = {"thing_classes": [f"digit {n}" for n in range(10)]}
    content = {"model": model.state_dict(), "classes": names, "config": cfg.dump()}
    torch.save(content, tmp_path / "m.pth")
    arguments = ["--format", "torchscript", "--opts", "MODEL.WEIGHTS", tmp_path / "m.pth"]
    result = run_tool("export_model.py", "--output", tmp_path / "x.ts", *arguments)
    assert result.returncode == 0, result.stderr
    assert re.search(r"160x320\s+20\s+20\s", result.stdout)
    assert f"{tmp_path / 'x.ts'} written" in result.stdout
    assert load_exported(tmp_path / "x.ts").metadata.classes[3] == "digit 3"
    result = run_tool("export_model.py", "--output", tmp_path / "y.onnx", *arguments)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "error: a file of the format torchscript must end in .ts, got y.onnx"
    )


@pytest.mark.parametrize("head", HEADS)
def test_torchscript_of_every_head(tmp_path, head):
    export(make(*HEADS[head], 8), tmp_path / "x.ts", "torchscript")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2", "aoti"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_in_every_format(tmp_path, head, format):
    model = make(*HEADS[head], 8)  # most rows are empty
    exported = export(model, tmp_path / f"x.{ENDINGS[format]}", format)
    names = {f"x.{ENDINGS[format]}"} | ({"run_model.py"} if format == "onnx" else set())
    assert set(os.listdir(tmp_path)) == names
    least = exported.metadata.min_side
    assert least == (160 if head == "retinanet" else 96)
    for size in ((least, least), (least, 320)):
        image = picture(*size)
        expected = expected_outputs(DetectorGraph(model), model, image)
        assert not compare(size, expected, exported.run(image)).problem
    if format == "onnx":
        pixels = picture(100, 150).permute(1, 2, 0).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "photo.png")
        arguments = ["photo.png", "--threshold", "0", "--json", "found.json"]
        result = run_standalone("x.onnx", *arguments, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        resized = RESIZE.get_transform(pixels).apply_image(pixels).transpose(2, 0, 1)
        given = {"image": torch.from_numpy(resized.copy()), "height": 100, "width": 150}
        found = exported([given])[0]["instances"].pred_boxes.tensor
        records = json.loads((tmp_path / "found.json").read_text())
        boxes = torch.tensor([record["bbox"] for record in records]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert torch.allclose(boxes, found, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2", "aoti"])
def test_a_pyramid_in_every_format(tmp_path, format):
    target = tmp_path / f"x.{ENDINGS[format]}"
    exported = export(make("faster_resnest50"), target, format, backbone=True)
    assert exported.metadata.outputs == ["p2", "p3", "p4", "p5", "p6"]


@pytest.mark.slow
def test_8_bits(tmp_path):
    model = make("faster_resnest50", None, 8)
    images = [picture(seed=seed) for seed in range(4)]
    export_model(model, tmp_path / "x.onnx", "onnx", calibration=images, **FACTS)
    kinds = {node.op_type for node in onnx.load(tmp_path / "x.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    found: Instances = load_exported(tmp_path / "x.onnx")([{"image": picture()}])[0]["instances"]
    assert len(found) > 0
