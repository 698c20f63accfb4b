"""Shared fixtures. The reference is imported first: it registers the names that ours register."""

import os
import random

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the suite means the same on every machine

import numpy as np
import pytest
import resnest.d2  # noqa: F401
import torch
from detectron2.modeling import BACKBONE_REGISTRY

for _name in ("build_resnest_backbone", "build_resnest_fpn_backbone"):
    BACKBONE_REGISTRY._obj_map.pop(_name)

from resnest_d2.data import DigitsSpec, build_digits  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory):
    """A dataset root with a few digits images, as $DETECTRON2_DATASETS."""
    root = tmp_path_factory.mktemp("datasets with space")
    build_digits(root / "digits", TINY_DIGITS)
    return root


TINY_DIGITS = DigitsSpec(train_images=6, val_images=3)
