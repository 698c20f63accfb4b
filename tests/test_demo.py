"""tools/demo.py on a tiny data set, and what it draws from."""

import errno
import json
from unittest.mock import Mock

import numpy as np
import pytest
from commands import run_tool
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from resnest_d2.commands import demo
from resnest_d2.commands.demo import SCALE, draw_grid


def test_the_demo_leaves_results_and_pictures(tiny_digits, tmp_path):
    output = tmp_path / "demo"
    output.mkdir()
    (output / "notes.txt").write_text("not the demo's")
    few = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "1"]
    few += ["TEST.DETECTIONS_PER_IMAGE", "5"]
    result = run_tool(
        *("demo.py", "--output", output, *few),
        cwd=tmp_path,
        DETECTRON2_DATASETS=str(tiny_digits),
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


def test_the_grid_shows_truth_and_predictions(tiny_digits, tmp_path, monkeypatch):
    """Two pictures for each image: what the annotations say and what the detector says."""
    root = tiny_digits / "digits"
    annotations = str(root / "annotations/digits_val.json")
    dicts = load_coco_json(annotations, str(root / "val"), "digits_val")
    calls = []

    class Detector:
        metadata = MetadataCatalog.get("digits_val")

        def __call__(self, image):
            return image.mean()

        def draw(self, image, output, scale):
            calls.append((image.shape, output == image.mean(), scale))
            return np.full((8, 8, 3), 255, np.uint8)

    truths = []
    original = Visualizer.draw_dataset_dict
    monkeypatch.setattr(
        Visualizer, "draw_dataset_dict", lambda s, d: truths.append(d) or original(s, d)
    )
    draw_grid(Detector(), dicts, tmp_path / "grid.png")
    assert truths == dicts
    assert calls == [((128, 128, 3), True, SCALE)] * len(dicts)
    assert Image.open(tmp_path / "grid.png").width > 1000


@pytest.mark.parametrize("when", ["while it trains", "behind the training"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys, when):
    full = OSError(errno.ENOSPC, "No space left on device")
    for name in ("Trainer", "log_to_file", "build_digits", "write_metrics"):
        monkeypatch.setattr(demo, name, Mock())
    work = demo.Trainer.return_value.train if when == "while it trains" else demo.write_metrics
    work.side_effect = full
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--output", str(tmp_path)])
    assert work.called
    assert "error: [Errno 28] No space left on device\n" in capsys.readouterr().err
