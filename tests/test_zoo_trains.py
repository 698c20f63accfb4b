"""Every config of the zoo trains a step with its own INPUT, on real pictures made small.

Configs that differ by no more than their depth, schedule and weights are one case.
"""

import math

import pytest
from commands import ROOT
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.events import EventStorage
from PIL import Image
from test_heads import small_config

from resnest_d2 import model_zoo
from resnest_d2.engine.trainer import Trainer

NUCLEI = ROOT / "examples/nuclei"
NAME = "real_pictures"
SHRINK = 8


def smaller(size):
    """A side, a range of sides or a crop in pixels; shares of a picture stay."""
    if isinstance(size, (tuple, list)):
        return tuple(map(smaller, size))
    return max(64, size // SHRINK) if size > 1 else size


def small_zoo_config(name):
    cfg = small_config(name)
    cfg.MODEL.RESNETS.DEPTH = min(50, cfg.MODEL.RESNETS.DEPTH)
    cfg.INPUT.MIN_SIZE_TRAIN = smaller(cfg.INPUT.MIN_SIZE_TRAIN)
    cfg.INPUT.MAX_SIZE_TRAIN = smaller(cfg.INPUT.MAX_SIZE_TRAIN)
    cfg.INPUT.CROP.SIZE = list(smaller(cfg.INPUT.CROP.SIZE))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAME,), ()
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = 0, False
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE = 2, 0
    return cfg


def parts(name):
    cfg = small_zoo_config(name)
    cfg.MODEL.WEIGHTS = ""
    resnets = cfg.MODEL.pop("RESNETS").dump()
    return cfg.INPUT.dump() + cfg.MODEL.dump() + resnets, resnets


def cases(names):
    """A name for each different config; those with a backbone alone that is new are slow."""
    seen, found = set(), []
    for name in names:
        whole, backbone = parts(name)
        rest = whole.replace(backbone, "")
        if whole not in seen:
            found.append(pytest.param(name, marks=[pytest.mark.slow] * (rest in seen)))
        seen |= {whole, rest}
    return found


@pytest.fixture(autouse=True)
def _real_pictures(tmp_path):
    """Two real pictures, one of them without objects, with labels of every kind."""
    entries = load_coco_json(str(NUCLEI / "val.json"), str(NUCLEI / "images"))[:2]
    for number, entry in enumerate(entries):
        labels = Image.new("L", (entry["width"], entry["height"]))
        for annotation in entry["annotations"]:
            x, y, w, h = annotation["bbox"]
            labels.paste(1, tuple(map(int, (x, y, x + w, y + h))))
            points = [(x + w * k / 17, y + h * k / 17, 2) for k in range(17)]
            annotation["keypoints"] = [value for point in points for value in point]
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotation["category_id"] = 0
        labels.save(tmp_path / f"{number}.png")
        entry["sem_seg_file_name"] = str(tmp_path / f"{number}.png")
    assert all(entry["annotations"] for entry in entries)
    entries[1]["annotations"] = []
    DatasetCatalog.register(NAME, lambda: entries)
    keypoints = [f"point {k}" for k in range(17)]
    MetadataCatalog.get(NAME).set(
        **{"thing_classes": ["nucleus"], "stuff_classes": ["nothing", "nucleus"]},
        **{"ignore_label": 255, "keypoint_names": keypoints, "keypoint_flip_map": []},
    )
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.parametrize("name", cases(model_zoo.names()))
def test_a_step_of_every_config(name, tmp_path):
    cfg = small_zoo_config(name)
    cfg.OUTPUT_DIR = str(tmp_path)
    trainer = Trainer(cfg)
    trainer.iter = 0
    with EventStorage() as storage:
        trainer.storage = storage
        trainer.run_step()
    losses = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
    assert losses["total_loss"] > 0
    assert all(map(math.isfinite, losses.values())), losses
