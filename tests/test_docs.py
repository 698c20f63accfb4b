"""The pages of the documentation: the site builds, and the commands and files on them exist."""

import contextlib
import importlib
import io
import re
import subprocess
import sys
from functools import cache

import pytest
import tomllib
from commands import ROOT

from benchmarks.__main__ import make_parser
from resnest_d2_cli import COMMANDS

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
    if path.name != "CHANGELOG.md"  # which also tells what went
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
OPTION = r"(?<![\w-])--[a-z][\w-]*"


@cache
def options_of(command: str) -> set[str]:
    """The options that a command's own help names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        if command == "benchmarks":
            make_parser().parse_args(["--help"])
        name = command.replace("-", "_")
        importlib.import_module(f"resnest_d2.commands.{name}").main(["--help"])
    return set(re.findall(OPTION, said.getvalue()))


def mistakes(text: str) -> list[str]:
    """Commands, options and targets of ``make`` in a page's code that do not exist."""
    text = re.sub(r"\\\n", " ", text)
    code = "\n".join(re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE))
    code = re.sub(r"#.*", "", code + "\n" + "\n".join(re.findall(r"(?<!`)`([^`]+)`", text)))
    code = code.replace("tools/train_net.py", "resnest-d2 train")
    code = code.replace("python -m benchmarks", "resnest-d2 benchmarks")
    wrong = [f"make {name}" for name in re.findall(r"\bmake ([\w-]+)", code) if name not in TARGETS]
    for command, rest in re.findall(r"\bresnest-d2 ([a-z][\w-]*)([^\n;|&]*)", code):
        if command not in (*COMMANDS, "benchmarks"):
            wrong.append(command)
        elif unknown := set(re.findall(OPTION, rest)) - options_of(command):
            wrong.append(f"{command} {' '.join(unknown)}")
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    assert mistakes(PAGES[page]) == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("torchrun --nnodes 2 tools/train_net.py --keep-first", "train --keep-first"),
        ("A=1 resnest-d2 predict \\\n  --opt=3", "predict --opt"),
        ("resnest-d2 pedict --input x", "pedict"),
        ("make demo && make demoo  # twice", "make demoo"),
    ],
)
def test_wrong_commands_are_found(line, wrong):
    assert mistakes(f"A page\n\n```sh\n{line}\n```\n") == [wrong]


@pytest.mark.parametrize("page", PAGES)
def test_files_and_extras_exist(page):
    named = r"\b((?:tools|tests|configs|docs|requirements|examples)/[\w./-]+\.\w+)"
    assert [f for f in re.findall(named, PAGES[page]) if not (ROOT / f).exists()] == []
    extras = re.findall(r"resnest_d2\[([\w,-]+)\]", PAGES[page])
    assert {e for group in extras for e in group.split(",")} <= {*PROJECT["optional-dependencies"]}


def test_the_site_builds_without_a_broken_link(tmp_path):
    """MkDocs' own check of files, anchors and the list of pages, whose warnings are errors."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    names = {
        p.relative_to(tmp_path).with_suffix(".md").as_posix() for p in tmp_path.rglob("*.html")
    }
    assert {name.replace("README", "index") for name in PAGES} <= names
    api = (tmp_path / "docs/api.html").read_text()
    for name in (
        "build_resnest_fpn_backbone",
        "Predictor",
        "optimize_for_inference",
        "open_weights",
    ):
        assert f'{name}"' in api  # the anchor of its entry
    assert ":func:" not in api
