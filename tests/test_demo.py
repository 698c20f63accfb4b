"""tools/demo.py on a tiny data set, and what it draws from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from resnest_d2.engine.progress import plot_curves, read_metrics

ROOT = Path(__file__).parents[1]


def test_the_demo_leaves_results_and_pictures(tiny_digits, tmp_path):
    output = tmp_path / "demo"
    output.mkdir()
    (output / "notes.txt").write_text("not the demo's")
    command = [sys.executable, str(ROOT / "tools/demo.py"), "--output", str(output)]
    command += ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "1"]
    command += ["TEST.DETECTIONS_PER_IMAGE", "5"]
    result = subprocess.run(
        command,
        env={**os.environ, "DETECTRON2_DATASETS": str(tiny_digits)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "2/2" in result.stderr  # the progress bar
    assert result.stderr.count("No GPU was found") == 1

    text = (output / "results.json").read_text()
    results = json.loads(text, parse_constant=lambda name: 1 / 0)  # NaN is not JSON
    for task in ("bbox", "segm"):
        assert 0 <= results[f"{task}/AP"] <= 100
        assert set(results) >= {f"{task}/{m}" for m in ("AP", "AP50", "AP75", "AP-0", "AP-9")}
    for name in ("predictions.png", "curves.png"):
        assert np.asarray(Image.open(output / name).convert("L")).std() > 10, "a blank picture"
        assert str(output / name) in result.stdout
    assert "on 3 validation images" in result.stdout
    assert (output / "notes.txt").exists()


def test_metrics_of_a_resumed_run_count_once(tmp_path):
    lines = [
        {"iteration": 19, "total_loss": 3.0, "bbox/AP": 1.0},
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 39, "total_loss": 2.5, "rank": "x"},
    ]
    file = tmp_path / "metrics.json"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert read_metrics(file) == {"total_loss": [(19, 3.0), (39, 2.5)], "bbox/AP": [(19, 1.0)]}
    plot_curves(file, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 600
