"""Without what comes as an extra: training needs none, and what needs one names it."""

import sys

import cv2
import numpy as np
import pytest
import torch
from commands import run_python
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from safetensors.torch import save_file

from resnest_d2.engine import build_evaluator
from resnest_d2.evaluation import coco
from resnest_d2.inference import Predictor, predict_inputs
from resnest_d2.weights import UnreadableError, read_checkpoint
from resnest_d2.weights.files import Checkpoint, write_checkpoint

DIGITS = "configs/mask_resnest14_digits.yaml"
DRAW = "detections are drawn with Matplotlib and OpenCV, and {} is not installed: "
DRAW += "pip install 'resnest_d2[draw]'"
RUN = "import runpy; runpy.run_module('resnest_d2', run_name='__main__', alter_sys=True)"


def without(*packages: str) -> str:
    """Code after which a process cannot import these packages, whatever it imported before."""
    return f"""
import sys
for name in list(sys.modules):
    if name.partition(".")[0] in {packages}:
        del sys.modules[name]
sys.modules.update(dict.fromkeys({packages}))
"""


def forget(monkeypatch, *packages: str) -> None:
    """The same for a test in this process."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages or name == "detectron2.utils.visualizer":
            monkeypatch.delitem(sys.modules, name)
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def test_a_step_of_training_needs_no_extra(tiny_digits, tmp_path):
    code = without("cv2", "matplotlib", "hotcoco", "huggingface_hub", "safetensors") + RUN
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"]
    result = run_python(
        *(code, "train", "--config-file", DIGITS, "OUTPUT_DIR", tmp_path, *opts),
        DETECTRON2_DATASETS=str(tiny_digits),
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.parametrize("package", ["cv2", "matplotlib"])
@pytest.mark.parametrize("command", ["predict", "demo"])
def test_commands_that_draw_name_the_extra_at_once(command, package, picture, tmp_path):
    arguments = ["--output", tmp_path / "out"]
    if command == "predict":
        arguments += ["--config-file", DIGITS, "--input", picture, "--allow-untrained"]
    result = run_python(without(package) + RUN, command, *arguments)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"error: {DRAW.format(package)}"
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def seeing_nothing() -> Predictor:
    """A predictor with a model that detects nothing."""
    predictor = object.__new__(Predictor)
    predictor.metadata = MetadataCatalog.get("digits_val")
    return predictor


@pytest.mark.parametrize("package", ["cv2", "matplotlib"])
def test_drawing_names_the_extra(package, monkeypatch):
    forget(monkeypatch, package)
    with pytest.raises(ImportError) as error:
        seeing_nothing().draw(np.zeros((8, 8, 3), np.uint8), {})
    assert str(error.value) == DRAW.format(package)


def test_reading_a_video_names_the_extra(tmp_path, monkeypatch):
    writer = cv2.VideoWriter(str(tmp_path / "x.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    forget(monkeypatch, "cv2")
    with pytest.raises(ImportError) as error:
        predict_inputs(seeing_nothing(), [tmp_path / "x.avi"], tmp_path / "out")
    assert str(error.value) == DRAW.format("cv2")


def test_safetensors_name_the_extra(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    save_file({"stem.conv1_1.weight": torch.zeros(1)}, file)
    forget(monkeypatch, "safetensors")
    with pytest.raises(UnreadableError) as error:
        read_checkpoint(file)
    expected = "is read by safetensors, which is not installed: pip install 'resnest_d2[hub]'"
    assert str(error.value) == f"{file} {expected}"
    nothing = Checkpoint({}, {}, False, "", input_format=None, classes={}, config="", rest={})
    with pytest.raises(ImportError) as error:
        write_checkpoint(nothing, tmp_path / "y.safetensors")
    assert str(error.value).endswith(expected.replace("read", "written"))
    assert not (tmp_path / "y.safetensors").exists()


def test_pycocotools_alone_computes_and_says_nothing(
    registered_digits, tmp_path, monkeypatch, caplog, capfd
):
    """The annotations themselves as detections: every class that is there has an AP of 100."""
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    monkeypatch.setattr(coco, "_chosen", "")
    evaluator = build_evaluator("digits_val", str(tmp_path))
    assert type(evaluator) is COCOEvaluator
    evaluator._tasks = ("bbox",)
    evaluator.reset()
    for entry in DatasetCatalog.get("digits_val"):
        found = Instances((entry["height"], entry["width"]))
        boxes = torch.tensor([a["bbox"] for a in entry["annotations"]], dtype=torch.float)
        boxes[:, 2:] += boxes[:, :2]  # from width and height to the other corner
        found.pred_boxes, found.scores = Boxes(boxes), torch.ones(len(boxes))
        found.pred_classes = torch.tensor([a["category_id"] for a in entry["annotations"]])
        evaluator.process([{"image_id": entry["image_id"]}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    printed = capfd.readouterr()
    assert "hotcoco" not in caplog.text + printed.out + printed.err
