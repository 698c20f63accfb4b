"""Exported detectors: the graph, the files of both formats, and what is refused."""

import contextlib
import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.roi_heads import fast_rcnn
from helpers import randomize
from PIL import Image
from test_heads import small_config
from test_run_model import run_standalone

from resnest_d2 import Predictor, build_detector
from resnest_d2.commands import export as command
from resnest_d2.config import InputError
from resnest_d2.export import (
    DetectorGraph,
    export_model,
    functions,
    load_exported,
    runtimes,
    standalone,
    writer,
)
from resnest_d2.export.writer import check_target, compare, expected_outputs

SMALL = {
    "INPUT.MIN_SIZE_TEST": 128,
    "INPUT.MAX_SIZE_TEST": 200,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 150,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 100,
    "MODEL.ROI_HEADS.NUM_CLASSES": 5,
    "MODEL.RETINANET.NUM_CLASSES": 5,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 100,
    "TEST.DETECTIONS_PER_IMAGE": 30,
}
# Two levels of the pyramid, which take much less time to export than five.
ANCHORS = {"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]}
TWO = {"MODEL.RPN.IN_FEATURES": ["p3", "p6"], "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4"]} | ANCHORS
DCN = TWO | {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, True, True]}
HEADS = {
    "faster": ("faster_resnest50", TWO),
    "mask": ("mask_resnest50", TWO),
    "cascade box": ("cascade_box_resnest50", TWO),
    "cascade mask": ("cascade_resnest50", TWO),
    "MMDetection's cascade": ("mmdet/cascade_resnest50", TWO),
    "retinanet": ("retinanet_resnest50", ANCHORS | {"MODEL.RETINANET.IN_FEATURES": ["p3", "p7"]}),
    "dcn v1": ("faster_resnest50", DCN | {"MODEL.RESNETS.DEFORM_MODULATED": False}),
    "dcn v2": ("mask_resnest50", DCN | {"MODEL.RESNETS.DEFORM_MODULATED": True}),
}
# One level: the least to export that has masks.
ONE_LEVEL = ("faster_resnest50_dc5", {"MODEL.MASK_ON": True})
RESIZE = T.ResizeShortestEdge([160, 160], 320)
IDS = {2 * index + 3: index for index in reversed(range(5))}


def make_config(name, options=()):
    return small_config(
        name, *(part for pair in {**SMALL, **dict(options)}.items() for part in pair)
    )


def make(name, options=(), least=None):
    """A small model with drawn weights.

    ``least`` is how many detections pass the threshold on :func:`picture`.
    """
    torch.manual_seed(0)
    model = build_detector(make_config(name, options)).eval()
    randomize(model)
    if least is not None:
        scores = expected_outputs(model, picture())["scores"]
        as_predictor(model).set_score_threshold(scores[least - 1 : least + 1].mean().item())
    return model.requires_grad_(False)


def as_predictor(model, augmentation=RESIZE):
    return Predictor(model, classes=list("abcde"), augmentation=augmentation)


def picture(height=128, width=192, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, height, width, generator=generator) * 255


# --- the graph and its functions


@pytest.mark.parametrize("least", [None, 5], ids=["full rows", "empty rows"])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_graph_finds_what_detectron2_finds(head, least):
    model = make(*HEADS[head], least)
    graph = DetectorGraph(model)
    for size in ((128, 192), (192, 96), (64, 64)):
        image = picture(*size)
        expected = expected_outputs(model, image)
        actual = dict(zip(graph.names, graph(image), strict=True))
        assert len(actual["scores"]) == 30
        if size == (128, 192):
            assert len(expected["scores"]) == (30 if least is None else least)
        compare(expected, actual, size)
        filled = len(expected["scores"])
        assert (actual["scores"][filled:] == -1).all()
        assert not actual["boxes"][filled:].any()
        assert actual["classes"].dtype == torch.int64


