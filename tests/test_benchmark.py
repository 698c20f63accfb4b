"""The benchmark's arithmetic, and that each section runs and writes what it measured."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from resnest_d2.benchmark.backbones import REFERENCE
from resnest_d2.benchmark.timing import Times, measure

ROOT = Path(__file__).parents[1]


def load_tool():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "tools/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_of_runs_that_followed_each_other():
    ours, theirs = Times((1.0, 10.0, 2.0)), Times((2.0, 40.0, 6.0))
    assert ours.median == 2.0
    assert ours.ratio_to(theirs) == (3.0, 2.5, 3.5)
    assert Times((2.0,)).ratio_to(Times((5.0,))) == (2.5, 2.5, 2.5)


def test_competitors_alternate():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = measure(runs, rounds=3, warmup=1)
    assert calls == list("abababab")
    assert {name: len(times.seconds) for name, times in found.items()} == {"a": 3, "b": 3}
    with pytest.raises(ValueError, match="rounds must be at least 1 and warm-up 0, got 0 and 1"):
        measure(runs, rounds=0)


def test_backbones_and_coco(tmp_path, capsys):
    output = tmp_path / "report.json"
    arguments = ["--rounds", "1", "--depth", "50", "--height", "64", "--width", "96"]
    arguments += ["--images", "3", "--detections", "5", "--output", str(output)]
    assert load_tool().main(arguments) == 0
    out = capsys.readouterr().out
    assert "threads" in out
    assert "| resnest_d2, optimised |" in out
    report = json.loads(output.read_text())
    assert set(report) == {"environment", "backbones", "coco"}
    backbones = report["backbones"]
    assert REFERENCE in backbones["seconds"]
    assert backbones["matmul"] > 0
    assert 0 < backbones["difference"] < 1e-4
    metrics = {name: np.array(values) for name, values in report["coco"]["metrics"].items()}
    assert len(metrics["hotcoco"]) == 24
    assert np.abs(metrics["hotcoco"] - metrics["pycocotools"]).max() <= 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "error: --device cuda: no GPU was found"),
        (["--device", "tpu"], "error: --device must be cpu or cuda, got 'tpu'"),
        (["--sections", "coco", "--images", "0"], "error: --images and --detections must be at"),
        (["--sections", "backbones", "--rounds", "0"], "error: rounds must be at least 1"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        load_tool().main(arguments)
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith(message)
