"""Images with more objects than COCO's evaluation counts."""

import itertools
import json

import pytest
from detectron2.data import MetadataCatalog
from PIL import Image
from short_training import arguments, use_own_data

from resnest_d2 import model_zoo
from resnest_d2.engine import Trainer

OBJECTS = 144


@pytest.fixture
def files(tmp_path):
    """Options that train on a picture of 144 objects."""
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
    return options | {f"{split}_images": tmp_path for split in ("train", "val")}


@pytest.mark.parametrize(
    ("name", "limit", "counted"),
    [("coco_of_this_test", 300, 100), ("of_this_test", 300, 300), ("of_this_test", 50, 100)],
)
def test_so_many_count_in_evaluation(tmp_path, name, limit, counted):
    """On COCO's own data sets always as many as COCO says."""
    cfg = model_zoo.get_config("faster_resnest50")
    cfg.TEST.DETECTIONS_PER_IMAGE = limit
    file = tmp_path / "none.json"
    file.write_text('{"images": [], "annotations": [], "categories": []}')
    MetadataCatalog.get(name).json_file = str(file)
    MetadataCatalog.get(name).evaluator_type = "coco"
    assert Trainer.build_evaluator(cfg, name)._detections == counted
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(("limit", "is_warned"), [(100, True), (OBJECTS, False)])
def test_what_a_model_can_find_is_compared_with_the_data(files, tmp_path, caplog, limit, is_warned):
    cfg = model_zoo.get_config("faster_resnest50")
    cfg.OUTPUT_DIR, cfg.TEST.DETECTIONS_PER_IMAGE = str(tmp_path / "out"), limit
    use_own_data(cfg, arguments(**files))
    message = "144 objects, more than the model can find: raise TEST.DETECTIONS_PER_IMAGE 100"
    assert (message in caplog.text) == is_warned
