"""What all commands do alike: wrong input ends with one line, a defect with its traceback."""

import os
import signal
import subprocess
import sys

import pytest
from commands import ROOT, run_command

import resnest_d2_cli
from resnest_d2.commands import one_line_errors
from resnest_d2.config import InputError, MissingPackageError
from resnest_d2.weights import FetchError


@pytest.mark.parametrize("kind", [InputError, FetchError, MissingPackageError])
def test_wrong_input_is_one_line(kind, capsys, monkeypatch):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise kind("MODEL.X is wrong")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: MODEL.X is wrong\n"
    monkeypatch.setenv("RESNEST_D2_TRACEBACK", "1")
    with pytest.raises(kind), one_line_errors():
        raise kind("MODEL.X is wrong")


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError, ImportError, OSError])
def test_any_other_error_keeps_its_traceback(kind, capsys):
    with pytest.raises(kind), one_line_errors():
        raise kind("operands could not be broadcast together")
    assert capsys.readouterr().err == ""


def test_an_interrupt_is_one_word(capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise KeyboardInterrupt
    assert (end.value.code, capsys.readouterr().err) == (128 + signal.SIGINT, "interrupted\n")


def test_an_error_of_a_loaders_process_is_its_last_line(capsys):
    """PyTorch raises it again with the worker's traceback as its text."""
    text = "Caught InputError in worker 0.\nOriginal Traceback (most recent call last):\n  File\n"
    with pytest.raises(SystemExit), one_line_errors():
        raise InputError(text + "resnest_d2.config.InputError: a.png is damaged\n")
    assert capsys.readouterr().err == "error: a.png is damaged\n"


@pytest.mark.parametrize("words", ["-c --help", "-uc --help", "-c convert --help"])
def test_a_reader_that_leaves_is_no_error(words):
    """As after ``| head``; -u is without a buffer, and of a command argparse prints the help."""
    option, *arguments = words.split()
    code = "import sys, resnest_d2_cli; sys.exit(resnest_d2_cli.main())"
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, option, code, *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    result = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, env=environment
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, b"")


def test_another_pipe_that_breaks_keeps_its_traceback(monkeypatch):
    def fail(arguments):
        raise BrokenPipeError("a worker")

    monkeypatch.setattr(resnest_d2_cli, "_run", fail)
    with open(os.devnull, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(BrokenPipeError, match="a worker"):
            resnest_d2_cli.main([])


@pytest.mark.parametrize("command", ["convert", "publish", "reproduce", "train"])
def test_each_command_helps(command):
    result = run_command(command, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: resnest-d2 {command} ")


HEAVY = {
    *("cv2", "matplotlib", "supervision", "requests", "huggingface_hub"),
    *("torch._inductor", "safetensors", "hotcoco", "onnx", "pandas"),
}


def test_importing_the_package_imports_nothing_that_it_does_not_need():
    """Beside what importing Detectron2's models imports by itself."""
    code = "import sys; import {0}; print(*sys.modules)"
    loaded = {}
    for name in ("detectron2.modeling", "resnest_d2"):
        command = [sys.executable, "-c", code.format(name)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        loaded[name] = set(result.stdout.split())
    assert not HEAVY & (loaded["resnest_d2"] - loaded["detectron2.modeling"])
    # Detectron2 itself takes OpenCV, if it is there, and torchvision parts of the compiler.
    assert HEAVY & loaded["resnest_d2"] <= {"cv2", "torch._inductor"}


WARNINGS = """
import warnings
before = list(warnings.filters)
import resnest_d2
assert warnings.filters == before
import resnest_d2.commands
def warn(text, module):
    exec("import warnings; warnings.warn(text, FutureWarning)", {"__name__": module, "text": text})
warn("`torch.jit.script` is deprecated. Please", "torch.jit._script")
warn("`torch.jit.script` is deprecated. Please", "shown")
warn("shown: something else is deprecated", "torch.jit._script")
"""


def test_commands_hide_known_warnings_and_no_other():
    command = [sys.executable, "-c", WARNINGS]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    first, second = [line for line in result.stderr.splitlines() if not line.startswith(" ")]
    assert "FutureWarning: `torch.jit.script` is deprecated. Please" in first
    assert "FutureWarning: shown: something else is deprecated" in second
