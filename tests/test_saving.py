"""Checkpoints: whole or not there, the best and the last ones kept."""

import errno
import json
import os

import pytest
import torch
from detectron2.engine import hooks
from short_training import At, make, short_config

from resnest_d2.config import InputError
from resnest_d2.engine import TrainingOptions
from resnest_d2.engine.checkpoint import BEGUN, last_checkpoint
from resnest_d2.weights import UnreadableError

pytestmark = pytest.mark.usefixtures("registered_digits")

EVALUATED = {"TEST.EVAL_PERIOD": "1", "DATASETS.TEST": "('digits_val',)"}
TWO = {"DATASETS.TEST": "('digits_val', 'digits_train')"}


def checkpoints(folder):
    return sorted(file.name for file in folder.glob("*.pth"))


def scored(folder, values, keys=None, **options):
    """A trainer that evaluates to these figures, one after the other, in place of a model's."""
    trainer = make(folder, keys={**EVALUATED, **(keys or {})}, keep_best="bbox/AP", **options)
    values = iter(values)
    for hook in trainer._hooks:
        if isinstance(hook, hooks.EvalHook):
            hook._func = lambda: {"bbox": {"AP": next(values)}}
    return trainer


def test_the_best_and_the_last_are_kept_and_patience_stops(tmp_path):
    """In the iteration behind the third evaluation without a gain."""
    older, weights = tmp_path / "model_0000009.pth", []
    older.touch()
    values = [1.0, 3.0, float("nan"), 2.0, 3.0, 9.0]
    keys = {"SOLVER.MAX_ITER": "9", "SOLVER.CHECKPOINT_PERIOD": "1"}
    trainer = scored(tmp_path, values, keys, patience=3, keep_last=2)
    name, parameter = next((n, p) for n, p in trainer.model.named_parameters() if p.requires_grad)
    trainer.register_hooks([At(1, lambda: weights.append(parameter.detach().clone()))])
    trainer.train()
    assert trainer.iter == 5
    best = json.loads((tmp_path / "model_best.json").read_text())
    assert best == {"metric": "bbox/AP", "value": 3.0, "iteration": 1}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    kept = [f"model_{name}.pth" for name in ("0000004", "0000005", "0000009", "best", "final")]
    assert checkpoints(tmp_path) == kept
    best, final = (torch.load(tmp_path / kept[i], weights_only=True) for i in (3, 4))
    assert (best["iteration"], final["iteration"]) == (1, 5)
    assert torch.equal(best["model"][name], weights[0])
    assert not torch.equal(final["model"][name], weights[0])


def test_the_best_is_known_over_a_stop(tmp_path):
    """Also an evaluation behind the checkpoint that is resumed; another run begins anew."""

    def stop():
        raise KeyboardInterrupt

    trainer = scored(tmp_path, [1.0, 5.0])
    trainer.register_hooks([At(1, stop)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    scored(tmp_path, [4.9, 4.9], resume=True).train()
    best = tmp_path / "model_best.json"
    assert json.loads(best.read_text()) == {"metric": "bbox/AP", "value": 5.0, "iteration": 1}
    scored(tmp_path, [2.0], {"SOLVER.MAX_ITER": "1"}).train()
    assert json.loads(best.read_text())["value"] == 2.0


@pytest.mark.parametrize(
    ("metric", "keys", "message"),
    [
        ("bbox/AP", {}, None),
        ("bbox/AP-seven", {}, None),
        ("digits_val/bbox/AP", TWO, None),
        ("bbox/AP", TWO, "there are digits_val/bbox/AP, .*digits_train/segm/AP and others"),
        ("digits_val/bbox/AP", {}, "on DATASETS.TEST .*; there are bbox/AP, segm/AP and"),
        ("bbox/APP", {}, "did you mean bbox/AP"),
        ("bbox/AP", {"DATASETS.TEST": "()"}, "needs data to evaluate on, and DATASETS.TEST is"),
        ("segm/AP", {"MODEL.MASK_ON": "False"}, "no metric of this model"),
    ],
)
def test_metrics_that_will_not_be_there_are_refused_at_the_start(tmp_path, metric, keys, message):
    cfg = short_config(tmp_path, {"DATASETS.TEST": "('digits_val',)", **keys})
    options = TrainingOptions(keep_best=metric)
    if message is None:
        options.check(cfg)
        return
    with pytest.raises(InputError, match=message):
        options.check(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": -1}, "--patience must be at least 0"),
        ({"keep_last": -1}, "--keep-last must be at least 0"),
        ({"patience": 1}, "--patience needs --keep-best METRIC"),
        ({"patience": 1, "keep_best": "bbox/AP"}, r"evaluations during training \(TEST.EVAL_PE"),
    ],
)
def test_a_trainer_refuses_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path, keys={"DATASETS.TEST": "('digits_val',)"}, **options)


