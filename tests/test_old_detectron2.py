"""The backbone and its builders in older Detectron2, as forks of projects still carry them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(folder, *arguments):
    command = [sys.executable, HERE / "old_detectron2.py", *arguments]
    paths = {"PYTHONPATH": str(HERE.parent)}
    result = subprocess.run(
        command, cwd=folder, env=os.environ | paths, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().endswith("works")


def test_without_what_old_ones_lack(tmp_path):
    run(tmp_path)


def test_a_checkout_of_an_old_one(tmp_path):
    """``RESNEST_D2_OLD_DETECTRON2=DIR``, of v0.2.1 or later."""
    checkout = os.environ.get("RESNEST_D2_OLD_DETECTRON2")
    if not checkout:
        pytest.skip("RESNEST_D2_OLD_DETECTRON2 names no checkout of an older Detectron2")
    run(tmp_path, str(Path(checkout).resolve()))
