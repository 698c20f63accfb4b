"""Masks in their boxes are those that Detectron2 pastes into the picture, for less memory."""

import json
import re
import subprocess
import sys

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image

from resnest_d2 import Predictor
from resnest_d2.export.standalone import encode
from resnest_d2.inference.masks import paste_one


def test_a_mask_in_its_box_is_detectron2s():
    generator = torch.Generator().manual_seed(0)
    for size, number in (((75, 95), 300), ((3001, 4007), 20)):
        low = torch.rand(number, 2, generator=generator) * torch.tensor([size[1], size[0]])
        boxes = torch.cat([low, low + 300 * torch.rand(number, 2, generator=generator)], 1)
        boxes[:9] = boxes[:9].round()
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[1])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[0])
        masks = torch.rand(number, 28, 28, generator=generator)
        masks[0] = 1
        expected = paste_masks_in_image(masks, boxes, size, 0.5)
        for mask, box, wanted in zip(masks, boxes, expected, strict=True):
            part, top, left = paste_one(mask, box, size)
            pasted = torch.zeros(size, dtype=torch.bool)
            pasted[top : top + part.shape[0], left : left + part.shape[1]] = torch.from_numpy(part)
            assert torch.equal(pasted, wanted)
            rle = encode(part, top, left, *size)
            assert mask_util.area(rle) == wanted.sum()


def test_a_predictors_masks_are_the_models(small_detector):
    predictor = Predictor(small_detector)
    pixels = np.random.RandomState(0).randint(0, 256, (150, 190, 3), dtype=np.uint8)
    result = predictor(pixels)
    with torch.no_grad():
        (expected,) = predictor.model([predictor.prepare(pixels)])
    expected = expected["instances"]
    assert len(expected) > 3
    for instances in (result.instances, result["instances"], result.above(0).instances):
        assert set(instances.get_fields()) == set(expected.get_fields())
        assert torch.equal(instances.pred_masks, expected.pred_masks)
        assert torch.equal(instances.pred_boxes.tensor, expected.pred_boxes.tensor)
    for entry, wanted in zip(result.to_coco(7), instances_to_coco_json(expected, 7), strict=True):
        assert entry["segmentation"] == wanted["segmentation"]
        assert entry["bbox"] == wanted["bbox"]
    areas = expected.pred_masks.sum((1, 2)).tolist()
    assert [one.area for one in result] == areas
    assert [entry["area"] for entry in json.loads(result.to_json())] == areas
    assert (next(iter(result)).mask == expected.pred_masks[0].numpy()).all()


MANY = """
import re, torch
from pathlib import Path
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from resnest_d2.inference.result import Result

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

found = Instances((3000, 4000))
low = torch.rand(100, 2) * torch.tensor([3600, 2700])
found.pred_boxes = Boxes(torch.cat([low, low + torch.tensor([400.0, 300.0])], 1))
found.pred_boxes.tensor[0] = torch.tensor([0, 0, 4000.0, 3000])
found.scores, found.pred_classes = torch.rand(100), torch.zeros(100, dtype=torch.int64)
found.box_masks = torch.rand(100, 28, 28)
before = peak()
result = Result({"instances": found}, None, Metadata(name="x"))
assert len(result.to_json()) > 1000
assert len(result.to_coco()) == 100
print(peak() - before)
"""


def test_many_masks_of_a_large_picture_take_little_memory():
    """As arrays of the picture they would be 1.2 GB."""
    command = [sys.executable, "-c", MANY]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (kilobytes,) = re.findall(r"^(\d+)$", result.stdout, re.MULTILINE)
    assert int(kilobytes) < 500 * 1024