class FullDisk:
    """``os.fsync`` on a disk that is full for the second checkpoint."""

    def __init__(self):
        self.calls, self.real = 0, os.fsync

    def __call__(self, descriptor):
        if os.fstat(descriptor).st_size > 1 << 20:  # checkpoints only
            self.calls += 1
            if self.calls == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        self.real(descriptor)


def test_a_full_disk_stops_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", FullDisk())
    with pytest.raises(InputError, match=r"cannot write .*model_0000003.pth: No space left"):
        make(tmp_path).train()
    assert checkpoints(tmp_path) == ["model_0000001.pth"]
    assert not list(tmp_path.glob(".*.part"))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert make(tmp_path, resume=True).start_iter == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_ends_training_in_a_sentence(tmp_path, number):
    """Whatever writes to it first, as Detectron2's writers of metrics."""
    trainer = make(tmp_path)

    def fail():
        raise OSError(number, os.strerror(number))

    trainer.register_hooks([At(1, fail)])
    with pytest.raises(InputError, match=f"training stopped: {tmp_path}: {os.strerror(number)}"):
        trainer.train()


def test_a_loss_that_is_not_finite_teaches_nothing(tmp_path):
    """Detectron2 ends training before the optimizer's step."""
    trainer = make(tmp_path)
    model = trainer.model

    def spoil(model, inputs, losses):
        return {k: v * (torch.nan if trainer.iter == 3 else 1) for k, v in losses.items()}

    model.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match="iteration=3"):
        trainer.train()
    assert all(p.isfinite().all() for p in model.parameters())
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make(tmp_path)
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    trainer._hooks.insert(0, At(3, lambda: parameter.data.fill_(torch.nan)))
    trainer._hooks[0].trainer = trainer
    with pytest.raises(UnreadableError, match=r"model_0000003.pth is not saved: .* NaN or inf"):
        trainer.train()
    assert checkpoints(tmp_path) == ["model_0000001.pth"]


def test_any_wrong_byte_of_an_archive_is_no_error(tmp_path):
    """In the directory at its end it may stand for another version, a key, or no text."""
    file = tmp_path / "model_0000001.pth"
    torch.save({"model": {"weight": torch.zeros(3)}}, file)
    (tmp_path / "last_checkpoint").write_text(file.name)
    content = file.read_bytes()
    for place in range(len(content) - 700, len(content)):
        for bits in (1, 8, 255):
            file.write_bytes(
                content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]
            )
            assert last_checkpoint(tmp_path) == file  # there is no other


@pytest.mark.parametrize("damage", ["cut", "absent", "turned"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    """By training and evaluation; never for one of an older run."""
    content = {"model": {"weight": torch.zeros(300)}}
    for iteration in (1, 3):
        torch.save(content, tmp_path / f"model_{iteration:07d}.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    file = tmp_path / "model_0000003.pth"
    assert last_checkpoint(tmp_path) == file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    if damage == "absent":
        file.unlink()
    assert last_checkpoint(tmp_path).name == "model_0000001.pth"
    assert "model_0000003.pth is damaged or not there: taking" in caplog.text
    (tmp_path / BEGUN).touch()
    os.utime(tmp_path / "model_0000001.pth", (1, 1))
    assert last_checkpoint(tmp_path).name == "model_0000003.pth"