@pytest.mark.parametrize(("number", "kept"), [(100, 40), (700, 40), (700, 3000)])
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
    one = ([level[0] for level in boxes], [level[0] for level in logits])
    actual = functions.best_proposals(*one, (100, 120), 0.7, number, kept, 0.0)
    found = len(expected)
    assert len(actual) == kept
    assert 0 < found <= kept
    assert torch.equal(actual[:found], expected.proposal_boxes.tensor)
    assert not actual[found:].any()


@pytest.mark.parametrize("classes", [1, 4], ids=["one box", "a box a class"])
@pytest.mark.parametrize("least", [0.05, 0.6, 2.0], ids=["many", "few", "none"])
def test_detections_are_detectron2s(classes, least):
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(60, classes, 2, generator=generator) * 100 - 10
    boxes = torch.cat([low, low + torch.rand(60, classes, 2, generator=generator) * 50], 2)
    scores = torch.rand(60, 5, generator=generator)
    boxes[4, 0, 1], scores[9, 2] = torch.nan, torch.inf
    arguments = ([boxes.flatten(1)], [scores], [(80, 90)], least, 0.5, 70)
    (expected,), _ = fast_rcnn.fast_rcnn_inference(*arguments)
    empty = torch.zeros(3, 4 * classes)  # as proposals in rows that are empty give them
    boxes, scores = torch.cat([boxes.flatten(1), empty]), torch.cat([scores, torch.ones(3, 5)])
    actual = functions.best_detections(boxes, scores, (80, 90), least, 0.5, 70)
    found = len(expected)
    assert len(actual.scores) == 70
    assert bool(found) == (least < 1)
    assert torch.equal(actual.boxes[:found], expected.pred_boxes.tensor)
    assert torch.equal(actual.scores[:found], expected.scores)
    assert torch.equal(actual.classes[:found], expected.pred_classes)
    assert (actual.scores[found:] == -1).all()


# --- what is refused


NO_LIMIT = {"TEST.DETECTIONS_PER_IMAGE": -1}
POINTS = {"MODEL.POINT_HEAD.NUM_CLASSES": 5}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("keypoint_resnest50", {}, "a keypoint head"),
        ("panoptic_resnest50", {}, "a model of type PanopticFPN"),
        ("pointrend_resnest50", POINTS, "a mask head of type AnyBatchPointRendMaskHead"),
        ("deeplabv3plus_resnest50", {}, "a model of type SemanticSegmentor"),
        ("faster_resnest50", NO_LIMIT, "a model without a limit of detections .TEST.DETECTIONS_"),
        ("retinanet_resnest50", NO_LIMIT, "a model without a limit of detections .TEST.DETECTION"),
    ],
)
def test_what_no_graph_holds_is_refused(name, options, words):
    with pytest.raises(InputError, match=f"^{words}.* cannot be exported: docs/export.md lists"):
        DetectorGraph(build_detector(make_config(name, options)))


