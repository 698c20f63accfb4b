"""The tools that write weights: conversion and publication."""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import run_python
from helpers import randomize
from safetensors import safe_open

from resnest_d2 import model_zoo
from resnest_d2.commands.publish_checkpoint import read_results
from resnest_d2.engine import load_config
from resnest_d2.engine.checkpoint import TrainingCheckpointer
from resnest_d2.modeling.detector import build_detector
from resnest_d2.modeling.resnest import make_resnest
from resnest_d2.weights import (
    UntrainedParametersError,
    convert,
    load_detector,
    load_weights,
    read_checkpoint,
)

ROOT = Path(__file__).parents[1]
CLASSES = {
    "thing_classes": [str(digit) for digit in range(10)],
    "thing_dataset_id_to_contiguous_id": {digit + 1: digit for digit in range(10)},
}


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


convert_weights, publish_checkpoint = map(load_tool, ("convert_weights", "publish_checkpoint"))


def fails(tool, capsys, *arguments):
    """The one line that it ends with."""
    with pytest.raises(SystemExit) as error:
        tool([str(a) for a in arguments])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


@pytest.fixture
def source(imagenet, tmp_path):
    """A file as it was published."""
    torch.save({"state_dict": imagenet}, tmp_path / "gluon_resnest14-9c8fe254.pth")
    return tmp_path / "gluon_resnest14-9c8fe254.pth"


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_published_file(source, tmp_path, capsys, ending):
    target = tmp_path / f"converted{ending}"
    assert convert_weights([str(source), str(target)]) == 0
    out = capsys.readouterr().out
    for part in (
        "names of the ImageNet files and timm, under 'state_dict'",
        "holds    ResNeSt-14, a backbone: 152 tensors, 10.6",
        "layer1.0.conv1.weight -> res2.0.conv1.weight",
        "       2 linear   fc.weight -> linear.weight",
        f"wrote    {target} (SHA-256 {hashlib.sha256(target.read_bytes()).hexdigest()})",
    ):
        assert part in out
    expected = convert(torch.load(source, weights_only=True))
    classifier = make_resnest(14, num_classes=1000)
    assert load_weights(classifier, str(target)) == []
    assert all(torch.equal(v, expected[k]) for k, v in classifier.state_dict().items())
    cfg = model_zoo.get_config("mask_resnest14")
    cfg.MODEL.DEVICE = "cpu"
    detector = build_detector(cfg)
    with pytest.raises(UntrainedParametersError) as error:
        load_weights(detector, str(target))
    assert "bottom_up" not in str(error.value)
    # By the source's name it is known which images it is for.
    assert read_checkpoint(target)["input"]["mean"] == [123.675, 116.28, 103.53]

    again = tmp_path / "again.pth"
    assert convert_weights([str(target), str(again)]) == 0
    assert "       2 linear\n" in capsys.readouterr().out
    assert load_weights(make_resnest(14, num_classes=1000), str(again)) == []


def test_mmdetections_classes_come_along(source, tmp_path):
    content = torch.load(source, weights_only=True)
    for meta in ({"CLASSES": ("cat", "dog")}, {"dataset_meta": {"classes": ["cat", "dog"]}}):
        torch.save({"meta": meta, **content}, tmp_path / "epoch_12.pth")
        convert_weights([str(tmp_path / "epoch_12.pth"), str(tmp_path / "x.pth"), "--overwrite"])
        assert read_checkpoint(tmp_path / "x.pth")["classes"] == {"thing_classes": ["cat", "dog"]}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_files_are_whole_small_and_readable(tmp_path, ending):
    """Nothing of the memory that tensors are views of, and for everybody to read."""
    large = torch.zeros(1_000_000)
    weights = make_resnest(14).state_dict()
    weights["stem.conv1_1.norm.bias"] = large[:32]
    torch.save({"model": weights}, tmp_path / "views.pth")
    target = tmp_path / f"converted{ending}"
    convert_weights([str(tmp_path / "views.pth"), str(target)])
    size = sum(tensor.nbytes for tensor in weights.values())
    assert size < target.stat().st_size < size + 300_000
    other = tmp_path / "other"
    other.touch()
    assert target.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_disk_that_is_full(source, tmp_path, capsys, monkeypatch, ending):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    target = tmp_path / f"converted{ending}"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        line = fails(convert_weights, capsys, source, target)
    assert f"cannot write {target}: it takes" in line
    # A quota shows only while writing.
    code = (
        "import resource, signal, sys;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000));"
        "import convert_weights; sys.exit(convert_weights.main(sys.argv[1:]))"
    )
    result = run_python(code, source, target)
    assert result.returncode == 2, result.stderr
    assert f"cannot write {target}" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == [source]


