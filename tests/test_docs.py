"""The pages of the documentation: the site builds, and the commands and files on them exist."""

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import tomllib
from commands import ROOT
from detectron2.engine import default_argument_parser

from benchmarks.__main__ import make_parser
from resnest_d2_cli import COMMANDS

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
    if path.name != "CHANGELOG.md"  # which also tells what went
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
# What else is typed: names of programs that are not this project's, or whose commands others test.
OTHERS = {"cd", "coco", "export", "git", "globox", "labelme2coco", "pip", "pre-commit", "source"}
OTHERS |= {"tensorboard", "uv", "python", "pytest"}
LAUNCHERS = {"srun", "torchrun"}
OURS = re.compile(r"(tools/\w|resnest-d2 |make \w|python -m )")


def command_lines(text: str) -> list[list[str]]:
    """The commands of blocks of shell, and this project's in the text, as words."""
    lines = []
    for language, block in FENCE.findall(text):
        if language in ("sh", "bash"):
            lines += block.replace("\\\n", " ").splitlines()
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", text))
    lines += [span.replace("\n", " ") for span in spans if OURS.match(span)]
    found = []
    for line in lines:
        line = re.sub(r"<[^>]*>|\$\([^)]*\)|\.\.\.", "X", line)  # placeholders
        lexer = shlex.shlex(re.sub(r"(^|\s)#.*", "", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                found.append(words)
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)
    return [words for words in found if words]


@cache
def options_of(command: str) -> set[str]:
    """The options that a command's own help names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        if command == "lazyconfig_train_net":
            default_argument_parser().parse_args(["--help"])
        name = {"train_net": "train"}.get(command, command).replace("-", "_")
        importlib.import_module(f"resnest_d2.commands.{name}").main(["--help"])
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", said.getvalue()))


def mistake(words: list[str]) -> str:
    """What is wrong with a command, empty if nothing is."""
    if words[0] in LAUNCHERS:  # whose own options are not looked at
        words = next((words[i:] for i, w in enumerate(words) if w.startswith("tools/")), ["pip"])
    program, *rest = words
    if program.endswith("python") and rest[0] == "-m":
        program, *rest = rest[1:]
        if (ROOT / f"{program.replace('.', '/')}.py").is_file():
            return ""
        if program == "benchmarks":
            with (
                contextlib.redirect_stderr(io.StringIO()) as error,
                contextlib.suppress(SystemExit),
            ):
                make_parser().parse_args([word for word in rest if word != "X"])
            return error.getvalue()
    if program == "make":
        targets = {word for word in rest if "=" not in word}
        return f"no target {unknown}" if (unknown := targets - TARGETS - {"X"}) else ""
    if program.startswith("examples/") or Path(program).name in OTHERS:
        return ""
    if program == "resnest-d2":
        program, *rest = rest
        if program == "--help":
            return ""
    if program not in COMMANDS and not program.startswith("tools/"):
        return f"no command {program}"
    used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
    unknown = used - options_of(Path(program).stem)
    return f"{program} has no option {unknown}" if unknown else ""


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    assert {" ".join(w): mistake(w) for w in command_lines(PAGES[page]) if mistake(w)} == {}


@pytest.mark.parametrize("page", PAGES)
def test_files_and_extras_exist(page):
    named = r"\b((?:tools|tests|configs|docs|requirements|examples)/[\w./-]+\.\w+)"
    assert [f for f in re.findall(named, PAGES[page]) if not (ROOT / f).exists()] == []
    extras = re.findall(r"resnest_d2\[([\w,-]+)\]", PAGES[page])
    assert {e for group in extras for e in group.split(",")} <= {*PROJECT["optional-dependencies"]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tools/train_net.py --config-fil x", "tools/train_net.py has no option {'--config-fil'}"),
        (
            "torchrun --nproc-per-node 2 tools/train_net.py --keep-first",
            "no option {'--keep-first'}",
        ),
        ("A=1 resnest-d2 predict \\\n  --opt=3", "has no option {'--opt'}"),
        ("resnest-d2 pedict --input x", "no command pedict"),
        ("resnet-d2 predict --input x", "no command resnet-d2"),
        ("make demo && make demoo  # twice", "no target {'demoo'}"),
        ("python -m benchmarks --device cpu --sections memory speed", "invalid choice: 'speed'"),
        ("python -m benchmarks --section amp", "invalid choice: 'amp'"),
        ("python -m benchmark.model_zoo", "no command benchmark.model_zoo"),
    ],
)
def test_wrong_commands_are_found(line, said):
    (wrong,) = filter(None, map(mistake, command_lines(f"A page\n\n```sh\n{line}\n```\n")))
    assert said in wrong


def test_the_site_builds_without_a_broken_link(tmp_path):
    """MkDocs' own check of files, anchors and the list of pages, whose warnings are errors."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    names = {
        p.relative_to(tmp_path).with_suffix(".md").as_posix() for p in tmp_path.rglob("*.html")
    }
    assert {name.replace("README", "index") for name in PAGES} <= names
