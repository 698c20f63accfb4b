"""The benchmark's arithmetic, and that each section runs and writes what it measured."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.amp import HEADS, batches, digits_config
from benchmarks.detectors import coco_like_sizes
from benchmarks.growth import fit_exponent
from benchmarks.peers import REFERENCE
from benchmarks.schedule import hours
from benchmarks.timing import Times, measure
from benchmarks.training import CHECKPOINTED, OURS, saved_bytes, training_backbone

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def load_tool():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks/__main__.py")
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


def run(tmp_path, *arguments):
    """What a section wrote as JSON."""
    output = tmp_path / "report.json"
    assert load_tool().main([*arguments, "--rounds", "1", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    environment = report.pop("environment")
    assert environment["threads"] == torch.get_num_threads()
    assert {"torch", "detectron2", "hotcoco", "cpu", "date"} <= set(environment)
    assert report.pop("settings")["rounds"] == 1
    return report


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
    reading = report["coco"]["times"]["read ground truth"]["hotcoco"]
    assert reading["quartiles"] == [reading["median"]] * 2
    whole = report["coco"]["whole"]
    assert whole["metrics"]["resnest_d2"] == pytest.approx(
        whole["metrics"]["Detectron2"], abs=1e-9, nan_ok=True
    )


@pytest.mark.usefixtures("reference")
def test_training_and_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.training.MEMORY_DEPTHS", (50,))
    report = run(tmp_path, "--sections", "training", "memory", "--train-size", "64")
    out = capsys.readouterr().out
    assert "checkpoints take" in out
    assert "| 50 |" in out
    saved = report["training"]["saved"]
    assert saved[OURS] == saved[REFERENCE]  # bit for bit the same network
    assert saved[CHECKPOINTED] < 0.45 * saved[OURS]
    assert all(sizes[CHECKPOINTED] < 0.45 * sizes[OURS] for sizes in report["memory"].values())


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


def test_sizes_are_all_different():
    sizes = coco_like_sizes(50, 480)
    assert len(set(sizes)) == 50
    assert all(side % 32 == 0 for size in sizes for side in size)
    assert {height > width for height, width in sizes} == {True, False}


def test_detectors(tmp_path):
    found = run(
        tmp_path,
        *("--sections", "detectors", "--detectors", "retinanet_resnest50"),
        *("--height", "64", "--width", "96"),
    )["detectors"]["retinanet_resnest50"]
    assert set(found) == {"resnest_d2", "resnest_d2, optimised"}


def test_mixed_precision(tmp_path, registered_digits):
    """With images of 128 pixels: at 64, P7 is computed from a map of one pixel.

    There PyTorch 2.14's weight gradient of a 3x3 convolution of stride 2 under bf16 autocast holds
    uninitialised values on CPUs with AVX512-BF16.
    """
    found = run(tmp_path, "--sections", "amp", "--heads", "retinanet", "--iterations", "1")
    assert found["amp"]["retinanet, bf16"]["finite"] is True


def test_every_kind_of_head_gets_what_it_learns_from(registered_digits):
    for name in HEADS:
        cfg = digits_config(name, "cpu")
        assert not name.endswith("v1") or not cfg.MODEL.RESNETS.DEFORM_MODULATED
        assert not name.endswith("v2") or cfg.MODEL.RESNETS.DEFORM_MODULATED
        (one, *_) = next(batches(cfg))
        assert one["instances"].has("gt_masks") == cfg.MODEL.MASK_ON
        assert one["instances"].has("gt_keypoints") == cfg.MODEL.KEYPOINT_ON
        assert one["sem_seg"].max() == 1


def test_loading(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.loading.IMAGES", 2)
    monkeypatch.setattr("benchmarks.loading.SECONDS", 0.1)
    found = run(tmp_path, "--sections", "loading", "--workers", "0")["loading"]
    assert found["images_a_second"]["0"] > 0
    assert {"decoding by Pillow", "resizing", "whole mapper, polygons"} <= set(found["times"])


def test_growth(tmp_path, monkeypatch):
    assert fit_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    for name, values in {"SIDES": (64, 96), "BATCHES": (2, 4), "DEPTHS": (50, 101)}.items():
        monkeypatch.setattr(f"benchmarks.growth.{name}", values)
    monkeypatch.setattr("benchmarks.growth.SIDE", 64)
    plot = tmp_path / "growth.png"
    found = run(tmp_path, "--sections", "growth", "--plot", str(plot))["growth"]
    with Image.open(plot) as image:
        assert image.width > 500
    # But for the statistics of norms, all that is kept is there for each image and pixel.
    assert found["batch"]["exponents"]["bytes"] == pytest.approx(1, abs=0.03)
    assert found["area"]["exponents"]["bytes"] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_endurance(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.endurance.PERIOD", 5)
    found = run(tmp_path, "--sections", "endurance", "--endurance", "10")["endurance"]
    first, second = found["seen"]
    assert first["files"] == second["files"]
    assert second["zombies"] == 0
    assert second["memory"] > 1 << 18


@pytest.mark.slow
def test_kills(tmp_path):
    """Both kinds of runs come to their end; whether the kill comes before it depends on the day."""
    few = ("--kill-runs", "1", "--kills", "1", "--kill-iterations", "15", "--kill-after", "1")
    found = run(tmp_path, "--sections", "kills", *few)["kills"]["runs"]
    assert [run["kills"] for run in found["not killed"]] == [0]
    (killed,) = found["killed"]
    assert killed["kills"] in (0, 1)
    assert 0 <= killed["bbox/AP"] <= 100


def test_schedule(tmp_path):
    # 90,000 iterations of 16 images at 0.5 s each: 12.5 hours on one GPU that takes 16 at once.
    assert hours(0.5, 16, 1) == pytest.approx(12.5)
    assert hours(0.5, 2, 8) == pytest.approx(12.5)
    found = run(
        tmp_path,
        *("--sections", "schedule", "--detectors", "mask_resnest14_digits"),
        *("--schedule-height", "64", "--schedule-width", "96"),
    )["schedule"]
    assert found["mask_resnest14_digits"]["2"]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "error: --device cuda: no GPU was found"),
        (["--device", "tpu"], "error: --device must be cpu or cuda, got 'tpu'"),
        (["--images", "0"], "error: --images must be at least 1, got 0"),
        (["--rounds", "-2"], "error: --rounds must be at least 1, got -2"),
        (["--batch", "1"], "error: --batch must be at least 2, got 1"),
        (["--sections", "sizes", "--height", "64"], "error: --height 64 is too small for 50 sizes"),
        (["--output", "/absent/x.json"], "error: [Errno 2] cannot write /absent/x.json: No"),
        (["--plot", "/"], "error: [Errno 21] cannot write /: it is a folder"),
        (["--height", "0"], "error: --height must be at least 1, got 0"),
        (["--workers", "1", "-1"], "error: --workers must be at least 0, got -1"),
        (["--schedule-batches", "2", "0"], "error: --schedule-batches must be at least 1, got 0"),
        (["--sections", "detectors", "--detectors", "x"], "error: no model 'x'"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        load_tool().main(arguments)
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith(message)
