"""resnest-d2 reproduce: which models, data and checkpoints, and what it makes of the figures."""

import json

import pytest
import torch

from resnest_d2.commands import reproduce as tool
from resnest_d2.commands.reproduce import choose_models
from resnest_d2.config import InputError
from resnest_d2.model_zoo.published import PUBLICATIONS, Publication


@pytest.fixture
def publish(monkeypatch):
    def publish(metrics, name="mask_resnest50"):
        monkeypatch.setitem(PUBLICATIONS, name, Publication("the_model.pth", metrics))

    return publish


@pytest.fixture
def run(tmp_path, registered_digits, monkeypatch):
    """The command on a checkpoint that is evaluated to 50.04 and 40.11."""
    monkeypatch.setattr(tool, "load_for_evaluation", lambda cfg, checkpoint: checkpoint)
    figures = {"bbox": {"AP": 50.04}, "segm": {"AP": 40.11}}
    monkeypatch.setattr(tool, "evaluate_model", lambda cfg, model: figures)
    file = tmp_path / "mine.pth"
    torch.save({"model": {"a": torch.zeros(1)}}, file)

    def run(*args, models=("mask_resnest50",)):
        opts = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", "('digits_val',)", "MODEL.WEIGHTS", file]
        output = ["--output", tmp_path / "out", *args, "--opts", *opts]
        return tool.main(["--models", *models, *map(str, output)])

    return run


def test_published_and_measured(run, publish, tmp_path, capsys):
    publish({"bbox/AP": 50.0, "segm/AP": 40.0})
    assert run() == 1
    printed = capsys.readouterr().out
    assert "| mask_resnest50 | bbox/AP | 50.00 | 50.04 | +0.04 | yes |" in printed
    assert "| mask_resnest50 | segm/AP | 40.00 | 40.11 | +0.11 | no |" in printed
    assert "No hash shows these checkpoints to be the published ones: mask_resnest50." in printed
    assert run("--tolerance", "0.2") == 0
    rows = json.loads((tmp_path / "out/results.json").read_text())
    found = [(row["metric"], row["published"], row["measured"], row["verified"]) for row in rows]
    assert found == [("bbox/AP", 50.0, 50.04, False), ("segm/AP", 40.0, 40.11, False)]
    publish({"panoptic_seg/PQ": 50.0})
    assert run() == 1  # what was not measured is not reproduced


def test_what_was_measured_is_written_before_another_fails(run, publish, tmp_path, monkeypatch):
    publish({"bbox/AP": 50.0})
    answers = iter([{"bbox": {"AP": 50.04}}])
    monkeypatch.setattr(tool, "evaluate_model", lambda cfg, model: next(answers))
    with pytest.raises(StopIteration):
        run(models=("mask_resnest50", "faster_resnest50"))
    (row,) = json.loads((tmp_path / "out/results.json").read_text())
    assert (row["model"], row["measured"]) == ("mask_resnest50", 50.04)


def test_models_to_choose():
    everything = choose_models(["all"])
    assert len(everything) == 21 + 8
    assert "cascade_resnest101" in everything
    assert "cascade_resnest200_dcn_3x_ms" not in everything
    assert choose_models(["mask_resnest50.yaml", "mask_resnest50"]) == ["mask_resnest50"]
    for names, message in (
        (["all", "mask_resnest50"], "no model 'all'"),
        (["mask_resnest269"], "'mask_resnest269' cannot be compared: it has no figure on COCO val"),
        (["cascade_resnest200_dcn_3x_ms"], "cannot be compared"),
    ):
        with pytest.raises(InputError, match=message):
            choose_models(names)


def test_data_are_looked_for_before_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "open_weights", lambda path: 1 / 0)
    with pytest.raises(SystemExit) as end:
        tool.main(["--models", "all", "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "error: DATASETS.TEST: data set 'coco_2017_val' needs" in capsys.readouterr().err


def test_the_published_checkpoint_is_measured_unless_another_is_named(run, publish, monkeypatch):
    publish({"bbox/AP": 50.0})
    asked, read = [], tool.open_weights
    monkeypatch.setattr(tool, "open_weights", lambda path: read(asked.append(path) or path))
    run()
    assert asked[0].endswith("mine.pth")
    monkeypatch.setattr(tool, "check_datasets", lambda cfg, train: None)
    monkeypatch.setattr(tool, "open_weights", lambda path: asked.append(path) or {}["stop"])
    with pytest.raises(KeyError, match="stop"):
        tool.main(["--models", "mask_resnest50"])
    assert asked[-1] == "resnest://COCO/mask_resnest50"
