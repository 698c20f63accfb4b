"""What all commands do alike: wrong input ends with one line, a defect with its traceback."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from detectron2.config import get_cfg
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.modeling import BACKBONE_REGISTRY

from resnest_d2.commands import DATA_ERRORS, one_line_errors, warnings_again, write_metrics
from resnest_d2.config import ConfigError, InputError
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


@pytest.mark.parametrize("error", [ValueError("a"), KeyError("a"), RuntimeError("a")])
def test_during_training_only_data_are_wrong_input(error, capsys):
    with pytest.raises(type(error)), one_line_errors(DATA_ERRORS):
        raise error
    assert capsys.readouterr().err == ""
    for wrong in (InputError("a.png is none"), SizeMismatchError("a.png is none")):
        with pytest.raises(SystemExit), one_line_errors(DATA_ERRORS):
            raise wrong
        assert capsys.readouterr().err == "error: a.png is none\n"


def test_warnings_come_again_each_once(capsys):
    logger = logging.getLogger("resnest_d2.data.notes")
    with warnings_again():
        for name in ("a", "b", "a"):
            logger.warning("%s is odd", name)
        logger.error("no warning")
        logger.info("nor this")
    assert capsys.readouterr().err.endswith("2 warnings:\n- a is odd\n- b is odd\n")
    with warnings_again():
        logger.info("nothing to repeat")
    assert "warning" not in capsys.readouterr().err

    @warnings_again()
    def command():
        with one_line_errors():
            logger.warning("a is odd")
            raise InputError("the last word")

    with pytest.raises(SystemExit):
        command()
    assert capsys.readouterr().err.endswith("error: the last word\n")


WARNINGS = """
import logging, warnings
before = list(warnings.filters)
import resnest_d2
assert warnings.filters == before
import resnest_d2.commands.train_net
import torch
torch.meshgrid(torch.arange(2), torch.arange(2))
def warn(text, category, module):
    exec("import warnings; warnings.warn(text, category)", {"__name__": module, **locals()})
warn("`torch.jit.script` is deprecated. Please", FutureWarning, "torch.jit._script")
warn("`torch.jit.script` is deprecated. Please", FutureWarning, "shown")
warn("shown: something else is deprecated", FutureWarning, "torch.jit._script")
warn("pkg_resources is deprecated as an API", UserWarning, "detectron2.model_zoo.model_zoo")
logging.getLogger("torch.fx._symbolic_trace").warning("is_fx_tracing will return true for both")
logging.getLogger("torch.fx._symbolic_trace").warning("shown, too")
"""


def test_commands_hide_known_warnings_and_no_other():
    result = subprocess.run(
        [sys.executable, "-c", WARNINGS], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith(" ")]
    first, second, third = lines
    assert "FutureWarning: `torch.jit.script` is deprecated. Please" in first
    assert "FutureWarning: shown: something else is deprecated" in second
    assert "shown, too" in third


def test_metrics_are_written_flat_and_without_nan(tmp_path):
    results = {"bbox": {"AP": 1.5, "APl": math.nan}, "sem_seg": {"mIoU": 2.0}}
    expected = {"bbox/AP": 1.5, "bbox/APl": None, "sem_seg/mIoU": 2.0}
    assert write_metrics(tmp_path / "metrics.json", results) == expected
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
