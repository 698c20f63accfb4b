"""examples/demo.py on a tiny data set, and what it draws from."""

import numpy as np
from commands import run_example
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools.coco import COCO

from resnest_d2.inference.gallery import truth_of


def test_the_demo_leaves_results_and_pictures(tiny_digits, tmp_path):
    output = tmp_path / "demo"
    few = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "1"]
    few += ["TEST.DETECTIONS_PER_IMAGE", "5"]
    result = run_example(
        *("demo.py", "--output", output, *few),
        cwd=tmp_path,
        DETECTRON2_DATASETS=str(tiny_digits),
    )
    assert result.returncode == 0, result.stderr
    assert "2/2" in result.stderr  # the progress bar
    assert result.stderr.count("No GPU: running on the CPU") == 1

    for name in ("predictions.png", "curves.png"):
        assert np.asarray(Image.open(output / name).convert("L")).std() > 10, "a blank picture"
        assert str(output / name) in result.stdout
    assert (output / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "on 3 validation images" in result.stdout
    assert "Average Recall" not in result.stdout


def test_the_truth_is_that_of_the_annotations(tiny_digits):
    """Its masks are pycocotools', so that truth and prediction are drawn alike."""
    root = tiny_digits / "digits"
    annotations = str(root / "annotations/digits_val.json")
    coco = COCO(annotations)
    for entry in load_coco_json(annotations, str(root / "val"), "digits_val"):
        image = np.asarray(Image.open(entry["file_name"]))
        found = truth_of(entry, image)["instances"]
        expected = coco.loadAnns(coco.getAnnIds(entry["image_id"]))
        assert len(found) == len(expected) > 0
        for mask, box, one in zip(
            found.pred_masks, found.pred_boxes.tensor.tolist(), expected, strict=True
        ):
            assert np.array_equal(mask.numpy(), coco.annToMask(one).astype(bool))
            x, y, width, height = one["bbox"]
            assert box == [x, y, x + width, y + height]
