"""The benchmark's arithmetic, and that each section runs and writes what it measured."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.peers import REFERENCE
from benchmarks.timing import measure, speedup
from benchmarks.training import CHECKPOINTED, OURS, saved_bytes, training_backbone


def test_ratios_are_of_runs_that_followed_each_other():
    assert speedup([1.0, 10.0, 2.0], [2.0, 40.0, 6.0]) == (2.5, 3.0, 3.5)
    assert speedup([2.0], [5.0]) == (2.5, 2.5, 2.5)


def test_competitors_alternate():
    calls = []
    found = measure({name: partial(calls.append, name) for name in "ab"}, rounds=3, warmup=1)
    assert calls == list("abababab")
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}


def test_bytes_that_are_kept():
    """Of two linear layers: each one's input, once, as the arithmetic says; "meta" counts alike."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x):
            return {"out": self.layers(x)}

    x = torch.rand(3, 4)
    assert saved_bytes(Two(), x) == 4 * (3 * 4 + 3 * 8)  # ReLU keeps its output, the next's input
    image = torch.rand(2, 3, 64, 64)
    on_meta = saved_bytes(training_backbone(50).to("meta"), image.to("meta"))
    assert on_meta == saved_bytes(training_backbone(50), image)


@pytest.mark.slow
@pytest.mark.usefixtures("reference")
def test_every_section(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.training.MEMORY_DEPTHS", (50,))
    output = tmp_path / "report.json"
    arguments = [
        *("--rounds", "1", "--output", str(output), "--height", "64", "--width", "96"),
        *("--train-size", "64", "--images", "3", "--detectors", "retinanet_resnest50"),
    ]
    assert main(arguments) == 0
    report = json.loads(output.read_text())
    assert {"torch", "detectron2", "hotcoco", "cpu", "date"} <= set(report["environment"])
    assert report["settings"]["rounds"] == 1
    out = capsys.readouterr().out
    for line in ("| resnest_d2, optimised |", f"- {CHECKPOINTED}: ", "| 50 |"):
        assert line in out
    times = report["backbones"]["times"]
    assert times[REFERENCE]["times as fast"] == 1
    assert times["timm"]["its quartiles"] == [times["timm"]["times as fast"]] * 2
    assert report["backbones"]["limit"] > 0
    assert report["training"]["times"][REFERENCE]["times as fast"] == 1
    (one,) = report["memory"]["bytes"].values()
    assert one[CHECKPOINTED] < 0.45 * one[OURS]
    assert set(report["coco"]["times"]) == {"pycocotools", "hotcoco"}
    times = report["detectors"]["retinanet_resnest50"]["times"]
    assert set(times) == {"resnest_d2", "resnest_d2, optimised"}


def test_an_output_that_cannot_be_written(capsys):
    """It is refused before anything is measured."""
    with pytest.raises(SystemExit) as stopped:
        main(["--output", "/absent/x.json"])
    assert stopped.value.code == 2
    assert "error: cannot write /absent/x.json: there is no such" in capsys.readouterr().err