@pytest.mark.parametrize(
    "augmentation", [T.Resize((128, 128)), T.ResizeShortestEdge([96, 128], 200)]
)
def test_a_way_to_resize_that_a_file_cannot_tell_is_refused(augmentation):
    with pytest.raises(InputError, match="a file cannot tell to resize images by .*Resize"):
        writer.describe(as_predictor(make(*ONE_LEVEL), augmentation))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("x.ts", "an exported file must end in .onnx or .pt2, got x.ts"),
        ("absent/x.pt2", "cannot write absent/x.pt2: there is no such folder"),
    ],
)
def test_the_command_refuses_before_it_loads(output, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--model", "", "--output", output])
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {words}"


def test_a_users_script_is_not_overwritten(tmp_path):
    script = tmp_path / "run_model.py"
    script.write_text("print('mine')")
    with pytest.raises(InputError, match="run_model.py is not this package's and would be overwr"):
        check_target(tmp_path / "x.onnx")
    shutil.copy(standalone.__file__, script)
    check_target(tmp_path / "x.onnx")


# --- files


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A model, the file that the command makes of its checkpoint, and what it prints."""
    model, folder = make(*ONE_LEVEL, 8), tmp_path_factory.mktemp("exported")
    cfg = make_config(*ONE_LEVEL)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = model.roi_heads.box_predictor.test_score_thresh
    names = {"thing_classes": list("abcde"), "thing_dataset_id_to_contiguous_id": IDS}
    checkpoint = folder.with_suffix(".pth")
    content = {"model": model.state_dict(), "classes": names, "config": cfg.dump()}
    torch.save(content, checkpoint)
    arguments = ["--output", folder / "x.pt2", "--model", checkpoint]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert command.main(list(map(str, arguments))) == 0
    file = folder / "x.pt2"
    return SimpleNamespace(
        model=model,
        file=file,
        checkpoint=checkpoint,
        printed=printed.getvalue(),
        exported=load_exported(file),
    )


def test_the_command_exports_a_checkpoint(shared):
    assert os.listdir(shared.file.parent) == ["x.pt2"]
    rows = [line.split() for line in shared.printed.splitlines()]
    for size, row in ((160, 320), rows[-3]), ((288, 192), rows[-2]):
        assert row[0] == "{}x{}".format(*size)
        assert int(row[1]) > 0
        assert all(float(difference) <= 1e-3 for difference in row[2:])
    assert f"{shared.file} written" in shared.printed
    data = shared.exported.metadata
    assert data.classes == list("abcde")
    assert data.category_ids == [3, 5, 7, 9, 11]  # in the order of the classes
    assert (data.input_format, data.size_divisibility) == ("RGB", 32)
    assert (data.min_size, data.max_size) == (128, 200)
    assert data.pixel_mean == pytest.approx([123.68, 116.779, 103.939])


def test_a_file_is_the_model_in_detectron2s_contract(shared):
    inputs = [
        {"image": picture(), "height": 64, "width": 300},
        {"image": picture(256, 96, 1).to(torch.uint8), "height": 512, "width": 192},
    ]
    expected = [shared.model([one])[0] for one in inputs]
    for actual, wanted in zip(shared.exported(inputs), expected, strict=True):
        actual, wanted = actual["instances"], wanted["instances"]
        assert len(wanted) > 2
        assert actual.image_size == wanted.image_size
        assert torch.allclose(actual.pred_boxes.tensor, wanted.pred_boxes.tensor, atol=1e-2)
        assert torch.allclose(actual.scores, wanted.scores, atol=1e-4)
        assert torch.equal(actual.pred_classes, wanted.pred_classes)
        assert (actual.pred_masks != wanted.pred_masks).float().mean() < 1e-3


def test_a_threshold_below_the_files_is_refused(shared):
    """The file has left such detections out: an answer without them would be a wrong one."""
    exported, given = shared.exported, [{"image": picture()}]
    scores = exported(given)[0]["instances"].scores
    least = exported.metadata.score_threshold
    assert 0 < least < scores.min()
    assert least == shared.model.roi_heads.box_predictor.test_score_thresh
    for wrong in (0.01, float("nan")):
        with pytest.raises(InputError, match="no detections of scores below .*, so .* cannot"):
            exported.set_score_threshold(wrong)
    for threshold, number in ((scores[2].item(), 3), (least, len(scores))):
        exported.set_score_threshold(threshold)
        assert torch.equal(exported(given)[0]["instances"].scores, scores[:number])


def test_a_file_that_differs_is_not_left(shared, tmp_path, monkeypatch):
    """Nor is anything there before, that a kill would leave."""

    def convert(*_):
        assert os.listdir(tmp_path) == []
        return shared.file.read_bytes()

    monkeypatch.setattr(writer, "_convert", convert)
    other = make(*ONE_LEVEL, 8)
    other.roi_heads.box_predictor.bbox_pred.bias += 0.01
    words = "the exported file is wrong: boxes differ by .* on an image of 160x320 pixels"
    images = [picture(160, 320, 1).permute(1, 2, 0).to(torch.uint8).numpy()]
    with pytest.raises(InputError, match=words):
        export_model(as_predictor(other), tmp_path / "x.pt2", images)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def rewritten(shared, tmp_path):
    """Write the file's archive anew, with files added or changed."""

    def write(name, changes):
        with zipfile.ZipFile(shared.file) as old:
            content = {entry: old.read(entry) for entry in old.namelist()}
        for inner, change in changes.items():
            content[f"archive/{inner}"] = change(content.get(f"archive/{inner}"))
        with zipfile.ZipFile(tmp_path / name, "w") as new:
            for entry, body in content.items():
                new.writestr(entry, body)
        return tmp_path / name

    return write


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def harm(_):
    stream = io.BytesIO()
    torch.save(Harm(), stream)
    return stream.getvalue()


def as_pickle(content):
    """Say of a weight that it is a pickle."""
    config = json.loads(content)
    weight = next(iter(config["config"].values()))
    weight |= {"use_pickle": True, "path_name": "weight_999"}
    return json.dumps(config).encode()


WEIGHTS = "data/weights/model_weights_config.json"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({WEIGHTS: as_pickle, "data/weights/weight_999": harm}, "Weights only load failed"),
        ({"data/sample_inputs/model.pt": harm}, "Weights only load failed"),
        ({"data/constants/opaque_obj_0": harm}, "not write archive/data/constants/opaque_obj_0"),
        ({"data/aotinductor/model/a.so": harm}, "not write archive/data/aotinductor/model/a.so"),
        ({WEIGHTS: lambda _: b"{"}, "Expecting"),
    ],
)
def test_a_program_with_more_than_a_graph_is_refused(
    rewritten, tmp_path, monkeypatch, changes, words
):
    monkeypatch.chdir(tmp_path)
    file = rewritten("x.pt2", changes)
    with pytest.raises(
        InputError, match=f"x.pt2 cannot be read as a program of PyTorch: .*{words}"
    ):
        load_exported(file)
    assert os.listdir(tmp_path) == ["x.pt2"]  # nothing ran


