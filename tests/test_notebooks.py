"""The notebooks run as they stand, but for what they are run on."""

import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from commands import ROOT
from nbclient import NotebookClient
from PIL import Image

FEW = "SOLVER.MAX_ITER 4 TEST.EVAL_PERIOD 2 SOLVER.IMS_PER_BATCH 2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("predict", {"MODEL": "small.pth", "PICTURE": "photo.png"}, ["objects", "area"]),
        ("fine_tune", {"OUTPUT": "trained", "SETTINGS": FEW}, ["best evaluation", "image/png"]),
        ("use_in_detectron2", {"ITERATIONS": 2}, ["'p6': 64"]),
    ],
)
def test_a_notebook_runs(name, values, shown, tmp_path, small_detector, monkeypatch):
    """Cells that set what a reader would change are given other values."""
    for place in ("examples", "configs", "tests"):
        (tmp_path / place).symlink_to(ROOT / place)
    shutil.copy(small_detector, tmp_path / "small.pth")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.png")
    notebook = nbformat.read(ROOT / f"examples/{name}.ipynb", as_version=4)
    lines = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    changed = 0
    for cell in notebook.cells:
        starts = tuple(f"{key} =" for key in values)
        if any(line.startswith(starts) for line in cell.source.splitlines()):
            cell.source += "\n" + lines
            changed += 1
    assert changed == 1  # cell
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    for text in shown:
        assert text in outputs


@pytest.mark.parametrize("name", ["predict", "fine_tune", "use_in_detectron2"])
def test_a_notebook_is_kept_without_outputs(name):
    notebook = nbformat.read(ROOT / f"examples/{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in codes)