def test_what_cannot_be_converted(source, tmp_path, capsys):
    target = tmp_path / "target.pth"
    assert "there is no file absent.pth" in fails(convert_weights, capsys, "absent.pth", target)
    assert "must end in .pth or .safetensors" in fails(convert_weights, capsys, source, "x.onnx")
    folder = tmp_path / "no/x.pth"
    assert f"there is no folder {folder.parent}" in fails(convert_weights, capsys, source, folder)
    assert "--overwrite replaces it" in fails(convert_weights, capsys, source, source)
    (tmp_path / "page.pth").write_text("<html>")
    assert "is an HTML page" in fails(convert_weights, capsys, tmp_path / "page.pth", target)
    torch.save({"fc1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    line = fails(convert_weights, capsys, tmp_path / "other.pth", target)
    assert f"{tmp_path}/other.pth: not the weights of a known ResNeSt" in line
    line = fails(convert_weights, capsys, "resnest://ImageNet/resnst50", target)
    assert "did you mean resnest://ImageNet/resnest50" in line
    content = torch.load(source, weights_only=True)["state_dict"]
    torch.save({**content, "extra.key": torch.zeros(1)}, tmp_path / "more.pth")
    assert "(extra.key)" in fails(convert_weights, capsys, tmp_path / "more.pth", target)
    assert not target.exists()
    assert convert_weights([str(tmp_path / "more.pth"), str(target), "--drop-unknown"]) == 0
    assert "left out extra.key" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as training leaves it."""
    folder = tmp_path_factory.mktemp("output") / "mine"
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder)])
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    model = build_detector(cfg).eval()
    randomize(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    checkpointer = TrainingCheckpointer(model, str(folder), CLASSES, optimizer=optimizer)
    checkpointer.save("model_final", iteration=899)
    lines = [{"iteration": 1, "total_loss": 3.0}, {"bbox/AP": 10.0}, {"bbox/AP": 68.9}]
    lines[-1] |= {"bbox/APl": float("nan"), "segm/AP": 67.7, "iteration": 900}
    (folder / "metrics.json").write_text("\n".join(json.dumps(line) for line in lines))
    return folder, model


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_publication(trained, tmp_path, capsys, ending):
    folder, model = trained
    arguments = [str(folder / "model_final.pth"), str(tmp_path), "--format", ending]
    assert publish_checkpoint(arguments) == 0
    weights, card, config = map(Path, capsys.readouterr().out.split())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights == tmp_path / f"mine-{digest[:8]}.{ending}"
    assert sorted(tmp_path.iterdir()) == sorted([weights, card, config])
    if ending == "pth":
        content = torch.load(weights, weights_only=True)
        assert set(content) == {"model", "input", "classes", "config", "__author__"}
    else:
        with safe_open(weights, "pt") as file:
            assert set(file.keys()) == set(model.state_dict())

    text = card.read_text()
    for part in (
        f"SHA-256: `{digest}`",
        "| bbox/AP | 68.90 |",
        "| segm/AP | 67.70 |",
        "Images: RGB, mean [123.68, 116.779, 103.939]",
        "Classes (10): 0, 1, 2",
        "  NAME: build_resnest_fpn_backbone",
        f"--opts MODEL.WEIGHTS {weights.name}",
    ):
        assert part in text
    assert "VERSION: 2" in config.read_text()
    for absent in ("APl", "DEVICE", "total_loss", "OUTPUT_DIR", str(folder)):
        assert absent not in text
    # The files are all that somebody else needs.
    cfg = load_config(str(config), ["MODEL.DEVICE", "cpu"])
    other = build_detector(cfg)
    assert load_detector(other, str(weights)) == CLASSES
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())


def test_a_lazy_config_is_published_too(trained, tmp_path, capsys):
    checkpoint = str(trained[0] / "model_final.pth")
    lazy = str(ROOT / "configs/lazy/mask_resnest14_digits.py")
    publish_checkpoint([checkpoint, str(tmp_path), "--config-file", lazy, "--name", "x"])
    weights, card = map(Path, capsys.readouterr().out.split())
    assert weights.name.startswith("x-")
    assert "_target_: " in card.read_text()


def test_what_cannot_be_published(trained, tmp_path, capsys):
    folder, _ = trained
    checkpoint, out = folder / "model_final.pth", tmp_path / "out"

    def line(*arguments):
        return fails(publish_checkpoint, capsys, *arguments)

    assert "there is no file absent.pth" in line("absent.pth", out)
    other = ["--config-file", ROOT / "configs/mask_resnest14.yaml"]
    assert "is not of the model in" in line(checkpoint, out, *other)
    faster = load_config(str(folder / "config.yaml"))
    faster.MODEL.MASK_ON = False
    (tmp_path / "faster.yaml").write_text(faster.dump())
    found = line(checkpoint, out, "--config-file", tmp_path / "faster.yaml")
    assert "it has besides the model 8 parameters, in roi_heads.mask_head" in found
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "config": (folder / "config.yaml").read_text()}, tmp_path / "own.pth")
    found = line(tmp_path / "own.pth", out, "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "3")
    assert "is not of the model in its own config with --opts: it has other shapes" in found
    assert "got 'a/b'" in line(checkpoint, out, "--name", "a/b")
    assert "is no JSON but a binary file" in line(checkpoint, out, "--results", checkpoint)
    assert "--config-file: there is no file" in line(checkpoint, out, "--config-file", "no.yaml")
    (tmp_path / "empty.json").write_text('{"total_loss": 3}')
    found = line(checkpoint, out, "--results", tmp_path / "empty.json")
    assert "empty.json holds no results such as bbox/AP" in found
    (tmp_path / "broken.json").write_text("no")
    assert "broken.json is no JSON" in line(checkpoint, out, "--results", tmp_path / "broken.json")
    assert not out.exists()


def test_from_inside_the_folder_of_the_run(trained, tmp_path, monkeypatch):
    folder, _ = trained
    (tmp_path / "my run").mkdir()
    for name in ("model_final.pth", "config.yaml"):
        shutil.copy(folder / name, tmp_path / "my run")
    monkeypatch.chdir(tmp_path / "my run")
    publish_checkpoint(["model_final.pth", "out"])
    (card,) = Path("out").glob("*.md")
    assert card.name.startswith("my run-")
    assert "\n# my run\n" in card.read_text()


def test_detectors_of_older_detectron2s_are_converted(tmp_path, capsys):
    """Their checkpoints have the colours' mean and deviation beside the weights."""
    weights = make_resnest(50).state_dict()
    weights = {f"backbone.bottom_up.{key}": value for key, value in weights.items()}
    weights |= {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    old = tmp_path / "old.pth?dl=1"  # as wget calls it
    torch.save({"model": weights}, old)
    assert convert_weights([str(old), str(tmp_path / "new.pth")]) == 0
    assert "pixel_mean" in capsys.readouterr().out


def test_a_run_that_was_never_evaluated(trained, tmp_path, caplog):
    folder, _ = trained
    for name in ("model_final.pth", "config.yaml"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "metrics.json").write_text('{"iteration": 9, "total_loss": 3}\n')
    publish_checkpoint([str(tmp_path / "model_final.pth"), str(tmp_path / "out")])
    (card,) = (tmp_path / "out").glob("*.md")
    assert "## Results\n\nNone were given.\n" in card.read_text()
    assert "metrics.json holds no results such as bbox/AP" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox": {"AP": 1.5, "APl": NaN}, "segm_TTA": {"AP": 2}}',
        '{"bbox/AP": 9, "x": 1}\n{"bbox/AP": 1.5, "segm_TTA/AP": 2.0, "data_time": 4.5}\n\n',
        '{"bbox/AP": 1.5, "segm_TTA/AP": 2.0}\n{"bbox/AP": 9, "segm_TTA/',  # by a kill
    ],
)
def test_kinds_of_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    assert read_results(tmp_path / "results.json") == {"bbox/AP": 1.5, "segm_TTA/AP": 2}
