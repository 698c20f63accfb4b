"""COCO's own example: its 24 published numbers come out of the evaluators.

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
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from resnest_d2.data.coco_json import read_coco
from resnest_d2.evaluation.coco import FastCOCOEvaluator

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


@pytest.mark.parametrize("evaluator", [FastCOCOEvaluator, COCOEvaluator])
@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("as_instances", [False, True])
def test_the_published_numbers(
    registered, published, monkeypatch, tmp_path, evaluator, task, as_instances
):
    """From the files' boxes and masks, and from Instances, whose boxes are of 32 bits."""
    results = json.loads((FOLDER / f"instances_val2014_fake{task}100_results.json").read_text())
    by_image = defaultdict(list)
    for detection in results:
        by_image[detection["image_id"]].append(detection)
    options = {} if evaluator is FastCOCOEvaluator else {"use_fast_impl": False}
    made = evaluator(registered, output_dir=str(tmp_path), tasks=(task,), **options)
    evaluations = []
    derive = evaluator._derive_coco_results

    def keep(self, evaluation, *args, **kwargs):
        evaluations.append(evaluation)
        return derive(self, evaluation, *args, **kwargs)

    monkeypatch.setattr(evaluator, "_derive_coco_results", keep)
    made.reset()
    classes = MetadataCatalog.get(registered).thing_dataset_id_to_contiguous_id
    images = json.loads(GROUND_TRUTH.read_text())["images"]
    for image in images:
        found = by_image[image["id"]]
        if found and as_instances:
            output = {"instances": instances(found, image, classes)}
            made.process([{"image_id": image["id"]}], [output])
        elif found:
            found = [{**d, "category_id": classes[d["category_id"]]} for d in found]
            made._predictions.append({"image_id": image["id"], "instances": found})
    made.evaluate()
    (evaluation,) = evaluations
    # Some boxes overlap exactly by a threshold: rounding decides on which side they are.
    tolerance = 0.002 if as_instances and task == "bbox" else 0.0005 + 1e-9
    assert np.abs(np.asarray(evaluation.stats) - published[task]).max() <= tolerance


def test_our_reader_takes_the_file_as_it_is(tmp_path):
    """Without its images, which are not needed for the numbers: all of them are drawn here."""
    from PIL import Image

    for image in json.loads(GROUND_TRUTH.read_text())["images"]:
        Image.new("L", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    data = read_coco(GROUND_TRUTH, tmp_path, masks=True)
    assert len(data.annotations) == 839
