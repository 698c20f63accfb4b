"""The benchmark's arithmetic, and that each section runs and writes what it measured."""

import json
import os
from functools import partial

import numpy as np
import pytest
import torch
from helpers import randomize
from PIL import Image
from torch import nn

from benchmarks.__main__ import SECTIONS, main
from benchmarks.apart import Way, measure_apart
from benchmarks.growth import fit_exponent
from benchmarks.peers import REFERENCE
from benchmarks.timing import Progress, Section, Times, environment, measure
from benchmarks.training import CHECKPOINTED, OURS, saved_bytes, training_backbone
from resnest_d2 import model_zoo
from resnest_d2.config import InputError
from resnest_d2.modeling.detector import build_detector


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


@pytest.mark.slow
def test_ways_alternate_each_in_its_own_process(tmp_path):
    """And go on after an interruption with the rounds that all ways had."""
    file = tmp_path / "calls.txt"
    # A call is a shell that writes the way's name and the process that started it.
    shells = {name: f"echo {name} $PPID >> '{file}'" for name in "ab"}
    ways = {name: Way(partial, (os.system, line)) for name, line in shells.items()}
    kept = []
    found = measure_apart(ways, 2, Progress(keep=kept.append), "a", warmup=0)
    names, processes = zip(*map(str.split, file.read_text().splitlines()), strict=True)
    assert names == ("a", "b", "a", "b")
    assert processes[:2] == processes[2:]
    assert len({*processes, str(os.getpid())}) == 3
    assert [len(one["a"]["seconds"]) for one in kept] == [1, 2]
    assert kept[-1] == found
    assert found["a"]["times as fast"] == 1
    assert found["b"]["memory"] > 1 << 20

    interrupted = json.loads(json.dumps(kept[-1]))
    interrupted["b"]["seconds"].pop()
    file.unlink()
    more = measure_apart(ways, 3, Progress(interrupted), "a", warmup=0)
    assert [line.split()[0] for line in file.read_text().splitlines()] == ["a", "b"] * 2
    assert more["a"]["seconds"][0] == found["a"]["seconds"][0]
    file.unlink()
    assert measure_apart(ways, 2, Progress(found), "a") == found
    assert not file.exists()


@pytest.mark.slow
def test_a_process_that_fails():
    with pytest.raises(InputError, match="--device must be cpu or cuda, got 'tpu'"):
        measure_apart({"a": Way(environment, ("tpu",))}, 1, Progress(), "a")
    with pytest.raises(RuntimeError, match="the process of 'a' ended"):
        measure_apart({"a": Way(os._exit, (3,))}, 1, Progress(), "a")


