"""Checkpoints: whole or not there, the best and the last ones kept, and one note on all of them."""

import errno
import json
import os

import pytest
import torch
from detectron2.engine import HookBase
from short_training import loop, make

from resnest_d2.engine.hooks import build_writers
from resnest_d2.engine.loop import NonFiniteError
from resnest_d2.engine.saving import Record

pytestmark = pytest.mark.usefixtures("registered_digits")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def checkpoints(folder):
    return sorted(file.name for file in folder.glob("*.pth"))


def scores(trainer, values):
    """Evaluate to these figures, one after the other, in place of a model's."""
    values = iter(values)
    for hook in loop(trainer)._hooks:
        if type(hook).__name__ == "EvalHook":
            hook._func = lambda: {"bbox": {"AP": next(values)}}


EVALUATED = {"TEST.EVAL_PERIOD": "1", "DATASETS.TEST": "('digits_val',)", "SOLVER.MAX_ITER": "6"}
LAZY_EVALUATED = {
    "train.eval_period": "1",
    "dataloader.test.dataset.names": "digits_val",
    "train.max_iter": "6",
}


@pytest.mark.parametrize("lazy", [False, True])
def test_the_best_is_kept(tmp_path, lazy):
    trainer = make(tmp_path, lazy, keys=LAZY_EVALUATED if lazy else EVALUATED, keep_best="bbox/AP")
    scores(trainer, [1.0, 3.0, float("nan"), 2.0, 3.0, 1.0])
    trainer.train()
    note = results(tmp_path)
    assert note["best"] == {"file": "model_best.pth", "iteration": 1, "value": 3.0}
    assert [e["iteration"] for e in note["evaluations"]] == [0, 1, 3, 4, 5]
    assert note["last"] == (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["iteration"] == 1
    same = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    assert all(torch.equal(best["model"][k], v) for k, v in same["model"].items())


def test_patience_stops(tmp_path):
    trainer = make(tmp_path, keys=EVALUATED, keep_best="bbox/AP", patience=2)
    scores(trainer, [1.0, 3.0, 2.0, 3.0, 9.0])
    trainer.train()
    assert trainer.iter == 3
    assert results(tmp_path)["last"] == "model_final.pth"
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 3


def test_the_best_is_known_over_a_stop(tmp_path):
    """Also an evaluation behind the checkpoint that is resumed."""
    trainer = make(tmp_path, keys=EVALUATED, keep_best="bbox/AP")
    scores(trainer, [1.0, 5.0, 2.0, StopIteration])

    class Kill(HookBase):
        def before_step(self):
            if self.trainer.iter == 2:
                raise KeyboardInterrupt

    trainer.register_hooks([Kill()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = make(tmp_path, resume=True, keys=EVALUATED, keep_best="bbox/AP", patience=3)
    scores(resumed, [4.0, 4.5, 4.9, 9.0])
    resumed.train()
    note = results(tmp_path)
    assert resumed.iter == 4  # 4.0, 4.5 and 4.9 are no gain on 5.0
    assert note["best"] == {"file": "model_best.pth", "iteration": 1, "value": 5.0}


def test_the_best_outlives_a_run_that_does_not_look(tmp_path):
    trainer = make(tmp_path, keys=EVALUATED, keep_best="bbox/AP")
    scores(trainer, [1.0, 5.0, 2.0, 1.0, 1.0, 1.0])
    trainer.train()
    before = results(tmp_path)
    for number, options in ((8, {}), (9, {"keep_best": "bbox/AP"})):
        keys = {**EVALUATED, "SOLVER.MAX_ITER": str(number)}
        resumed = make(tmp_path, resume=True, keys=keys, **options)
        scores(resumed, [4.0] * 3)
        resumed.train()
        assert results(tmp_path)["best"] == before["best"]
        assert results(tmp_path)["metric"] == "bbox/AP"
        assert results(tmp_path)["evaluations"][:6] == before["evaluations"]


def test_a_best_that_was_not_written_is_none(tmp_path, monkeypatch, caplog):
    trainer = make(tmp_path, keys=EVALUATED, keep_best="bbox/AP", on_save_error="continue")
    scores(trainer, [3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(os, "fsync", FullDisk({1}))
    trainer.train()
    assert "model_best.pth: No space left on device; training goes on" in caplog.text
    assert results(tmp_path)["best"] == {"file": "model_best.pth", "iteration": 1, "value": 2.0}


def test_a_note_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, caplog):
    write, calls = Record.write, []

    def full(record):
        calls.append(len(record.evaluations))
        if calls.count(calls[-1]) == 1 and calls[-1] == 2:  # without a gain
            raise OSError(errno.ENOSPC, "No space left on device")
        write(record)

    monkeypatch.setattr(Record, "write", full)
    for way in ("continue", "stop"):
        calls.clear()
        trainer = make(tmp_path, keys=EVALUATED, keep_best="bbox/AP", on_save_error=way)
        scores(trainer, [3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        if way == "stop":
            with pytest.raises(OSError, match="No space left on device; the last whole"):
                trainer.train()
        else:
            trainer.train()
            assert "No space left on device; the last whole checkpoint is" in caplog.text
            assert [e["value"] for e in results(tmp_path)["evaluations"]] == [3, 2, 1, 1, 1, 1]


def test_a_metric_that_is_not_there_is_said(tmp_path, caplog):
    trainer = make(tmp_path, keys=EVALUATED, keep_best="bbox/APP")
    scores(trainer, [1.0] * 6)
    trainer.train()
    assert "--keep-best: there is no metric 'bbox/APP'; did you mean bbox/AP?" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


@pytest.mark.parametrize("lazy", [False, True])
def test_the_last_are_kept(tmp_path, lazy):
    keys = {"train.checkpointer.period" if lazy else "SOLVER.CHECKPOINT_PERIOD": "1"}
    make(tmp_path, lazy, keys=keys, keep_last=2).train()
    kept = ["model_0000002.pth", "model_0000003.pth", "model_final.pth"]
    assert checkpoints(tmp_path) == sorted(results(tmp_path)["checkpoints"]) == kept
    foreign = tmp_path / "model_0000000.pth"  # of another run: not ours to remove
    foreign.write_bytes(b"")
    more = "train.max_iter" if lazy else "SOLVER.MAX_ITER"
    make(tmp_path, lazy, resume=True, keys={**keys, more: "6"}, keep_last=2).train()
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
    message = r"cannot write .*model_0000003.pth: No space .*whole checkpoint is model_0000001.pth"
    with pytest.raises(OSError, match=message):
        make(tmp_path).train()
    assert checkpoints(tmp_path) == ["model_0000001.pth"]
    assert not list(tmp_path.glob(".*.part"))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    resumed = make(tmp_path, resume=True)
    assert resumed.start_iter == 2
    resumed.train()


def test_training_can_go_on_without(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(os, "fsync", FullDisk({1, 2}))
    keys = {"SOLVER.MAX_ITER": "6"}
    make(tmp_path, keys=keys, on_save_error="continue").train()
    assert checkpoints(tmp_path) == ["model_0000005.pth", "model_final.pth"]
    assert caplog.text.count("No space left on device; training goes on") == 1


def test_a_training_that_could_not_save_its_end_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", FullDisk({1, 2, 3, 4}))
    with pytest.raises(OSError, match=r"model_final.pth: No space left on device$"):
        make(tmp_path, on_save_error="continue").train()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make(tmp_path)

    class Spoil(HookBase):
        def after_backward(self):
            if self.trainer.iter == 3:
                next(p for p in trainer.model.parameters() if p.requires_grad).grad[:] = torch.nan

    trainer._trainer.register_hooks([Spoil()])
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1.0
    with pytest.raises(NonFiniteError, match=r"model_0000003.pth is not saved: .* has NaN or inf"):
        trainer.train()
    assert checkpoints(tmp_path) == ["model_0000001.pth"]


@pytest.mark.parametrize("damage", ["cut", "absent", "turned", "flag", "method"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    make(tmp_path).train()
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
    resumed = make(tmp_path, resume=True)
    assert resumed.start_iter == 2
    assert "model_final.pth is damaged or not there: taking" in caplog.text


@pytest.mark.parametrize("lazy", [False, True])
def test_metrics_have_each_iteration_once(tmp_path, lazy):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = {"train.max_iter" if lazy else "SOLVER.MAX_ITER": "6"}
    period = {"train.log_period": "1"} if lazy else {}
    make(tmp_path, lazy, keys=period).train()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")  # as if it had died later
    with (tmp_path / "metrics.json").open("a") as stream:
        stream.write('{"iteration": 5, "cut')
    make(tmp_path, lazy, resume=True, keys={**period, **more}).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    iterations = [line["iteration"] for line in lines]
    assert iterations == ([0, 1, 2, 3, 4, 5] if lazy else [5])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    steps = [event.step for event in events.Scalars("total_loss")]
    assert steps == iterations


def test_a_run_that_is_extended_keeps_the_metrics_of_its_end(tmp_path):
    from detectron2.utils.events import EventStorage
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end in ((0, 2), (2, 4), (2, 4)):  # extended, killed, and extended again
        writers = build_writers(str(tmp_path), start, end)
        with EventStorage(start) as storage:
            for iteration in range(start, end):
                storage.iter = iteration
                storage.put_scalars(total_loss=iteration)
                for writer in writers[1:]:
                    writer.write()
            storage.iter = end  # as behind the last iteration
            storage.put_scalar("bbox/AP", 10 * end, smoothing_hint=False)
            for writer in writers[1:]:
                writer.write()
                writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [0, 1, 2, 3]
    ends = [(line["iteration"], line["bbox/AP"]) for line in lines if "bbox/AP" in line]
    assert ends == [(1, 20), (4, 40)]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("bbox/AP")] == [4]
