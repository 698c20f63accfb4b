"""Checkpoints: whole or not there, the best and the last ones kept."""

import errno
import json
import os

import pytest
import torch
from detectron2.engine import HookBase, hooks
from short_training import make, short_config

from resnest_d2.config import InputError
from resnest_d2.engine import TrainingOptions
from resnest_d2.engine.checkpoint import last_checkpoint
from resnest_d2.weights import UnreadableError

pytestmark = pytest.mark.usefixtures("registered_digits")

EVALUATED = {"TEST.EVAL_PERIOD": "1", "DATASETS.TEST": "('digits_val',)", "SOLVER.MAX_ITER": "6"}


def checkpoints(folder):
    return sorted(file.name for file in folder.glob("*.pth"))


def best(folder):
    return json.loads((folder / "model_best.json").read_text())


def scored(folder, values, **options):
    """A trainer that evaluates to these figures, one after the other, in place of a model's."""
    trainer = make(folder, keys={**EVALUATED, **options.pop("keys", {})}, **options)
    values = iter(values)
    for hook in trainer._hooks:
        if isinstance(hook, hooks.EvalHook):
            hook._func = lambda: {"bbox": {"AP": next(values)}}
    return trainer


class Kill(HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def test_the_best_is_kept(tmp_path):
    scored(tmp_path, [1.0, 3.0, float("nan"), 2.0, 3.0, 1.0], keep_best="bbox/AP").train()
    assert best(tmp_path) == {"metric": "bbox/AP", "value": 3.0, "iteration": 1}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    kept = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert kept["iteration"] == 1
    same = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    assert all(torch.equal(kept["model"][k], v) for k, v in same["model"].items())


def test_patience_stops(tmp_path):
    """In the iteration behind the second evaluation without a gain."""
    trainer = scored(tmp_path, [1.0, 3.0, 2.0, 3.0, 9.0], keep_best="bbox/AP", patience=2)
    trainer.train()
    assert trainer.iter == 4
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 4


def test_the_best_is_known_over_a_stop(tmp_path):
    """Also an evaluation behind the checkpoint that is resumed; another run begins anew."""
    trainer = scored(tmp_path, [1.0, 5.0, 2.0], keep_best="bbox/AP")
    trainer.register_hooks([Kill(2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    scored(tmp_path, [4.0, 4.5, 4.9, 4.9], keep_best="bbox/AP", resume=True).train()
    assert best(tmp_path) == {"metric": "bbox/AP", "value": 5.0, "iteration": 1}
    scored(tmp_path, [2.0] * 6, keep_best="bbox/AP").train()
    assert best(tmp_path)["value"] == 2.0


@pytest.mark.parametrize(
    ("metric", "names", "keys", "message"),
    [
        ("bbox/AP", "('digits_val',)", (), None),
        ("segm/AP50", "('digits_val',)", (), None),
        ("bbox/AP-seven", "('digits_val',)", (), None),
        ("digits_val/bbox/AP", "('digits_val', 'digits_train')", (), None),
        ("bbox/AP", "('digits_val', 'digits_train')", (), "called digits_val/TASK/METRIC"),
        ("digits_val/bbox/AP", "('digits_val',)", (), "a metric is called TASK/METRIC"),
        ("x/bbox/AP", "('digits_val', 'digits_train')", (), "called digits_val/TASK/METRIC"),
        ("AP", "('digits_val',)", (), "such as bbox/AP; tasks are bbox, segm"),
        ("box/AP", "('digits_val',)", (), "such as bbox/AP; tasks are bbox, segm"),
        ("bbox/APP", "('digits_val',)", (), "task bbox has no metric 'APP'; did you mean AP"),
        ("bbox/AP", "()", (), "needs data to evaluate on, and DATASETS.TEST is empty"),
        ("segm/AP", "('digits_val',)", ("MODEL.MASK_ON", "False"), "MODEL.MASK_ON is False"),
        ("keypoints/AP", "('digits_val',)", (), "MODEL.KEYPOINT_ON is False"),
        ("sem_seg/mIoU", "('digits_val',)", (), "'digits_val' has the tasks bbox, segm, keypo"),
        ("panoptic_seg/PQ", "('digits_val',)", (), "has the tasks bbox, segm, keypoints alone"),
    ],
)
def test_metrics_that_will_not_be_there_are_refused_at_the_start(
    tmp_path, metric, names, keys, message
):
    pairs = dict(zip(keys[::2], keys[1::2], strict=True))
    cfg = short_config(tmp_path, {"DATASETS.TEST": names, **pairs})
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
        ({"patience": 1, "keep_best": "bbox/AP"}, "--patience needs evaluations during training"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    cfg = short_config(tmp_path, {"DATASETS.TEST": "('digits_val',)"})
    with pytest.raises(InputError, match=message):
        TrainingOptions(**options).check(cfg)


def test_the_last_are_kept(tmp_path):
    """Also over a resume; what is older is not touched."""
    keys = {"SOLVER.CHECKPOINT_PERIOD": "1"}
    older = tmp_path / "model_0000000.pth"
    make(tmp_path, keys=keys, keep_last=2).train()
    assert checkpoints(tmp_path) == ["model_0000002.pth", "model_0000003.pth", "model_final.pth"]
    older.write_bytes(b"")
    make(tmp_path, resume=True, keys={**keys, "SOLVER.MAX_ITER": "6"}, keep_last=2).train()
    kept = ["model_0000000.pth", "model_0000004.pth", "model_0000005.pth", "model_final.pth"]
    assert checkpoints(tmp_path) == kept


class FullDisk:
    """``os.fsync`` on a disk that is full for some of its calls."""

    def __init__(self, bad):
        self.calls, self.bad, self.real = 0, bad, os.fsync

    def __call__(self, descriptor):
        if os.fstat(descriptor).st_size > 1 << 20:  # checkpoints only
            self.calls += 1
            if self.calls in self.bad:
                raise OSError(errno.ENOSPC, "No space left on device")
        self.real(descriptor)


def test_a_full_disk_stops_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", FullDisk({2}))
    with pytest.raises(InputError, match=r"cannot write .*model_0000003.pth: No space left"):
        make(tmp_path).train()
    assert checkpoints(tmp_path) == ["model_0000001.pth"]
    assert not list(tmp_path.glob(".*.part"))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    resumed = make(tmp_path, resume=True)
    assert resumed.start_iter == 2
    resumed.train()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_teaches_nothing(tmp_path, value):
    """Detectron2 ends training before the optimizer's step."""
    trainer = make(tmp_path, keys={"SOLVER.MAX_ITER": "6"})
    model = trainer.model

    def spoil(model, inputs, losses):
        return {k: v * (value if trainer.iter == 3 else 1) for k, v in losses.items()}

    model.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match="iteration=3"):
        trainer.train()
    assert all(p.isfinite().all() for p in model.parameters())
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make(tmp_path)

    class Spoil(HookBase):
        def after_backward(self):
            if self.trainer.iter == 3:
                next(p for p in trainer.model.parameters() if p.requires_grad).grad[:] = torch.nan

    trainer._trainer.register_hooks([Spoil()])
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1.0
    with pytest.raises(UnreadableError, match=r"model_0000003.pth is not saved: .* NaN or inf"):
        trainer.train()
    assert checkpoints(tmp_path) == ["model_0000001.pth"]


@pytest.mark.parametrize("damage", ["cut", "absent", "turned", "flag", "method"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    content = {"model": {"weight": torch.zeros(300)}}
    for iteration in (1, 3):
        torch.save(content, tmp_path / f"model_{iteration:07d}.pth")
    torch.save(content, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert last_checkpoint(tmp_path).name == "model_final.pth"
    for name in ("model_final.pth", "model_0000003.pth"):
        file = tmp_path / name
        content = bytearray(file.read_bytes())
        if damage == "cut":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "absent":
            file.unlink()
        else:
            table = content.index(b"PK\x01\x02")
            at = {"flag": table + 8, "method": table + 10}.get(damage, len(content) // 2)
            content[at] ^= 1 if at > table else 255
            file.write_bytes(content)
    assert last_checkpoint(tmp_path).name == "model_0000001.pth"
    assert "model_final.pth is damaged or not there: taking" in caplog.text