def test_facts_of_another_version_are_refused_in_a_program_too(rewritten):
    file = rewritten("x.pt2", {"extra/resnest_d2.json": lambda _: b"{}"})
    with pytest.raises(InputError, match="another version of resnest_d2 than this one"):
        load_exported(file)


def test_the_ending_decides_what_runs_a_file(rewritten, tmp_path):
    """A file of another kind is refused, whatever it says of itself."""
    says = {"resnest_d2.json": json.dumps({"format": "torchscript"})}
    script = torch.jit.trace(torch.nn.ReLU(), torch.rand(3, 4, 4))
    for name in ("script.onnx", "script.pt2", "x.ts"):
        torch.jit.save(script, str(tmp_path / name), _extra_files=says)
    rewritten("aoti.onnx", {"extra/resnest_d2.json": lambda _: b'{"format": "aoti"}'})
    for name, words in (
        ("script.onnx", "script.onnx cannot be read as an ONNX model: "),
        ("aoti.onnx", "aoti.onnx cannot be read as an ONNX model: "),
        ("script.pt2", "script.pt2 cannot be read as a program of PyTorch: torch.export.save does"),
        ("x.ts", "an exported file must end in .onnx or .pt2, got .*x.ts"),
    ):
        with pytest.raises(InputError, match=words):
            load_exported(tmp_path / name)


@pytest.mark.parametrize(
    ("ending", "runtime"), [("onnx", "openvino"), ("onnx", "onnxruntime"), ("pt2", "torch")]
)
def test_files_of_others_are_refused(tmp_path, ending, runtime):
    file = tmp_path / f"x.{ending}"
    with pytest.raises(FileNotFoundError, match=f"there is no file .*x.{ending}"):
        load_exported(file, runtime)
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match=f"x.{ending} cannot be read as "):
        load_exported(file, runtime)


@pytest.mark.parametrize(
    ("name", "runtime", "half", "words"),
    [
        ("x.onnx", "torch", False, "runtime must be one of 'auto', 'openvino', 'onnxruntime'"),
        ("x.pt2", "openvino", False, "runtime must be one of 'auto', 'torch', got 'openvino'"),
        ("x.pt2", "auto", True, "half precision is for .onnx files, in OpenVINO, not for .pt2"),
        ("x.onnx", "onnxruntime", True, "onnxruntime has no half precision here"),
    ],
)
def test_what_a_runtime_cannot_do_is_refused(name, runtime, half, words):
    """Before the file is looked for."""
    with pytest.raises(InputError, match=words):
        load_exported(name, runtime, half)


