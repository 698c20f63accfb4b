"""Shared fixtures. The reference is imported first: it registers the names that ours register."""

import os
import random

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the suite means the same on every machine

import numpy as np
import pytest
import resnest.d2  # noqa: F401
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY
from resnest.torch.models.resnet import Bottleneck
from resnest.torch.models.resnet import ResNet as ImageNetResNeSt

for _name in ("build_resnest_backbone", "build_resnest_fpn_backbone"):
    BACKBONE_REGISTRY._obj_map.pop(_name)

from helpers import randomize  # noqa: E402

from resnest_d2.data import DigitsSpec, build_digits  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def imagenet():
    """State dict of a ResNeSt-14 in the names of the ImageNet files."""
    block = {"radix": 2, "deep_stem": True, "stem_width": 32, "avg_down": True, "avd": True}
    model = ImageNetResNeSt(Bottleneck, [1, 1, 1, 1], **block)
    randomize(model)
    return model.state_dict()


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory):
    """A dataset root with a few digits images, as $DETECTRON2_DATASETS."""
    root = tmp_path_factory.mktemp("datasets with space")
    build_digits(root / "digits", TINY_DIGITS)
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


TINY_DIGITS = DigitsSpec(train_images=6, val_images=3)
