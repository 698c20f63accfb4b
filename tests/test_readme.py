"""README.md and docs/: their code runs, their table is what tests show.

The example of docs/own_data.md is run in test_train_net.py; test_docs.py has links and commands.
"""

import json
import re
from pathlib import Path

import detectron2.model_zoo
import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic_separated
from detectron2.modeling import build_model
from panopticapi.utils import id2rgb
from PIL import Image
from test_heads import AUGMENTED, MODELS, SIZE, small_config

import resnest_d2
from resnest_d2.config.keys import portable_config
from resnest_d2.engine.trainer import Trainer, evaluate_model
from resnest_d2.modeling.detector import build_detector
from resnest_d2.weights.catalog import find

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_a_detector_on_a_photo(tmp_path, monkeypatch):
    """As it stands, but for the model, which nobody has to fetch."""
    code = blocks("python")[0]
    name = "mmdet/cascade_resnest101"
    assert find(f"resnest://COCO/{name}").sources
    cfg = resnest_d2.model_zoo.get_config("mask_resnest14_digits")
    cfg.MODEL.DEVICE = "cpu"
    content = {"model": build_detector(cfg).state_dict(), "config": cfg.dump()}
    torch.save(content, tmp_path / "detector.pth")
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    assert code.count(name) == 1
    exec(code.replace(name, "detector.pth"), {})
    assert Image.open("drawn.png").size == (96, 64)


def test_two_lines_for_a_detectron2_project():
    code = blocks("python")[1]
    assert len([line for line in code.splitlines() if line.strip()]) == 2
    names = {"cfg": get_cfg()}
    exec(code, names)
    ours = resnest_d2.model_zoo.get_config("cascade_resnest101")
    assert yaml.safe_load(names["cfg"].dump()) == yaml.safe_load(portable_config(ours).dump())


def test_five_lines_for_a_detectron2_project():
    code = blocks("python", "docs/use_in_your_project.md")[0]
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    names: dict = {}
    exec(code, names)
    assert names["cfg"] == resnest_d2.model_zoo.get_config("cascade_resnest101")


def test_keys_for_an_existing_config():
    cfg = detectron2.model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    (text,) = blocks("yaml", "docs/use_in_your_project.md")
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(text)))
    cfg.MODEL.DEVICE = "meta"
    model = build_model(cfg)
    assert isinstance(model.backbone.bottom_up, resnest_d2.ResNeSt)


def test_faster_inference():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    names = {"model": model, "resnest_d2": resnest_d2}
    exec(blocks("python", "docs/inference.md")[1], names)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in names["fast"].modules())


# The table of heads: its rows, and the models of test_heads.py and test_optimize.py that they are.
ROWS = {
    "Faster R-CNN": "faster",
    "Mask R-CNN": "mask",
    "Cascade R-CNN": "cascade",
    "RetinaNet": "retinanet",
    "Keypoint R-CNN": "keypoint",
    "PointRend": "pointrend",
    "Panoptic FPN": "panoptic",
    "DeepLabV3+": "deeplab",
}
METRICS = {"box": "bbox", "mask": "segm", "keypoint": "keypoints"}
METRICS |= {"PQ": "panoptic_seg", "mIoU": "sem_seg"}


def table() -> dict[str, dict[str, str]]:
    lines = [line for line in README.splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(lines) if line.startswith("| | train |"))
    header, _, *rows = (
        [cell.strip() for cell in line[1:-1].split("|")] for line in lines[start : start + 10]
    )
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_the_table_has_what_other_tests_run():
    rows = table()
    assert list(rows) == list(ROWS)
    for title, kind in ROWS.items():
        assert kind in MODELS  # trained for a step, and optimised
        augmented = rows[title]["test-time augmentation"]
        assert (augmented != "error") == (kind in AUGMENTED), title