def test_auto_takes_the_fastest_runtime_that_is_installed(monkeypatch):
    assert runtimes.list_runtimes(".onnx", "auto", half=False) == ["openvino", "onnxruntime"]
    assert runtimes.list_runtimes(".onnx", "auto", half=True) == ["openvino"]
    assert runtimes.list_runtimes(".pt2", "auto", half=False) == ["torch"]
    there = ["onnxruntime"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in there or None)
    assert runtimes.list_runtimes(".onnx", "auto", half=False) == ["onnxruntime"]
    there.clear()  # opening it says what to install
    assert runtimes.list_runtimes(".onnx", "auto", half=False) == ["onnxruntime"]


def test_the_check_tells_what_differs():
    expected = {
        "boxes": torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20]]),
        "scores": torch.tensor([0.9, 0.9]),
        "classes": torch.tensor([1, 2]),
    }
    swapped = {name: value.flip(0) for name, value in expected.items()}
    found = compare(expected, swapped, (9, 9))
    assert found == {"image": "9x9", "detections": 2, "boxes": 0, "scores": 0, "classes": 0}
    for name, change, words in (
        ("boxes", expected["boxes"] + 0.01, "boxes differ by 0.01"),
        ("scores", expected["scores"] + 0.01, "scores differ by 0.01"),
        ("classes", torch.tensor([1, 1]), "classes differ by 1 on an image of 9x9 pixels"),
        ("scores", torch.tensor([0.9, -1]), "it finds 1 objects on an image of 9x9 pixels, .* 2"),
    ):
        with pytest.raises(InputError, match=f"the exported file is wrong: {words}"):
            compare(expected, {**expected, name: change}, (9, 9))
    nothing = {name: value[:0] for name, value in expected.items()}
    assert compare(nothing, nothing, (9, 9)) == {"image": "9x9", "detections": 0}


# --- whole exports


