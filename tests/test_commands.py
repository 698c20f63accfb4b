"""What all commands do alike: wrong input ends with one line, a defect with its traceback."""

import json
import math
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY

from resnest_d2.commands import one_line_errors, write_metrics
from resnest_d2.config import ConfigError
from resnest_d2.config.settings import Settings
from resnest_d2.weights import FetchError


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (lambda: fail(ConfigError("MODEL.X is wrong")), "error: MODEL.X is wrong"),
        (lambda: fail(FetchError("no source has it")), "error: no source has it"),
        (Path("absent.yaml").read_text, "No such file or directory: 'absent.yaml'"),
        (lambda: fail(ImportError("it is not installed")), "error: it is not installed"),
        (lambda: BACKBONE_REGISTRY.get("NoBackbone"), "error: No object named 'NoBackbone' found"),
        (lambda: get_cfg().merge_from_list(["A"]), "error: Override list has odd length"),
    ],
)
def test_wrong_input_is_one_line(action, line, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end, one_line_errors():
        action()
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1
    monkeypatch.setenv("RESNEST_D2_TRACEBACK", "1")
    kinds = (ValueError, OSError, ImportError, KeyError, AssertionError)
    with pytest.raises(kinds), one_line_errors():
        action()


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (lambda: Settings(get_cfg()).key("no_such_setting"), KeyError),  # raised in the package
        (lambda: {}["a key"], KeyError),
        (lambda: fail(KeyError("with a message")), KeyError),
        (lambda: fail(AssertionError("with a message")), AssertionError),
        (lambda: fail(ValueError()), ValueError),
        (lambda: None.device, AttributeError),
        (lambda: len(5), TypeError),
    ],
)
def test_a_defect_keeps_its_traceback(action, kind, capsys):
    with pytest.raises(kind), one_line_errors():
        action()
    assert capsys.readouterr().err == ""


def test_metrics_are_written_flat_and_without_nan(tmp_path):
    results = {"bbox": {"AP": 1.5, "APl": math.nan}, "sem_seg": {"mIoU": 2.0}}
    expected = {"bbox/AP": 1.5, "bbox/APl": None, "sem_seg/mIoU": 2.0}
    assert write_metrics(tmp_path / "metrics.json", results) == expected
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