def run(tmp_path, *arguments):
    """What sections wrote as JSON."""
    output = tmp_path / "report.json"
    assert main([*arguments, "--rounds", "1", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    environment = report.pop("environment")
    assert environment["threads"] == torch.get_num_threads()
    assert {"torch", "detectron2", "hotcoco", "cpu", "date"} <= set(environment)
    assert report.pop("settings")["rounds"] == 1
    assert set(report.pop("done")) == set(report)
    return report


def test_an_interrupted_call_goes_on(tmp_path, monkeypatch, capsys):
    calls = []

    def whole(args, progress):
        calls.append("whole")
        return {"rounds": args.rounds}

    def in_parts(args, progress):
        first = progress.found.get("first") or f"{len(calls)} calls before"
        calls.append("in parts")
        progress.keep({"first": first})
        if len(calls) < 3:
            raise KeyboardInterrupt
        return {"first": first, "second": 2}

    for name, function in (("memory", whole), ("growth", in_parts)):
        monkeypatch.setitem(SECTIONS, name, Section(function, lambda found: [f"found {found}"]))
    output = tmp_path / "report.json"
    command = ["--sections", "memory", "growth", "--output", str(output)]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 130
    assert main([*command, "--resume"]) == 0
    assert calls == ["whole", "in parts", "in parts"]
    assert json.loads(output.read_text())["growth"] == {"first": "1 calls before", "second": 2}
    assert capsys.readouterr().out.count("found {'rounds': 7}") == 2
    for wrong in ([*command, "--depth", "101"], command[:3]):
        with pytest.raises(SystemExit):
            main([*wrong, "--resume"])
    errors = capsys.readouterr().err
    assert f"error: {output} was measured with depth 50, not 101\n" in errors
    assert "error: --resume needs the --output of the call that it goes on with\n" in errors


@pytest.mark.slow
@pytest.mark.usefixtures("reference")
def test_backbones_and_coco(tmp_path, capsys):
    report = run(
        tmp_path,
        *("--sections", "backbones", "coco", "--height", "64", "--width", "96"),
        *("--images", "3", "--detections", "5"),
    )
    out = capsys.readouterr().out
    assert "threads" in out
    assert "| resnest_d2, optimised |" in out
    assert set(report) == {"backbones", "coco"}
    backbones = report["backbones"]
    assert backbones["times"][REFERENCE]["times as fast"] == 1
    assert backbones["times"]["timm"]["warmup"] == 2
    assert backbones["matmul"] > 0
    assert 0 < backbones["difference"] < 1e-4
    metrics = {name: np.array(values) for name, values in report["coco"]["metrics"].items()}
    assert len(metrics["hotcoco"]) == 24
    assert np.abs(metrics["hotcoco"] - metrics["pycocotools"]).max() <= 1e-9
    times = report["coco"]["times"]["hotcoco"]
    assert times["quartiles"] == [times["median"]] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("reference")
def test_training_and_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.training.MEMORY_DEPTHS", (50,))
    report = run(tmp_path, "--sections", "training", "memory", "--train-size", "64")
    out = capsys.readouterr().out
    assert f"- {CHECKPOINTED}: " in out
    assert "| 50 |" in out
    saved = report["training"]["saved"]
    assert saved[OURS] == saved[REFERENCE]  # bit for bit the same network
    assert saved[CHECKPOINTED] < 0.45 * saved[OURS]
    sizes = report["memory"]["bytes"].values()
    assert all(one[CHECKPOINTED] < 0.45 * one[OURS] for one in sizes)


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
    assert saved_bytes(Two().to("meta"), x.to("meta")) == saved_bytes(Two(), x)
    backbone = training_backbone(50)
    image = torch.rand(2, 3, 64, 64)
    on_meta = saved_bytes(backbone.to("meta"), image.to("meta"))
    assert on_meta == saved_bytes(training_backbone(50), image)


@pytest.mark.slow
def test_detectors(tmp_path):
    found = run(
        tmp_path,
        *("--sections", "detectors", "--detectors", "retinanet_resnest50"),
        *("--height", "64", "--width", "96"),
    )["detectors"]["retinanet_resnest50"]
    assert set(found["times"]) == {"resnest_d2", "resnest_d2, optimised"}
    assert found["limit"] > 0


@pytest.mark.slow
def test_growth(tmp_path, monkeypatch):
    assert fit_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    for name, values in {"SIDES": (64, 96), "BATCHES": (2, 4), "DEPTHS": (50, 101)}.items():
        monkeypatch.setattr(f"benchmarks.growth.{name}", values)
    monkeypatch.setattr("benchmarks.growth.SIDE", 64)
    found = run(tmp_path, "--sections", "growth")["growth"]
    # But for the statistics of norms, all that is kept is there for each image and pixel.
    assert found["batch"]["exponents"]["bytes"] == pytest.approx(1, abs=0.03)
    assert found["area"]["exponents"]["bytes"] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_exported(tmp_path):
    """A checkpoint of drawn weights and what it is exported to, on one picture."""
    pytest.importorskip("onnxruntime")
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.MODEL.DEVICE = "cpu"
    model = build_detector(cfg)
    randomize(model)
    file = tmp_path / "model_final.pth"
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, file)
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "picture.png")
    found = run(
        tmp_path,
        *("--sections", "exported", "--export-model", str(file)),
        *("--export-images", str(tmp_path)),
    )["exported"]
    assert set(found["ways"]) == {"eager", "optimised", "onnx", "pt2"}
    assert found["pictures"] == 1
    assert all(size > 1 << 20 for size in found["bytes"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "error: --device cuda: no GPU was found"),
        (["--device", "tpu"], "error: --device must be cpu or cuda, got 'tpu'"),
        (["--images", "0"], "error: argument --images: must be at least 1, got 0"),
        (["--rounds", "-2"], "error: argument --rounds: must be at least 1, got -2"),
        (["--batch", "1"], "error: argument --batch: must be at least 2, got 1"),
        (["--height", "0"], "error: argument --height: must be at least 1, got 0"),
        (["--output", "/absent/x.json"], "error: cannot write /absent/x.json: there is no such"),
        (["--sections", "detectors", "--detectors", "x"], "error: no model 'x'"),
        (
            ["--sections", "exported", "--export-images", "absent"],
            "error: --export-images absent has no pictures",
        ),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.removeprefix("python -m benchmarks: ").startswith(message)
