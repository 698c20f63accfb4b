"""The commands of docs/analyze.md run as they stand, on a few digits."""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from commands import ROOT

pytest.importorskip("hotcoco", reason="needs the extra fast-eval")
TEXT = (ROOT / "docs/analyze.md").read_text().replace("\\\n", " ")
LINES = [shlex.split(line) for line in re.findall(r"^coco .*$", TEXT, re.MULTILINE)]
COCO = [str(Path(sys.executable).parent / "coco")]


@pytest.fixture
def folder(tiny_digits, tmp_path):
    """The files that the page names: one of the two models finds every object, one every other."""
    root = tiny_digits / "digits"
    (tmp_path / "annotations.json").write_text((root / "annotations/digits_val.json").read_text())
    (tmp_path / "pictures").symlink_to(root / "val")
    truth = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    found = [{**{key: one[key] for key in keys}, "score": 0.9} for one in truth]
    for name, step in (("results", 1), ("first", 1), ("second", 2)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found[::step]))
    return tmp_path


def test_every_command_is_there():
    assert [line[1] for line in LINES] == ["eval", "compare", "explore"]


@pytest.mark.parametrize("line", LINES[:2], ids=lambda line: line[1])
def test_evaluation_and_comparison(line, folder):
    result = subprocess.run(
        COCO + line[1:], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    if line[1] == "eval":
        assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
        assert re.search(r"Average Precision .* = 1.000", result.stdout)
        assert "TIDE" in result.stdout
    else:
        assert "AP" in result.stdout


def test_browsing(folder):
    pytest.importorskip("fastapi", reason="needs hotcoco[browse]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*COCO, *LINES[2][1:], "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stdout=-3, stderr=subprocess.PIPE) as process:
        try:
            for _ in range(600):
                try:
                    page = urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=1).read()
                    break
                except OSError:
                    assert process.poll() is None, process.stderr.read()
                    time.sleep(0.1)
            assert b"hotcoco" in page.lower()
        finally:
            process.terminate()
