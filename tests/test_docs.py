"""The pages of the documentation: their links lead somewhere, and their commands exist."""

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import tomllib
from commands import ROOT
from detectron2.engine import default_argument_parser

from benchmarks.__main__ import SECTIONS, make_parser
from resnest_d2_cli import COMMANDS

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
}
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
TARGETS = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))
# What else is typed: names of programs that are not this project's.
OTHERS = {"cd", "coco", "export", "git", "globox", "labelme2coco", "pip", "pre-commit", "source"}
OTHERS |= {"tensorboard", "uv"}
LAUNCHERS = {"srun", "torchrun"}
OURS = re.compile(r"(tools/\w|resnest-d2 |make \w|python -m )")


def links(text: str) -> list[str]:
    """The targets of Markdown's and HTML's links and pictures, outside of code."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return re.findall(r"""(?:\]\(|(?:href|src)=["'])([^)"'\s]+)""", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str, text: str) -> list[str]:
    """The links of a page to files or headings of the repository that are not there."""
    broken = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if "://" in link or link.startswith("mailto:"):
            continue
        content = target.read_text() if anchor and path and target.exists() else text
        if not target.exists() or (anchor and anchor not in anchors(content)):
            broken.append(link)
    return broken


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
        line = re.sub(r"<[^>]*>|\$\([^)]*\)", "X", line)  # placeholders
        lexer = shlex.shlex(re.sub(r"(^|\s)#.*", "", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                found.append(words)
                words = []
            else:
                words.append(word)
    return [words for words in found if words]


@cache
def options_of(command: str) -> set[str]:
    """The options that a command's own help names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        if command == "benchmarks":
            make_parser().parse_args(["--help"])
        if command == "lazyconfig_train_net":
            default_argument_parser().parse_args(["--help"])
        name = {"train_net": "train"}.get(command, command).replace("-", "_")
        importlib.import_module(f"resnest_d2.commands.{name}").main(["--help"])
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", said.getvalue()))


def mistake(words: list[str]) -> str:
    """What is wrong with a command, empty if nothing is."""
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if not words:
        return ""
    if words[0] in LAUNCHERS:  # whose own options are not looked at
        words = next((words[i:] for i, w in enumerate(words) if w.startswith("tools/")), words[:1])
    program, *rest = words
    files = re.compile(r"(?:configs|docs|examples|requirements|tests|tools)/[^*]+\.\w+")
    missing = [w for w in words if files.fullmatch(w) and not (ROOT / w).exists()]
    if missing:
        return f"no file {missing[0]}"
    if program.endswith("python") and rest[:1] != ["-c"]:
        if rest[0] != "-m":  # the reader's own script, if it is in no folder
            return mistake(rest) if "/" in rest[0] else ""
        _, program, *rest = rest
        if program in ("pip", "pytest"):
            return ""
        if (ROOT / f"{program.replace('.', '/')}.py").is_file():
            return ""
    if program.startswith("examples/"):  # whose commands other tests run
        return ""
    if program.endswith(("make", "python")) or program in OTHERS | LAUNCHERS:
        targets = [w for w in rest if program == "make" and not re.match(r"[A-Z_\d]+=", w)]
        unknown = set(targets) - TARGETS - {"..."}
        return f"no target {min(unknown)}" if unknown else ""
    if program in ("resnest-d2", "resnest_d2"):
        program, *rest = rest or ["--help"]
        if program == "--help":
            return ""
    name = Path(program).stem
    if name not in {*COMMANDS, "benchmarks"} and not program.startswith("tools/"):
        return f"no command {program}"
    used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
    if unknown := used - options_of(name):
        return f"{program} has no option {min(unknown)}"
    if name == "benchmarks" and "--sections" in rest:
        values = rest[rest.index("--sections") + 1 :]
        end = next((i for i, word in enumerate(values) if word.startswith("-")), len(values))
        if unknown := set(values[:end]) - {*SECTIONS, "..."}:
            return f"no section {min(unknown)}"
    return ""


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page, PAGES[page]) == []


TRUE_NOW = [page for page in PAGES if page != "CHANGELOG.md"]  # which also tells what went


@pytest.mark.parametrize("page", TRUE_NOW)
def test_commands_exist(page):
    assert {" ".join(w): mistake(w) for w in command_lines(PAGES[page]) if mistake(w)} == {}


@pytest.mark.parametrize("page", TRUE_NOW)
def test_files_and_extras_exist(page):
    named = r"\b((?:tools|tests|configs|docs|requirements|examples)/[\w./-]+\.\w+)"
    assert [f for f in re.findall(named, PAGES[page]) if not (ROOT / f).exists()] == []
    extras = re.findall(r"resnest_d2\[([\w,-]+)\]", PAGES[page])
    assert {e for group in extras for e in group.split(",")} <= {*PROJECT["optional-dependencies"]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tools/train_net.py --config-fil x", "tools/train_net.py has no option --config-fil"),
        (
            "torchrun --nproc-per-node 2 tools/train_net.py --keep-first",
            "has no option --keep-firs",
        ),
        ("A=1 resnest-d2 predict \\\n  --opt=3", "has no option --opt"),
        ("resnest-d2 pedict --input x", "no command pedict"),
        ("resnet-d2 predict --input x", "no command resnet-d2"),
        ("tools/predictt.py --input x", "no file tools/predictt.py"),
        ("tools/train_net.py --config-file configs/mask_resnet14.yaml", "no file configs/mask_res"),
        ("make demo && make demoo  # twice", "no target demoo"),
        ("python -m benchmarks --device cpu --sections memory speed", "no section speed"),
        ("python -m benchmarks --section amp", "benchmarks has no option --section"),
        ("python -m benchmark.model_zoo", "no command benchmark.model_zoo"),
    ],
)
def test_wrong_commands_are_found(line, said):
    for text in (f"A page\n\n```sh\n{line}\n```\n", f"A page with `{line}`.\n"):
        if text.endswith("```\n") or OURS.match(line):
            (wrong,) = (mistake(words) for words in command_lines(text) if mistake(words))
            assert said in wrong


def test_broken_links_are_found():
    text = "# A b: `c`\n[1](#a-b-c) ![2](docs/no.png) [3](docs/train.md#nothing)\n`[4](code.md)`\n"
    text += '<img src="docs/demo_predictions.png"> <a href="docs/none.md">5</a> [6](#nowhere)'
    found = ["docs/no.png", "docs/train.md#nothing", "docs/none.md", "#nowhere"]
    assert broken_links("README.md", text) == found


class Targets(HTMLParser):
    """The links and the anchors of a page of the site."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given[name] for name in ("href", "src") if given.get(name)]
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}


def test_the_site_has_all_pages_and_no_broken_link(tmp_path):
    pytest.importorskip("material", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pages = {path: Targets(path.read_text()) for path in tmp_path.rglob("*.html")}
    names = {path.relative_to(tmp_path).with_suffix(".md").as_posix() for path in pages}
    assert {name.replace("README", "index") for name in PAGES} <= names
    outside = set()
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the site's root
            continue
        for link in page.links:
            url = urlsplit(link)
            if url.scheme:
                outside.add(url.scheme)
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path, link)
            if url.fragment and target in pages:
                assert unquote(url.fragment) in pages[target].anchors, (path, link)
    assert outside <= {"https", "http"}
