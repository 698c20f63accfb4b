"""COCO's own example: its published precisions come out of the evaluator.

The files are not part of this repository. COCO_EVALUATION names a folder that holds
instances_val2014_fakebbox100_results.json and ..fakesegm100_results.json (cocodataset/cocoapi,
folder results), published_results.txt (the output of its demo) and instances_val2014_100.json, the
annotations of the first 100 images of val2014.
"""

import json
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

from resnest_d2.evaluation import CocoEvaluator

FOLDER = Path(os.getenv("COCO_EVALUATION", "absent"))
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="COCO_EVALUATION names no folder with COCO's example"
)
GROUND_TRUTH = FOLDER / "instances_val2014_100.json"
NAME = "coco_published_numbers"


@pytest.fixture(scope="module")
def published():
    """The 12 numbers of each task, of three decimals."""
    parts = re.split(r"type=(\w+)", (FOLDER / "published_results.txt").read_text())[1:]
    numbers = dict(zip(parts[::2], parts[1::2], strict=True))
    return {
        k: [float(n) for n in re.findall(r"= (-?[\d.]+)$", v, re.M)] for k, v in numbers.items()
    }


@pytest.fixture(scope="module")
def registered():
    register_coco_instances(NAME, {}, str(GROUND_TRUTH), "")
    DatasetCatalog.get(NAME)
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def instances(detections, image, classes):
    """Detections of an image as a model gives them."""
    found = Instances((image["height"], image["width"]))
    found.scores = torch.tensor([d["score"] for d in detections])
    found.pred_classes = torch.tensor([classes[d["category_id"]] for d in detections])
    if "segmentation" in detections[0]:
        masks = [mask_util.decode(d["segmentation"]) for d in detections]
        found.pred_masks = torch.from_numpy(np.stack(masks)).bool()
        boxes = [mask_util.toBbox(d["segmentation"]) for d in detections]
    else:
        boxes = [d["bbox"] for d in detections]
    boxes = torch.tensor(np.array(boxes), dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    found.pred_boxes = Boxes(boxes)
    return found


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_the_published_numbers(registered, published, tmp_path, library, task):
    results = json.loads((FOLDER / f"instances_val2014_fake{task}100_results.json").read_text())
    by_image = defaultdict(list)
    for detection in results:
        by_image[detection["image_id"]].append(detection)
    made = CocoEvaluator(registered, str(tmp_path), library=library)
    made.reset()
    classes = MetadataCatalog.get(registered).thing_dataset_id_to_contiguous_id
    for image in json.loads(GROUND_TRUTH.read_text())["images"]:
        if found := by_image[image["id"]]:
            output = {"instances": instances(found, image, classes)}
            made.process([{"image_id": image["id"]}], [output])
    metrics = made.evaluate()[task]
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    ours = np.array([metrics[name] for name in names]) / 100
    # Some boxes overlap exactly by a threshold: rounding to 32 bits decides on which side they are.
    tolerance = 0.002 if task == "bbox" else 0.0005 + 1e-9
    assert np.abs(ours - published[task][: len(names)]).max() <= tolerance
