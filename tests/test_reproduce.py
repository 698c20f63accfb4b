"""resnest-d2 reproduce: which models, data and checkpoints, and what it makes of the figures."""

import hashlib
import json

import pytest
import torch

from resnest_d2.commands import reproduce as tool
from resnest_d2.commands.reproduce import choose_models, find_checkpoint
from resnest_d2.config import InputError
from resnest_d2.model_zoo.published import PUBLICATIONS, Publication

OPTS = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", "('digits_val',)"]


@pytest.fixture
def publish(monkeypatch):
    def publish(metrics, name="mask_resnest50", file="the_model.pth"):
        monkeypatch.setitem(PUBLICATIONS, name, Publication(file, metrics))

    return publish


@pytest.fixture
def weights(tmp_path, registered_digits, monkeypatch):
    """A folder with a checkpoint that is evaluated to 50.04 and 40.11."""
    monkeypatch.setattr(tool, "load_for_evaluation", lambda cfg, checkpoint: checkpoint)
    figures = {"bbox": {"AP": 50.04}, "segm": {"AP": 40.11}}
    monkeypatch.setattr(tool, "evaluate_model", lambda cfg, model: figures)
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save({"model": {"a": torch.zeros(1)}}, folder / "mask_resnest50.pth")
    return folder


def run(weights, *models, args=()):
    argv = ["--models", *(models or ["mask_resnest50"]), "--output", str(weights / "out")]
    return tool.main([*argv, "--weights-dir", str(weights), *args, "--opts", *OPTS])


def fails(capsys, *arguments, **options):
    with pytest.raises(SystemExit) as end:
        run(*arguments, **options)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_published_and_measured(weights, publish, capsys):
    publish({"bbox/AP": 50.0, "segm/AP": 40.0})
    assert run(weights) == 1
    printed = capsys.readouterr().out
    assert "| mask_resnest50 | bbox/AP | 50.00 | 50.04 | +0.04 | yes |" in printed
    assert "| mask_resnest50 | segm/AP | 40.00 | 40.11 | +0.11 | no |" in printed
    assert "No hash shows these checkpoints to be the published ones: mask_resnest50." in printed
    assert run(weights, args=["--tolerance", "0.2"]) == 0
    rows = json.loads((weights / "out/results.json").read_text())
    found = [(row["metric"], row["published"], row["measured"], row["verified"]) for row in rows]
    assert found == [("bbox/AP", 50.0, 50.04, False), ("segm/AP", 40.0, 40.11, False)]
    publish({"panoptic_seg/PQ": 50.0})
    assert run(weights) == 1  # what was not measured is not reproduced


def test_what_was_measured_is_written_before_another_fails(weights, publish, capsys):
    for name in ("faster_resnest50", "mask_resnest50"):
        publish({"bbox/AP": 50.0}, name)
    printed = fails(capsys, weights, "mask_resnest50", "faster_resnest50")
    assert "error: --weights-dir: there is neither" in printed
    (row,) = json.loads((weights / "out/results.json").read_text())
    assert (row["model"], row["measured"]) == ("mask_resnest50", 50.04)


def test_models_to_choose():
    everything = choose_models(["all"])
    assert len(everything) == 21 + 8
    assert "cascade_resnest101" in everything
    assert "cascade_resnest200_dcn_3x_ms" not in everything
    assert choose_models(["mask_resnest50.yaml", "mask_resnest50"]) == ["mask_resnest50"]
    for names, message in (
        (["all", "mask_resnest50"], "no model 'all'"),
        (["mask_resnest269"], "'mask_resnest269' cannot be compared: .* published on no data set"),
        (["cascade_resnest200_dcn_3x_ms"], "is published on coco_2017_test-dev"),
    ):
        with pytest.raises(InputError, match=message):
            choose_models(names)


def test_published_checkpoints_are_known_by_their_hash(weights, publish):
    content = (weights / "mask_resnest50.pth").read_bytes()
    file = weights / f"the_model-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    publish({"bbox/AP": 1.0}, file=file.name)
    file.write_bytes(content)
    checkpoint, is_verified = find_checkpoint("mask_resnest50", weights)
    assert (checkpoint.name, is_verified) == (str(file), True)
    file.write_bytes(content + b"!")
    with pytest.raises(InputError, match=f"{file.name} is not what was published"):
        find_checkpoint("mask_resnest50", weights)


def test_data_are_looked_for_before_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "open_weights", lambda path: 1 / 0)
    with pytest.raises(SystemExit) as end:
        tool.main(["--models", "all", "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "error: DATASETS.TEST: data set 'coco_2017_val' needs" in capsys.readouterr().err
