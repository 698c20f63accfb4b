"""Progress bar and curves, which show a training while it runs."""

import contextlib
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import termios
from types import SimpleNamespace

import numpy as np
import pytest
from commands import ROOT, run_tool
from detectron2.engine import TrainerBase, hooks
from detectron2.utils.events import CommonMetricPrinter, EventStorage
from matplotlib.figure import Figure
from PIL import Image
from short_training import options

from resnest_d2.engine.hooks import DrawCurves, ProgressBar, plot_curves

SHORT = (
    *("--config-file", ROOT / "configs/mask_resnest14_digits.yaml"),
    *options({"TEST.EVAL_PERIOD": "2", "DATASETS.TEST": "('digits_val',)"}),
)


def screen(text: str) -> list[str]:
    """What a terminal shows: carriage returns go over what a line had, colours are left out."""
    lines = []
    for line in re.sub(r"\x1b\[\d*m", "", text).replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def run_in_terminal(*command: object, columns: int, **environment: str) -> str:
    """What a command writes to a terminal that is its standard output and error."""
    main, end = pty.openpty()
    termios.tcsetwinsize(end, (24, columns))
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words, stdin=end, stdout=end, stderr=end, env={**os.environ, **environment}
    )
    os.close(end)
    written = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(main, 1 << 16):
            written += part
    os.close(main)
    assert process.wait() == 0, written.decode()
    return written.decode()


@pytest.mark.parametrize("columns", [100, pytest.param(0, marks=pytest.mark.slow)])
def test_train_in_a_terminal_shows_a_bar_and_every_line_once(columns, tiny_digits, tmp_path):
    written = run_in_terminal(
        *(sys.executable, ROOT / "tools/train_net.py", *SHORT, "OUTPUT_DIR", tmp_path),
        DETECTRON2_DATASETS=str(tiny_digits),
        OMP_NUM_THREADS="1",
        columns=columns,
    )
    assert re.search(r"train: +25%.* 1/4 \[\d\d:\d\d<\d\d:\d\d, .*loss=\d+\.\d", written)
    shown, log = screen(written), (tmp_path / "log.txt").read_text()
    (bar,) = (line for line in shown if "train:" in line)
    assert re.match(r"train: 100%.* 4/4 \[\d\d:\d\d<00:00, .*loss=\d+\.\d", bar)
    assert "iter: 3" in log
    assert not [line for line in shown if "iter: 3" in line]
    assert "\r" not in log
    assert "train: " not in log
    for message in ("Overall training speed", "Start inference on 3 batches"):
        lines = [line for line in shown if message in line]
        assert len(lines) == log.count(message) > 0
        assert all(line.startswith("[") for line in lines), lines
    assert Image.open(tmp_path / "curves.png").width > 600


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Loop(TrainerBase):
    def run_step(self) -> None:
        self.storage.put_scalar("total_loss", 4.0 - self.iter)
        if self.iter == 1:
            logging.getLogger("detectron2.words").info("something is told")


