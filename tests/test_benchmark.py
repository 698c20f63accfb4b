"""The benchmark's arithmetic, and that each section runs and writes what it measured."""

import json
import os
from functools import partial

import pytest
import torch
from helpers import randomize
from PIL import Image
from torch import nn

from benchmarks.__main__ import SECTIONS, main
from benchmarks.apart import Way, measure_apart
from benchmarks.peers import REFERENCE
from benchmarks.timing import Progress, Section, measure, speedup
from benchmarks.training import CHECKPOINTED, OURS, saved_bytes, training_backbone
from resnest_d2 import model_zoo
from resnest_d2.modeling.detector import build_detector


def test_ratios_are_of_runs_that_followed_each_other():
    assert speedup([1.0, 10.0, 2.0], [2.0, 40.0, 6.0]) == (2.5, 3.0, 3.5)
    assert speedup([2.0], [5.0]) == (2.5, 2.5, 2.5)


def test_competitors_alternate():
    calls = []
    found = measure({name: partial(calls.append, name) for name in "ab"}, rounds=3, warmup=1)
    assert calls == list("abababab")
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}


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
    assert kept[-1] == found
    assert found["a"]["times as fast"] == 1
    assert found["b"]["memory"] > 1 << 20

    interrupted = json.loads(json.dumps(found))
    interrupted["b"]["seconds"].pop()
    file.unlink()
    more = measure_apart(ways, 3, Progress(interrupted), "a", warmup=0)
    assert [line.split()[0] for line in file.read_text().splitlines()] == ["a", "b"] * 2
    assert more["a"]["seconds"][0] == found["a"]["seconds"][0]
    assert measure_apart({"a": ways["a"]}, 2, Progress(found), "a") == found  # nothing runs
    with pytest.raises(RuntimeError, match="the process of 'a' ended"):
        measure_apart({"a": Way(os._exit, (3,))}, 1, Progress(), "a")


def run(tmp_path, *arguments):
    """What sections wrote as JSON."""
    output = tmp_path / "report.json"
    assert main([*arguments, "--rounds", "1", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert {"torch", "detectron2", "hotcoco", "cpu", "date"} <= set(report.pop("environment"))
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

    for name, function in (("memory", whole), ("coco", in_parts)):
        monkeypatch.setitem(SECTIONS, name, Section(function, lambda found: [f"found {found}"]))
    output = tmp_path / "report.json"
    command = ["--sections", "memory", "coco", "--output", str(output)]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 130
    assert main([*command, "--resume"]) == 0
    assert calls == ["whole", "in parts", "in parts"]
    assert json.loads(output.read_text())["coco"] == {"first": "1 calls before", "second": 2}
    assert capsys.readouterr().out.count("found {'rounds': 7}") == 2
    for wrong in ([*command, "--depth", "101"], command[:3]):
        with pytest.raises(SystemExit):
            main([*wrong, "--resume"])
    errors = capsys.readouterr().err
    assert f"error: {output} was measured with depth 50, not 101\n" in errors
    assert "error: --resume needs the --output of the call that it goes on with\n" in errors


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
    image = torch.rand(2, 3, 64, 64)
    on_meta = saved_bytes(training_backbone(50).to("meta"), image.to("meta"))
    assert on_meta == saved_bytes(training_backbone(50), image)


@pytest.mark.slow
@pytest.mark.usefixtures("reference")
def test_backbones_training_memory_and_coco(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.training.MEMORY_DEPTHS", (50,))
    report = run(
        tmp_path,
        *("--sections", "backbones", "training", "memory", "coco", "--height", "64"),
        *("--width", "96", "--train-size", "64", "--images", "3"),
    )
    out = capsys.readouterr().out
    for line in ("| resnest_d2, optimised |", f"- {CHECKPOINTED}: ", "| 50 |"):
        assert line in out
    times = report["backbones"]["times"]
    assert times[REFERENCE]["times as fast"] == 1
    assert times["timm"]["its quartiles"] == [times["timm"]["times as fast"]] * 2
    assert report["backbones"]["matmul"] > 0
    assert report["training"]["times"][REFERENCE]["times as fast"] == 1
    (one,) = report["memory"]["bytes"].values()
    assert one[CHECKPOINTED] < 0.45 * one[OURS]
    assert set(report["coco"]["times"]) == {"pycocotools", "hotcoco"}


@pytest.mark.slow
def test_detectors_and_exported(tmp_path):
    """RetinaNet; and a checkpoint of drawn weights with what it is exported to, on one picture."""
    pytest.importorskip("onnxruntime")
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.MODEL.DEVICE = "cpu"
    model = build_detector(cfg)
    randomize(model)
    file = tmp_path / "model_final.pth"
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, file)
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "picture.png")
    report = run(
        tmp_path,
        *("--sections", "detectors", "exported", "--detectors", "retinanet_resnest50"),
        *("--height", "64", "--width", "96", "--export-model", str(file)),
        *("--export-images", str(tmp_path)),
    )
    times = report["detectors"]["retinanet_resnest50"]["times"]
    assert set(times) == {"resnest_d2", "resnest_d2, optimised"}
    found = report["exported"]
    assert set(found["ways"]) == {"eager", "optimised", "onnx", "pt2"}
    assert found["pictures"] == 1
    assert all(size > 1 << 20 for size in found["bytes"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "error: --device cuda: no GPU was found"),
        (["--rounds", "-2"], "error: argument --rounds: must be at least 1, got -2"),
        (["--batch", "1"], "error: argument --batch: must be at least 2, got 1"),
        (["--output", "/absent/x.json"], "error: cannot write /absent/x.json: there is no such"),
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
