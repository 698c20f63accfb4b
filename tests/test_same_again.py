"""Runs that are the same: of equal seeds, and over a stop; images that are left out."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from short_training import loop, make

from resnest_d2.config import InputError
from resnest_d2.data.images import read_image
from resnest_d2.engine.precise_bn import PreciseBN

pytestmark = pytest.mark.usefixtures("registered_digits")


class Losses(HookBase):
    """Keeps each iteration's losses, to the last bit, and its images."""

    def __init__(self, stop=None):
        self.losses, self.files, self.stop = {}, {}, stop

    def after_step(self):
        if self.trainer.iter + 1 == self.stop:
            raise KeyboardInterrupt


def run(folder, stop=None, lazy=False, **options):
    """Train, to the end or to a kill, and return what was seen."""
    trainer = make(folder, lazy, **options)
    seen = Losses(stop)
    inner = getattr(loop(trainer), "_trainer", loop(trainer))

    def note(model, inputs, losses):
        if model.training and torch.is_grad_enabled():  # no pass of precise BN
            seen.losses[inner.iter] = {k: v.item() for k, v in losses.items()}
            seen.files[inner.iter] = [image["file_name"] for image in inputs[0]]

    inner.model.register_forward_hook(note)
    loop(trainer).register_hooks([seen])
    if stop:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return seen


AUGMENTED = {
    "SOLVER.MAX_ITER": "20",
    "SOLVER.CHECKPOINT_PERIOD": "10",
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.MIN_SIZE_TRAIN": "(64,80,96)",
}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_cut_run_gives_the_losses_of_the_uncut_one(tmp_path, workers):
    """Twice the uncut one, and one that was killed behind its checkpoint and resumed."""
    keys = {**AUGMENTED, "DATALOADER.NUM_WORKERS": workers}
    runs = []
    for name in ("a", "b"):
        seed_all_rng(1)
        runs.append(run(tmp_path / name, keys=keys, deterministic=True))
    assert len(runs[0].losses) == 20
    assert runs[0].losses == runs[1].losses
    seed_all_rng(1)
    begun = run(tmp_path / "c", stop=13, keys=keys, deterministic=True)
    seed_all_rng(2)  # what the process has is not what counts
    rest = run(tmp_path / "c", keys=keys, resume=True, deterministic=True)
    assert min(rest.losses) == 10
    assert {**begun.losses, **rest.losses} == runs[0].losses
    assert all(rest.losses[i] == begun.losses[i] for i in (10, 11, 12))


def test_another_seed_gives_other_losses(tmp_path):
    """Else the test above would prove nothing."""
    keys = {**AUGMENTED, "SOLVER.MAX_ITER": "1"}
    seed_all_rng(1)
    first = run(tmp_path / "a", keys=keys, deterministic=True)
    seed_all_rng(1)
    other = run(tmp_path / "b", keys={**keys, "SEED": "2"}, deterministic=True)
    assert first.losses != other.losses


@pytest.mark.parametrize("lazy", [False, True])
def test_no_image_twice_over_a_kill(tmp_path, lazy):
    period = "train.checkpointer.period" if lazy else "SOLVER.CHECKPOINT_PERIOD"
    end = "train.max_iter" if lazy else "SOLVER.MAX_ITER"
    keys = {period: "2", end: "9"}  # three epochs of six images
    begun = run(tmp_path, stop=5, lazy=lazy, keys=keys)
    rest = run(tmp_path, lazy=lazy, keys=keys, resume=True)
    files = {**begun.files, **rest.files}
    assert sorted(files) == list(range(9))
    for epoch in range(3):
        seen = Counter(file for i in range(3) for file in files[3 * epoch + i])
        assert set(seen.values()) == {1}
        assert len(seen) == 6


@pytest.fixture
def a_bad_image(tiny_digits, tmp_path, monkeypatch):
    """One of the six that cannot be decoded, as if the disk had failed since the start."""
    bad = sorted((tiny_digits / "digits/train").iterdir())[2]

    def read(path, *args):
        if path == str(bad):
            raise InputError(f"{path} cannot be read as a picture: image file is truncated")
        return read_image(path, *args)

    monkeypatch.setattr("resnest_d2.data.mapper.read_image", read)
    return bad


def test_a_bad_image_is_named_with_its_annotations(tmp_path, a_bad_image):
    with pytest.raises(InputError, match=rf"{a_bad_image.name} .*\(an image of .*_train.json\)"):
        make(tmp_path).train()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_bad_images_are_left_out_and_counted(tmp_path, a_bad_image, caplog, workers):
    keys = {"SOLVER.MAX_ITER": "6", "DATALOADER.NUM_WORKERS": workers}  # two epochs
    seen = run(tmp_path, keys=keys, skip_bad_images=True)
    files = Counter(file for files in seen.files.values() for file in files)
    assert str(a_bad_image) not in files
    assert sum(files.values()) == 12
    assert "1 image(s) were left out" in caplog.text
    assert a_bad_image.name in caplog.text
    lines = (tmp_path / "skipped_images.txt").read_text().splitlines()
    assert len(lines) >= 2
    assert len(set(lines)) == 1


@pytest.mark.parametrize("lazy", [False, True])
def test_precise_bn_leaves_them_out_too(tmp_path, a_bad_image, lazy):
    keys = {"SOLVER.MAX_ITER": "2", "TEST.PRECISE_BN.ENABLED": "True"}
    keys |= {"TEST.PRECISE_BN.NUM_ITER": "8", "TEST.EVAL_PERIOD": "1"}
    if lazy:
        keys = {"train.max_iter": "2", "train.eval_period": "1"}
        keys |= {"train.precise_bn.enabled": "true", "train.precise_bn.num_iter": "8"}
    trainer = make(tmp_path, lazy, keys=keys, skip_bad_images=True)
    (hook,) = (hook for hook in loop(trainer)._hooks if isinstance(hook, PreciseBN))
    for _ in range(4):  # the six images and two of the second epoch
        files = [Path(image["file_name"]).name for image in next(hook._batches)]
        assert a_bad_image.name not in files
    assert a_bad_image.name in (tmp_path / "skipped_images.txt").read_text()
    (tmp_path / "skipped_images.txt").write_text("of another run\n")
    trainer.train()
    assert "another run" not in (tmp_path / "skipped_images.txt").read_text()


def test_precise_bn_draws_no_numbers_of_the_training(tmp_path):
    losses = []
    for number in (1, 3):
        keys = {"SOLVER.MAX_ITER": "4", "TEST.PRECISE_BN.ENABLED": "True", "SEED": "1"}
        keys |= {"TEST.PRECISE_BN.NUM_ITER": str(number), "TEST.EVAL_PERIOD": "2"}
        seed_all_rng(1)
        losses.append(run(tmp_path / str(number), keys=keys, deterministic=True).losses)
    assert losses[0] == losses[1]


def test_the_state_is_readable_without_running_code(tmp_path):
    make(tmp_path).train()
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert json.dumps(content["sampler"])
    assert content["sampler"]["runs"] == [
        {"iterations": 4, "world_size": 1, "batch_size": 2, "num_workers": 0}
    ]
    assert len(content["random"]) == 1
