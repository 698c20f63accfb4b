"""The commands that write weights: conversion and publication."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers import randomize
from safetensors import safe_open

from resnest_d2 import model_zoo
from resnest_d2.commands import convert as convert_command
from resnest_d2.commands import publish as publish_command
from resnest_d2.commands.publish import last_metrics
from resnest_d2.config.load import load_config
from resnest_d2.modeling.detector import build_detector
from resnest_d2.modeling.resnest import make_resnest
from resnest_d2.weights import convert, load_weights, open_weights
from resnest_d2.weights.stored_config import config_text

CLASSES = {
    "thing_classes": [str(digit) for digit in range(10)],
    "thing_dataset_id_to_contiguous_id": {digit + 1: digit for digit in range(10)},
}


def run(command, *arguments):
    return command.main([str(argument) for argument in arguments])


def fails(command, capsys, *arguments):
    """The one line that it ends with."""
    with pytest.raises(SystemExit) as error:
        run(command, *arguments)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


@pytest.fixture
def source(imagenet, tmp_path):
    """A file as it was published."""
    torch.save({"state_dict": imagenet}, tmp_path / "gluon_resnest14-9c8fe254.pth")
    return tmp_path / "gluon_resnest14-9c8fe254.pth"


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_published_file(source, imagenet, tmp_path, capsys, ending):
    target = tmp_path / f"converted{ending}"
    assert run(convert_command, source, target) == 0
    out = capsys.readouterr().out
    for part in (
        "holds    ResNeSt-14, a backbone: 152 tensors, 10.6",
        f"wrote    {target} (SHA-256 {hashlib.sha256(target.read_bytes()).hexdigest()})",
    ):
        assert part in out
    expected = convert(imagenet)
    classifier = make_resnest(14, num_classes=1000)
    assert load_weights(classifier, str(target)) == []
    assert all(torch.equal(v, expected[k]) for k, v in classifier.state_dict().items())
    assert run(convert_command, target, tmp_path / "again.pth") == 0
    assert open_weights(tmp_path / "again.pth").weights.keys() == expected.keys()


def test_mmdetections_classes_come_along(source, tmp_path):
    content = torch.load(source, weights_only=True)
    for meta in ({"CLASSES": ("cat", "dog")}, {"dataset_meta": {"classes": ["cat", "dog"]}}):
        torch.save({"meta": meta, **content}, tmp_path / "epoch_12.pth")
        run(convert_command, tmp_path / "epoch_12.pth", tmp_path / "x.pth", "--overwrite")
        assert open_weights(tmp_path / "x.pth").classes == {"thing_classes": ["cat", "dog"]}


def test_the_average_or_what_was_trained(imagenet, tmp_path, capsys):
    average = {f"module.{k}": v + 1 for k, v in imagenet.items()}
    average["n_averaged"] = torch.tensor(7)
    file, target = tmp_path / "x.pth", tmp_path / "y.pth"
    torch.save({"model": imagenet, "model_ema": average}, file)
    expected = convert(imagenet)
    for options, more in (([], 0), (["--average"], 1)):
        run(convert_command, file, target, "--overwrite", *options)
        found = open_weights(target).weights
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key] + more) for key in expected)
    torch.save({"model": imagenet}, file)
    line = fails(convert_command, capsys, file, target, "--overwrite", "--average")
    assert f"{file} has no average of its weights" in line


def test_what_cannot_be_converted(source, tmp_path, capsys, caplog):
    target = tmp_path / "target.pth"
    torch.save({"fc1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for given, wanted, message in (
        ("absent.pth", target, "there is no file absent.pth"),
        (source, "x.onnx", "must end in .pth or .safetensors"),
        (source, source, "--overwrite replaces it"),
        (tmp_path / "other.pth", target, f"{tmp_path}/other.pth holds no known ResNeSt"),
    ):
        assert message in fails(convert_command, capsys, given, wanted)
    assert not target.exists()
    content = torch.load(source, weights_only=True)["state_dict"]
    torch.save({**content, "extra.key": torch.zeros(1)}, tmp_path / "more.pth?dl=1")  # wget's name
    assert run(convert_command, tmp_path / "more.pth?dl=1", target) == 0
    assert "left out: extra.key" in caplog.text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as training leaves it."""
    folder = tmp_path_factory.mktemp("output") / "mine"
    folder.mkdir()
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder)])
    model = build_detector(cfg).eval()
    randomize(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 899}
    content |= {"classes": CLASSES, "config": config_text(cfg)}
    torch.save(content, folder / "model_final.pth")
    line = {"iteration": 900, "total_loss": 3.0, "bbox/AP": 68.9, "segm/AP": 67.7}
    (folder / "metrics.json").write_text(json.dumps(line))
    return folder, model


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_publication(trained, tmp_path, capsys, ending):
    folder, model = trained
    assert run(publish_command, folder / "model_final.pth", tmp_path, "--format", ending) == 0
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
        "Images: RGB with mean 123.68 116.779 103.939 and std 58.393 57.12 57.375",
        "Classes (10): 0, 1, 2",
        "  NAME: build_resnest_fpn_backbone",
        f"resnest-d2 predict --model {weights.name}",
    ):
        assert part in text
    assert "VERSION: 2" in config.read_text()
    for absent in ("DEVICE", "total_loss", "OUTPUT_DIR", str(folder)):
        assert absent not in text
    # The files are all that somebody else needs.
    checkpoint = open_weights(weights)
    assert checkpoint.classes == CLASSES
    assert checkpoint.config == config.read_text()
    other = build_detector(load_config(str(config), ["MODEL.DEVICE", "cpu"]))
    assert load_weights(other, checkpoint) == []
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())


def test_what_cannot_be_published(trained, tmp_path, capsys):
    checkpoint, out = trained[0] / "model_final.pth", tmp_path / "out"
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "bare.pth")
    classes = ["--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    for file, options, message in (
        (checkpoint, classes, "has shape (11, 128) in the file and (4, 128) in the model"),
        (checkpoint, ["--name", "a/b"], "got 'a/b'"),
        (tmp_path / "bare.pth", [], "bare.pth holds no config"),
    ):
        assert message in fails(publish_command, capsys, file, out, *options)
    assert not out.exists()


def test_a_run_that_was_never_evaluated(trained, tmp_path, monkeypatch):
    """From inside its folder, whose name is the model's."""
    (tmp_path / "my run").mkdir()
    shutil.copy(trained[0] / "model_final.pth", tmp_path / "my run")
    monkeypatch.chdir(tmp_path / "my run")
    run(publish_command, "model_final.pth", "out")
    (card,) = Path("out").glob("my run-*.md")
    assert "\n# my run\n" in card.read_text()
    assert "## Results\n\nNone were given.\n" in card.read_text()


def test_the_last_metrics(tmp_path):
    """What is not finite, or no metric of a task, is left out; a kill cuts the last line off."""
    lines = [
        {"iteration": 1, "bbox/AP": 9, "bbox/APl": 1.0},
        {"iteration": 2, "bbox/AP": 1.5, "segm_TTA/AP": 2.0, "bbox/APl": math.nan, "data_time": 4},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"bbox/AP": 9, "segm_TTA/'
    (tmp_path / "metrics.json").write_text(text)
    assert last_metrics(tmp_path / "metrics.json") == {"bbox/AP": 1.5, "segm_TTA/AP": 2}
    assert last_metrics(tmp_path / "absent.json") == {}
