"""Shared fixtures."""

import json
import logging
import os
import random
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the suite means the same on every machine
if workers := os.getenv("PYTEST_XDIST_WORKER_COUNT"):  # which share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils.logger import setup_logger
from helpers import randomize, randomize_tensors

from resnest_d2 import model_zoo
from resnest_d2.data import build_digits
from resnest_d2.modeling.detector import build_detector


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def _no_log_to_streams_of_other_tests():
    """Commands that a test has run in this process log to what the test has captured."""
    yield
    for name in ("detectron2", "fvcore", "resnest_d2"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)
    setup_logger.cache_clear()  # else it adds no other handler


@pytest.fixture(scope="session")
def reference():
    """``resnest.d2.resnest`` of PyPI's ``resnest``; a test that asks for it is skipped without it.

    It registers builders under the names of ours, which step aside while it is imported.
    """
    names = ("build_resnest_backbone", "build_resnest_fpn_backbone")
    ours = {name: BACKBONE_REGISTRY._obj_map.pop(name) for name in names}
    reason = "needs the reference: pip install --no-deps resnest==0.0.6b20230402"
    try:
        return pytest.importorskip("resnest.d2.resnest", reason=reason)
    finally:
        BACKBONE_REGISTRY._obj_map.update(ours)


@pytest.fixture(scope="session")
def imagenet():
    """State dict of a ResNeSt-14 in the names of the ImageNet files."""
    shapes = json.loads((Path(__file__).parent / "data/imagenet_names.json").read_text())
    state_dict = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name in state_dict:
        if name.endswith("num_batches_tracked"):
            state_dict[name] = torch.tensor(0)
    randomize_tensors(state_dict)
    return state_dict


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory):
    """A dataset root with a few digits images, as $DETECTRON2_DATASETS."""
    root = tmp_path_factory.mktemp("datasets with space")
    build_digits(root / "digits", train_images=6, val_images=3)
    return root


@pytest.fixture
def registered_digits(tiny_digits, monkeypatch):
    """The tiny data set under the names of the whole one, for code that runs in this process."""
    for split in ("train", "val"):
        metadata = MetadataCatalog.get(f"digits_{split}").__dict__
        json_file = tiny_digits / f"digits/annotations/digits_{split}.json"
        monkeypatch.setitem(metadata, "json_file", str(json_file))
        monkeypatch.setitem(metadata, "image_root", str(tiny_digits / "digits" / split))
    return tiny_digits


@pytest.fixture(scope="session")
def small_detector(tmp_path_factory):
    """The checkpoint of a Mask R-CNN that finds 12 instances in every picture.

    It holds its config and the names of its ten classes; its weights are drawn.
    """
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64])
    cfg.merge_from_list(["TEST.DETECTIONS_PER_IMAGE", 12, "MODEL.RPN.POST_NMS_TOPK_TEST", 20])
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = build_detector(cfg)
    randomize(model)
    file = tmp_path_factory.mktemp("small_detector") / "model_final.pth"
    names = {"thing_classes": [f"digit {number}" for number in range(10)]}
    torch.save({"model": model.state_dict(), "classes": names, "config": cfg.dump()}, file)
    return file
