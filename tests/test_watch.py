"""Lines on the terminal, progress bar and curves, which show a training while it runs."""

import io
import json
import logging
import sys
from types import SimpleNamespace

import pytest
from detectron2.engine import TrainerBase
from detectron2.utils.events import EventStorage
from matplotlib.figure import Figure
from PIL import Image

from resnest_d2.config import InputError
from resnest_d2.engine.hooks import DrawCurves
from resnest_d2.engine.terminal import SECONDS, Announce, ProgressBar, Short


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Loop(TrainerBase):
    def run_step(self) -> None:
        self.storage.put_scalar("total_loss", 4.0 - self.iter)
        if self.iter == 1:
            logging.getLogger("detectron2.words").info("something is told")


@pytest.mark.parametrize(
    ("stderr", "show", "has_bar"),
    [(Terminal, None, True), (io.StringIO, None, False), (Terminal, False, False)],
)
def test_where_the_bar_is(stderr, show, has_bar, monkeypatch, caplog):
    out, err = io.StringIO(), stderr()  # `train > file`
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    handlers = [logging.StreamHandler(out), logging.StreamHandler(err)]
    monkeypatch.setattr(logging.getLogger("detectron2"), "handlers", handlers)
    caplog.set_level(logging.INFO, "detectron2")
    trainer = Loop()
    trainer.register_hooks([ProgressBar(show)])
    trainer.train(1, 4)
    assert ("4/4" in err.getvalue()) == has_bar
    assert ("loss=2.000" in err.getvalue()) == has_bar  # the median of 3, 2 and 1
    assert out.getvalue().count("something is told") == 1
    lines = [line.split("\r")[-1] for line in err.getvalue().splitlines()]
    assert lines.count("something is told") == 1  # above the bar, on a line of its own
    assert [handler.filters for handler in handlers] == [[], []]


@pytest.mark.parametrize(
    ("name", "level", "shown"),
    [
        ("detectron2.data.common", logging.INFO, ()),
        ("detectron2.data.common", logging.WARNING, ("train", "evaluate")),
        ("detectron2.evaluation.testing", logging.INFO, ()),  # the CSV
        ("detectron2.evaluation.panoptic_evaluation", logging.INFO, ("evaluate",)),
        ("resnest_d2.evaluation.coco", logging.INFO, ("evaluate",)),
        ("resnest_d2.weights.loading", logging.INFO, ("train", "evaluate")),
        ("resnest_d2.engine.checkpoint", logging.DEBUG, ()),
    ],
)
def test_what_the_terminal_shows(name, level, shown):
    """Errors end the command in one line."""
    record = logging.LogRecord(name, level, "", 0, "text", (), None)
    filters = {"train": Short(False), "evaluate": Short(True)}
    assert tuple(kind for kind, one in filters.items() if one.filter(record)) == shown
    record.exc_info = (InputError, InputError("wrong"), None)
    assert not filters["train"].filter(record)


def test_progress_is_said_now_and_then(monkeypatch):
    now, record = [0.0], logging.LogRecord("detectron2.utils.events", 20, "", 0, "iter", (), None)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    short, said = Short(False), []
    for second in range(0, 4 * SECONDS, 10):
        now[0] = second
        if short.filter(record):
            said.append(second)
    assert said == [SECONDS, 2 * SECONDS, 3 * SECONDS]
    monkeypatch.setattr(sys, "stderr", Terminal())  # which has a bar
    now[0] = 9 * SECONDS
    assert not short.filter(record)


@pytest.mark.parametrize(
    ("metrics", "best", "said"),
    [
        ({"bbox/AP": 21.84, "bbox/AP50": 60, "segm/AP": 20.46}, 2, "box 21.8  mask 20.5  best"),
        ({"bbox/AP": 21.84, "bbox/AP-nine": 60, "segm/AP": float("nan")}, 1, "box 21.8  mask nan"),
        ({"a/bbox/AP": 1, "b/bbox/AP": 2}, 1, "a box 1.0  b box 2.0"),
        ({"sem_seg/mIoU": 70.26, "panoptic_seg/PQ": 40.1}, 1, "mIoU 70.3  PQ 40.1"),
        ({"keypoints/AP": 5, "bbox_TTA/AP": 6}, 1, "keypoints 5.0  box TTA 6.0"),
    ],
)
def test_an_evaluation_is_one_line(metrics, best, said, caplog):
    caplog.set_level(logging.INFO, "resnest_d2")
    hook = Announce(3, SimpleNamespace(best_iter=best))
    with EventStorage(0) as storage:
        storage.put_scalar("bbox/AP", 99.0)  # an older evaluation
        hook.trainer = SimpleNamespace(iter=1, max_iter=9, storage=storage)
        hook.after_step()
        assert caplog.messages == []
        storage.iter = hook.trainer.iter = 2
        for name, value in metrics.items():
            storage.put_scalar(name, value)
        hook.after_step()
        hook.after_train()  # training was stopped
    assert caplog.messages == [f"iter 3  {said}"]


def test_curves_show_losses_and_ap_of_all_runs(monkeypatch, tmp_path, caplog):
    """What a resumed run did again counts once."""
    figures, save = [], Figure.savefig

    def note(self, *args, **kwargs):
        lines = [line for axes in self.axes for line in axes.lines]
        figures.append({line.get_label(): tuple(map(list, line.get_data())) for line in lines})
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", note)
    lines = [
        {"iteration": 0, "total_loss": 3.0, "loss_cls": 2.0, "lr": 0.1, "time": 9.0},
        {"iteration": 1, "total_loss": 9.0, "loss_cls": 8.0, "bbox/AP": 1.5, "x/bbox/AP50": 2.0},
        {"iteration": 1, "total_loss": 2.5, "loss_cls": 1.0, "lr": 0.2, "rank": "x"},
    ]
    file = tmp_path / "metrics.json"
    # The last line is cut off, where a machine died.
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 59, "cut')
    hook = DrawCurves(2, tmp_path)
    hook.trainer = SimpleNamespace(iter=3, max_iter=9)
    hook.after_step()
    assert figures == [
        {
            "total_loss": ([0, 1], [3.0, 2.5]),
            "loss_cls": ([0, 1], [2.0, 1.0]),
            "bbox/AP": ([1], [1.5]),
            "x/bbox/AP50": ([1], [2.0]),
        }
    ]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 600
    for iteration in (4, 8):  # no evaluation; the last one comes behind the training
        hook.trainer.iter = iteration
        hook.after_step()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    hook.after_train()  # without Matplotlib
    assert len(figures) == 1
    monkeypatch.undo()
    (tmp_path / "curves.png").unlink()
    hook.after_train()
    assert (tmp_path / "curves.png").is_file()
    (tmp_path / "curves.png").unlink()
    (tmp_path / "curves.png").mkdir()
    hook.after_train()  # training goes on
    assert "curves.png" in caplog.text
