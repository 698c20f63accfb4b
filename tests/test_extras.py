"""Without what comes as an extra: training needs none, and what needs one names it."""

import sys

import numpy as np
import pytest
import torch
from commands import run_python
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from safetensors.torch import save_file

from resnest_d2.engine import build_evaluator
from resnest_d2.evaluation import coco
from resnest_d2.inference.sources import each_picture
from resnest_d2.weights import UnreadableError, read_checkpoint
from resnest_d2.weights.files import Checkpoint, write_checkpoint

DIGITS = "configs/mask_resnest14_digits.yaml"
DRAW = "needs supervision, which is not installed: pip install 'resnest_d2[draw]'"
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
        if name.partition(".")[0] in packages:
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


def test_predict_names_the_extra_at_once(picture, tmp_path):
    arguments = ["--output", tmp_path / "out", "--input", picture, "--config-file", DIGITS]
    result = run_python(without("supervision") + RUN, "predict", *arguments, "--allow-untrained")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"error: drawing detections {DRAW}"
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_reading_a_video_names_the_extra(tmp_path, monkeypatch):
    forget(monkeypatch, "supervision")
    (tmp_path / "x.avi").touch()
    with pytest.raises(ImportError) as error:
        list(each_picture(tmp_path / "x.avi"))
    assert str(error.value) == f"reading a video {DRAW}"


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