@pytest.mark.parametrize(
    ("stdout", "stderr", "show", "has_bar", "has_lines"),
    [
        (Terminal, Terminal, None, True, False),
        (io.StringIO, Terminal, None, True, True),  # `train > file`: the file keeps its lines
        (Terminal, io.StringIO, None, False, True),
        (io.StringIO, io.StringIO, None, False, True),
        (Terminal, Terminal, False, False, True),
        (io.StringIO, io.StringIO, True, True, False),
    ],
)
def test_where_the_bar_is_and_where_the_lines_are(
    stdout, stderr, show, has_bar, has_lines, monkeypatch, caplog
):
    out, err, file = stdout(), stderr(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    handlers = [logging.StreamHandler(out), logging.StreamHandler(file)]
    monkeypatch.setattr(logging.getLogger("detectron2"), "handlers", handlers)
    caplog.set_level(logging.INFO, "detectron2")
    trainer = Loop()
    trainer.register_hooks([ProgressBar(show), hooks.PeriodicWriter([CommonMetricPrinter(4)], 1)])
    trainer.train(1, 4)
    assert ("4/4" in err.getvalue()) == has_bar
    assert ("loss=2.000" in err.getvalue()) == has_bar  # the median of 3, 2 and 1
    assert out.getvalue().count("iter: ") == (3 if has_lines else 0)
    assert file.getvalue().count("iter: ") == 3
    assert out.getvalue().count("something is told") == 1
    assert [handler.filters for handler in handlers] == [[], []]


def test_the_bar_closes_where_training_fails(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    trainer = Loop()
    trainer.register_hooks([ProgressBar()])
    trainer.run_step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train(0, 4)
    assert sys.stderr.getvalue().endswith("\n")


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved: of each the lines by their labels."""
    saved = []
    original = Figure.savefig

    def save(self, *args, **kwargs):
        lines = [line for axes in self.axes for line in axes.lines]
        saved.append({line.get_label(): tuple(map(list, line.get_data())) for line in lines})
        original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def curves_at(folder, iteration=3, **latest):
    """The hook, at an iteration whose values are not in the file yet."""
    storage = EventStorage(iteration)
    storage.put_scalars(**latest, smoothing_hint=False)
    hook = DrawCurves(2, folder)
    hook.trainer = SimpleNamespace(iter=iteration, max_iter=9, storage=storage)
    return hook


def test_curves_show_losses_rate_and_ap_of_all_runs(figures, tmp_path):
    """What a resumed run did again counts once."""
    lines = [
        {"iteration": 0, "total_loss": 3.0, "loss_cls": 2.0, "lr": 0.1, "time": 9.0},
        {"iteration": 1, "total_loss": 9.0, "loss_cls": 8.0, "bbox/AP": 1.5, "x/bbox/AP50": 2.0},
        {"iteration": 1, "total_loss": 2.5, "loss_cls": 1.0, "lr": 0.2, "rank": "x"},
    ]
    file = tmp_path / "metrics.json"
    # The last line is cut off, where a machine died.
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 59, "cut')
    hook = curves_at(tmp_path, total_loss=2.0, **{"bbox/AP": 5.5, "sem_seg/mIoU": 7.0})
    hook.after_step()
    assert figures == [
        {
            "total_loss": ([0, 1, 3], [3.0, 2.5, 2.0]),
            "loss_cls": ([0, 1], [2.0, 1.0]),
            "lr": ([0, 1], [0.1, 0.2]),
            "bbox/AP": ([1, 3], [1.5, 5.5]),
            "x/bbox/AP50": ([1], [2.0]),
            "sem_seg/mIoU": ([3], [7.0]),
        }
    ]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 600
        assert np.asarray(picture.convert("L")).std() > 10
    for iteration in (4, 8):  # no evaluation; the last one comes behind the training
        hook.trainer.iter = iteration
        hook.after_step()
    assert len(figures) == 1
    hook.after_train()
    assert len(figures) == 2


@pytest.mark.parametrize(
    "points", [{"total_loss": [(1, 0.0)]}, {"bbox/AP": [(1, float("nan"))]}, {"time": [(1, 2.0)]}]
)
def test_curves_of_odd_values(points, tmp_path):
    plot_curves(points, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 600


def test_without_matplotlib_a_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, "resnest_d2"):
        curves_at(tmp_path, total_loss=2.0).after_train()
    assert caplog.messages == ["curves.png is not drawn: pip install 'resnest_d2[draw]'"]


def test_a_drawing_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "curves.png").write_text("an older one")

    def full(self, file, **_):
        file.write_text("a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    curves_at(tmp_path, total_loss=2.0).after_train()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "curves.png: No space left on device" in record.getMessage()
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]
    assert (tmp_path / "curves.png").read_text() == "an older one"


@pytest.mark.slow
def test_of_several_processes_one_shows_the_bar(tiny_digits, tmp_path):
    result = run_tool(
        *("train_net.py", "--num-processes", 2, "--progress", *SHORT),
        *("OUTPUT_DIR", tmp_path, "SOLVER.IMS_PER_BATCH", 4),
        DETECTRON2_DATASETS=str(tiny_digits),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(" 0/4 [00:00") == 1
    assert "train: 100%" in result.stderr
    assert Image.open(tmp_path / "curves.png").width > 600