@pytest.fixture(scope="module")
def all_kinds_of_truth(tmp_path_factory):
    """One image with a square of each of two classes, on stuff, as COCO and panoptic data."""
    folder = tmp_path_factory.mktemp("truth")
    segments = np.ones((SIZE, SIZE), np.uint32)
    segments[20:70, 20:70], segments[80:110, 60:120] = 2, 3
    image = {"id": 1, "file_name": "1.jpg", "height": SIZE, "width": SIZE}
    boxes = {2: [20, 20, 50, 50], 3: [60, 80, 60, 30]}
    annotations = []
    for segment, (x, y, w, h) in boxes.items():
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {"id": segment, "image_id": 1, "category_id": segment - 1, "iscrowd": 0}
            | {"bbox": [x, y, w, h], "area": w * h, "segmentation": [polygon]}
            | {"keypoints": [x, y, 2] * 17, "num_keypoints": 17}
        )
    infos = [{"id": 1, "category_id": 92, "area": 1, "bbox": [0, 0, SIZE, SIZE], "iscrowd": 0}]
    infos += annotations
    things = [{"id": 1, "name": "a", "isthing": 1}, {"id": 2, "name": "b", "isthing": 1}]
    stuff = [{"id": 92, "name": "sky", "isthing": 0}]
    truth = {"images": [image], "annotations": annotations, "categories": things}
    (folder / "instances.json").write_text(json.dumps(truth))
    panoptic = {"image_id": 1, "file_name": "1.png", "segments_info": infos}
    (folder / "panoptic.json").write_text(
        json.dumps({"images": [image], "annotations": [panoptic], "categories": things + stuff})
    )
    for name, pixels in (
        ("images/1.jpg", np.stack([segments * 80] * 3, -1).astype(np.uint8)),
        ("panoptic/1.png", id2rgb(segments)),
        ("semantic/1.png", (segments == 1).astype(np.uint8)),
    ):
        (folder / name).parent.mkdir()
        Image.fromarray(pixels).save(folder / name)
    register_coco_instances("truth", {}, str(folder / "instances.json"), str(folder / "images"))
    metadata = {"stuff_classes": ["things", "sky"], "thing_classes": ["a", "b"]}
    metadata["thing_dataset_id_to_contiguous_id"] = {1: 0, 2: 1}
    metadata["stuff_dataset_id_to_contiguous_id"] = {1: 0, 92: 1}
    paths = ("images", "panoptic", "panoptic.json", "semantic", "instances.json")
    register_coco_panoptic_separated("truth_panoptic", metadata, *(str(folder / p) for p in paths))
    yield  # Detectron2 registers the panoptic data set's semantic maps too
    for name in ("truth", "truth_panoptic_separated", "truth_panoptic_stuffonly"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def small_evaluation(kind, folder):
    """A config that evaluates a small model of a kind on the data set that it is for."""
    cfg = small_config(kind, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(folder))
    cfg.INPUT.MIN_SIZE_TEST = SIZE
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    if kind == "pointrend":
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = 2
    data = {"panoptic": "truth_panoptic_separated", "deeplab": "truth_panoptic_stuffonly"}
    cfg.DATASETS.TEST = (data.get(kind, "truth"),)
    return cfg


@pytest.mark.parametrize("title", ROWS)
def test_every_head_is_evaluated_by_the_metrics_of_the_table(title, all_kinds_of_truth, tmp_path):
    cfg = small_evaluation(ROWS[title], tmp_path)
    results = evaluate_model(cfg, build_detector(cfg).eval())
    expected = {METRICS[metric] for metric in table()[title]["evaluate"].split(", ")}
    assert {task for task, metrics in results.items() if metrics} == expected


def test_augmentation_of_a_panoptic_data_set_evaluates_instances(all_kinds_of_truth, tmp_path):
    cfg = small_evaluation("panoptic", tmp_path)
    results = Trainer.test_with_TTA(cfg, build_detector(cfg).eval())
    assert set(results) == {"bbox_TTA", "segm_TTA"}
