"""Runs of equal seeds, and images that cannot be read."""

from collections import Counter

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from short_training import make

from resnest_d2.config import InputError
from resnest_d2.data.images import read_image

pytestmark = pytest.mark.usefixtures("registered_digits")


class Losses(HookBase):
    """Keeps each iteration's losses, to the last bit."""

    def __init__(self):
        self.losses = []

    def after_step(self):
        self.losses.append(self.trainer.storage.latest()["total_loss"][0])


def run(folder, seed, **options):
    """Train, and return losses and files."""
    seed_all_rng(seed)
    trainer = make(folder, **options)
    seen, files = Losses(), []

    def note(model, inputs):
        if torch.is_grad_enabled():  # no pass of precise BN
            files.extend(image["file_name"] for image in inputs[0])

    trainer.model.register_forward_pre_hook(note)
    trainer.register_hooks([seen])
    trainer.train()
    return seen.losses, files


def test_equal_seeds_give_equal_losses(tmp_path):
    keys = {"INPUT.RANDOM_FLIP": "horizontal", "INPUT.MIN_SIZE_TRAIN": "(64,80,96)", "SEED": "1"}
    keys["SOLVER.MAX_ITER"] = "2"
    runs = [run(tmp_path / str(seed), seed, keys=keys)[0] for seed in (1, 1, 2)]
    assert len(runs[0]) == 2
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.fixture
def a_bad_image(tiny_digits, monkeypatch):
    """One of the six that cannot be decoded, as if the disk had failed since the start."""
    bad = sorted((tiny_digits / "digits/train").iterdir())[2]

    def read(path, *args):
        if path == str(bad):
            raise InputError(f"{path} cannot be read as a picture: image file is truncated")
        return read_image(path, *args)

    monkeypatch.setattr("resnest_d2.data.mapper.read_image", read)
    return bad


@pytest.mark.parametrize("workers", ["0", "2"])
def test_others_stand_in_for_bad_images(tmp_path, a_bad_image, caplog, workers):
    keys = {"SOLVER.MAX_ITER": "6", "DATALOADER.NUM_WORKERS": workers}  # two epochs
    files = Counter(run(tmp_path, 1, keys=keys, skip_bad_images=True)[1])
    assert str(a_bad_image) not in files
    assert sum(files.values()) == 12
    if workers == "0":  # else a process of the loader says so
        assert f"{a_bad_image} cannot be read" in caplog.text
