"""tools/demo.py on a tiny data set, and what it draws from."""

import json

import numpy as np
from commands import run_tool
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.visualizer import Visualizer
from matplotlib.axes import Axes
from PIL import Image

from resnest_d2.commands.demo import SCALE, draw_grid, plot_curves, read_metrics


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


def test_curves_show_losses_and_ap(tmp_path, monkeypatch):
    file = tmp_path / "metrics.json"
    entry = {"total_loss": 3.0, "loss_cls": 1.0, "bbox/AP": 1.0, "segm/AP": 2.0, "lr": 0.1}
    file.write_text("\n".join(json.dumps({"iteration": i, **entry}) for i in (1, 2)))
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, label, **_: drawn.append((label, x, y)))
    plot_curves(file, tmp_path / "curves.png")
    expected = {name: ((1, 2), (value, value)) for name, value in entry.items() if name != "lr"}
    assert {label: (x, y) for label, x, y in drawn} == expected


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
