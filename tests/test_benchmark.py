"""The benchmark's arithmetic, and that each section runs and writes what it measured."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.claim import compare, interval
from benchmarks.peers import REFERENCE
from benchmarks.runtimes import ALONE
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


def test_the_interval_of_paired_differences():
    """Of 1, 2, 3: the mean 2, a deviation of 1, and Student's 4.303 of two degrees of freedom."""
    assert interval([1, 2, 3]) == pytest.approx((2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), 1e-3)
    assert interval([1.5]) == (1.5, -math.inf, math.inf)


def test_runs_of_the_claim_are_not_repeated(monkeypatch, tmp_path):
    """Differences are of runs with the same seed."""
    trained = []

    def train(data, radix, seed, output):
        trained.append((data, radix, seed))
        values = {"box": 50 + seed + radix, "mask": 40 + seed * (radix == 2)}
        return {"data": data, "radix": radix, "seed": seed, "iterations": 9, **values}

    monkeypatch.setattr("benchmarks.claim.train", train)
    arguments = [
        "--sections",
        "claim",
        "--rounds",
        "1",
        "--claim-runs",
        str(tmp_path / "runs.json"),
    ]
    for seeds, number in ((["1"], 4), (["1", "2"], 8), (["1", "2"], 8)):
        assert main([*arguments, "--claim-seeds", *seeds]) == 0
        assert len(trained) == len(set(trained)) == number
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert compare(runs, "digits", "box", 4) == ([55, 56], "+4.0 (+4.0 to +4.0)")
    assert compare(runs, "digits", "mask", 2) == ([41, 42], "+1.5 (-4.9 to +7.9)")
    assert compare(runs, "digits", "box", 0) == ([51, 52], "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["backbone", "mask_resnest14_digits"])
def test_ways_to_run(tmp_path, capsys, name):
    """Each in a process of its own, in two series."""
    ways = ["optimised", "onnxruntime", "OpenVINO f32", ALONE]
    arguments = ["--sections", "runtimes", "--models", name, "--height", "64", "--width", "96"]
    file = tmp_path / "found.json"
    assert main([*arguments, "--rounds", "2", "--ways", *ways, "--output", str(file)]) == 0
    found = json.loads(file.read_text())["runtimes"][name]
    assert {way: len(one["seconds"]) for way, one in found["times"].items()} == dict.fromkeys(
        ways, 4
    )
    assert set(found["load"]) == set(ways)
    assert "times as fast as optimised" in capsys.readouterr().out


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