def export(model, target):
    images = [picture(160, 320, 1), picture(256, 160, 2)]  # their sizes stay as they are
    pixels = [image.permute(1, 2, 0).to(torch.uint8).numpy() for image in images]
    comparisons = export_model(as_predictor(model), target, pixels)
    assert [one["image"] for one in comparisons] == ["160x320", "256x160"]
    assert all(one["detections"] for one in comparisons)
    return load_exported(target)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head(tmp_path, head, format):
    model = make(*HEADS[head], 8)  # most rows are empty
    exported = export(model, tmp_path / f"x.{format}")
    names = {f"x.{format}"} | ({"run_model.py"} if format == "onnx" else set())
    assert set(os.listdir(tmp_path)) == names
    least = exported.metadata.min_side
    assert least == (160 if head == "retinanet" else 96)
    names = ["openvino", "onnxruntime"] if format == "onnx" else ["torch"]
    if format == "onnx" and "dcn" in head:
        with pytest.raises(InputError, match="OpenVINO cannot run .*x.onnx: .*DeformConv"):
            load_exported(tmp_path / "x.onnx", names.pop(0))
    for runtime in names:
        exported = load_exported(tmp_path / f"x.{format}", runtime)
        for size in ((least, least), (least, 320)):
            image = picture(*size)
            compare(expected_outputs(model, image), exported.run(image), size)
    if format == "onnx":
        pixels = picture(100, 150).permute(1, 2, 0).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "photo.png")
        least = str(exported.metadata.score_threshold)
        arguments = ["photo.png", "--threshold", least, "--json", "found.json"]
        result = run_standalone("x.onnx", *arguments, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        found = Predictor(tmp_path / "x.onnx")(pixels).instances.pred_boxes.tensor
        records = json.loads((tmp_path / "found.json").read_text())
        boxes = torch.tensor([record["bbox"] for record in records]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert torch.allclose(boxes, found, atol=1e-2)


@pytest.mark.slow
def test_a_low_threshold_costs_little(tmp_path):
    """NMS of a graph stops at the rows that are kept, which hold what the model finds."""
    model = make(*HEADS["mask"])
    as_predictor(model).set_score_threshold(0.0)
    exported = export(model, tmp_path / "x.onnx")
    for size in ((128, 192), (320, 256)):
        image = picture(*size, seed=3)
        compare(expected_outputs(model, image), exported.run(image), size)
    graph = onnx.load(tmp_path / "x.onnx").graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    limits = [values.get(n.input[2]) for n in graph.node if n.op_type == "NonMaxSuppression"]
    assert limits[-1] == 30


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mask", "retinanet"])
def test_a_file_finds_nothing_where_nothing_is(tmp_path, head):
    model = make(*(ONE_LEVEL if head == "mask" else HEADS[head]))
    predictor = as_predictor(model)
    predictor.set_score_threshold(1.0)
    target = tmp_path / "x.onnx"
    export_model(predictor, target)
    assert (load_exported(target).run(picture(160, 192))["scores"] == -1).all()


@pytest.mark.slow
def test_a_predictor_in_openvino(shared, tmp_path, monkeypatch):
    """It finds what the model finds; its file is made once for a config and its weights."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    pixels = picture(128, 192, 5).permute(1, 2, 0).to(torch.uint8).numpy()
    expected = Predictor(shared.checkpoint)(pixels)
    made, make = [], writer.make_content

    def make_content(*arguments):
        made.append(arguments)
        return make(*arguments)

    monkeypatch.setattr("resnest_d2.export.kept.make_content", make_content)
    for options, number in (([], 1), ([], 1), (["TEST.DETECTIONS_PER_IMAGE", 3], 2)):
        found = Predictor(shared.checkpoint, optimize="openvino", options=options)(pixels)
        assert len(made) == number
        assert len(os.listdir(tmp_path / "resnest_d2/openvino")) == number
        wanted = expected.instances[: 3 if options else None]
        assert len(found) == len(wanted) > 0
        assert torch.allclose(found.instances.scores, wanted.scores, atol=1e-4)
        boxes = found.instances.pred_boxes.tensor
        assert torch.allclose(boxes, wanted.pred_boxes.tensor, atol=1e-2)
        assert found.names == expected.names[: len(wanted)]
    half = Predictor(shared.checkpoint, optimize="openvino", half=True)
    assert len(half(pixels)) > 0
    built = Predictor(shared.model, optimize="openvino", augmentation=RESIZE)
    assert len(built(pixels)) > 0
    assert len(made) == 3  # of a model without a config nothing is kept
    assert len(os.listdir(tmp_path / "resnest_d2/openvino")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("title", ["TorchScript", "AOTInductor", "8 bits", "The backbone alone"])
def test_the_ways_to_other_formats_in_the_docs(shared, tmp_path, monkeypatch, title):
    """The lines of docs/export.md make a file that finds what the model finds."""
    text = (Path(__file__).parents[1] / "docs/export.md").read_text()
    (code,) = re.findall(rf"^\*\*{title}\*\*.*?```python\n(.*?)```", text, re.S | re.M)
    monkeypatch.chdir(tmp_path)
    model = shared.model
    shutil.copy(shared.file, "detector.pt2")
    if title == "AOTInductor":  # of one level it cannot divide the sizes
        model = make(*HEADS["mask"], 8)
        export(model, Path("detector.pt2"))
    if title == "8 bits":
        export(model, Path("detector.onnx"))
    image = picture(160, 320, 1)
    given = {"model": model, "image": image, "images": [image.numpy()] * 2}
    exec(code, given)
    if title == "The backbone alone":
        expected = model.backbone(((image - model.pixel_mean) / model.pixel_std)[None])
        for name, values in zip(expected, given["features"], strict=True):
            assert np.abs(values - expected[name].numpy()).max() < 1e-4 * expected[name].abs().max()
        return
    names = ("boxes", "scores", "classes", "masks")
    actual = dict(zip(names, given["outputs"], strict=True))
    if title == "8 bits":
        kinds = {node.op_type for node in onnx.load("detector_int8.onnx").graph.node}
        assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
        assert (actual["scores"] >= 0).any()
        return
    compare(expected_outputs(model, image), actual, (160, 320))
