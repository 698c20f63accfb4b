"""Images with more objects than COCO's evaluation counts."""

import itertools
import json
import logging

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from short_training import arguments, use_own_data

from resnest_d2 import model_zoo
from resnest_d2.engine import Trainer
from resnest_d2.engine.finetune import VAL
from resnest_d2.evaluation import coco

OBJECTS = 144


@pytest.fixture
def files(tmp_path):
    """A picture of 144 objects, and options that evaluate on it."""
    Image.new("RGB", (240, 240)).save(tmp_path / "a.png")
    boxes = [[20 * x + 2, 20 * y + 2, 16, 16] for x, y in itertools.product(range(12), repeat=2)]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 240, "height": 240}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 256, "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    options = {f"{split}_json": tmp_path / "data.json" for split in ("train", "val")}
    return options | {f"{split}_images": tmp_path for split in ("train", "val")}, boxes


@pytest.mark.parametrize("implementation", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("limit", [100, 200])
def test_perfect_boxes_are_perfect(files, tmp_path, caplog, monkeypatch, implementation, limit):
    monkeypatch.setattr(coco, "implementation", lambda: implementation)
    given, boxes = files
    cfg = model_zoo.get_config("faster_resnest50")
    cfg.OUTPUT_DIR, cfg.TEST.DETECTIONS_PER_IMAGE = str(tmp_path / "out"), limit
    use_own_data(cfg, arguments(**given))
    said = f"an image has {OBJECTS} objects, more than the model can find: raise TEST.DETECTIONS_"
    assert (said in caplog.text) == (limit < OBJECTS)
    caplog.set_level(logging.INFO)
    evaluator = Trainer.build_evaluator(cfg, VAL)
    counted = f"AP on data set {VAL!r} counts {limit} detections an image"
    assert (counted in caplog.text) == (limit > 100)
    found = Instances((240, 240))
    corners = torch.tensor(boxes, dtype=torch.float32)
    corners[:, 2:] += corners[:, :2]
    found.pred_boxes, found.scores = Boxes(corners), torch.linspace(0.9, 0.5, OBJECTS)
    found.pred_classes = torch.zeros(OBJECTS, dtype=torch.long)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    ap = evaluator.evaluate()["bbox"]["AP"]
    assert ap == (pytest.approx(100) if limit > OBJECTS else pytest.approx(69.3, abs=0.1))


def test_coco_keeps_its_own_number(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cfg = model_zoo.get_config("faster_resnest50")
    cfg.TEST.DETECTIONS_PER_IMAGE = 300
    MetadataCatalog.get("coco_for_this_test").set(
        json_file=str(tmp_path / "none.json"), evaluator_type="coco", thing_classes=["a"]
    )
    (tmp_path / "none.json").write_text('{"images": [], "annotations": [], "categories": []}')
    evaluator = Trainer.build_evaluator(cfg, "coco_for_this_test")
    assert evaluator._detections == 100
    assert "detections an image" not in caplog.text


@pytest.mark.parametrize(
    ("name", "proposals", "keys"),
    [
        ("faster_resnest50", 1000, "TEST.DETECTIONS_PER_IMAGE 100"),
        (
            "faster_resnest50",
            50,
            "TEST.DETECTIONS_PER_IMAGE 100 and MODEL.RPN.POST_NMS_TOPK_TEST 50",
        ),
        ("retinanet_resnest50", 50, "TEST.DETECTIONS_PER_IMAGE 100"),  # which has no proposals
    ],
)
def test_what_a_model_can_find_is_compared_with_the_data(
    files, tmp_path, caplog, name, proposals, keys
):
    cfg = model_zoo.get_config(name)
    cfg.OUTPUT_DIR, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = str(tmp_path / "out"), proposals
    use_own_data(cfg, arguments(**files[0]))
    message = f"an image has {OBJECTS} objects, more than the model can find: raise {keys}"
    assert [m for m in caplog.messages if m.endswith(message)]
