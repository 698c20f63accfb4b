#!/usr/bin/env python3
"""Train a small ResNeSt Mask R-CNN on handwritten digits, evaluate it and draw what it learned.

``make demo`` runs this. Options override the config: ``demo.py --output DIR SOLVER.MAX_ITER 20``.
"""

import argparse
import contextlib
import io
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Instances
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from matplotlib.figure import Figure
from tabulate import tabulate

import resnest_d2
from resnest_d2.data import build_digits
from resnest_d2.data.images import read_image
from resnest_d2.engine import Trainer, TrainingOptions, choose_device, load_config
from resnest_d2.inference import Result

NUM_PICTURES, PAIRS_PER_ROW, SCALE = 12, 3, 2.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, draw, and print where everything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args(arguments)
    output: Path = args.output
    output.mkdir(parents=True, exist_ok=True)
    log_to_file(output / "log.txt")

    config_file = resnest_d2.model_zoo.get_config_file("mask_resnest14_digits")
    cfg = load_config(config_file, [*args.opts, "OUTPUT_DIR", str(output)])
    choose_device(cfg)
    print(f"Data set: {build_digits()}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    start = time.monotonic()
    trainer = Trainer(cfg, TrainingOptions(progress=True))
    trainer.resume_or_load(resume=False)
    metrics = flatten_results_dict(trainer.train())
    minutes = (time.monotonic() - start) / 60

    images = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    options = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5"]
    predictor = resnest_d2.Predictor(output, device=cfg.MODEL.DEVICE, options=options)
    draw_grid(predictor, images[:NUM_PICTURES], output / "predictions.png")
    write_report(MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file, output)
    print(
        f"\nTrained and evaluated in {minutes:.1f} minutes; on {len(images)} validation images:\n"
    )
    rows = [
        (name, *(metrics[f"{task}/{metric}"] for metric in ("AP", "AP50", "AP75")))
        for task, name in (("bbox", "  box "), ("segm", "  mask"))
    ]
    print(tabulate(rows, ("", "AP", "AP50", "AP75"), "plain", floatfmt=".1f") + "\n")
    print(f"  {output}/predictions.png: ground truth beside prediction")
    print(f"  {output}/curves.png: losses and AP over iterations")
    print(f"  {output}/report.pdf: AP by class, kinds of errors, calibration (hotcoco)")
    print(f"  {output}/metrics.json: losses and all metrics")
    print(f"  {output}/model_final.pth: the trained model")


def log_to_file(file: Path) -> None:
    """Keep Detectron2's long log out of the terminal, where the progress bar is; warnings stay."""
    file.unlink(missing_ok=True)  # Detectron2 appends to it
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    for name in ("detectron2", "fvcore", "resnest_d2"):
        setup_logger(str(file), name=name, configure_stdout=False).addHandler(console)


def write_report(annotations: str, output: Path) -> None:
    """Leave hotcoco's report of the masks beside the predictions."""
    import hotcoco
    import hotcoco.plot

    predictions = output / "inference/coco_instances_results.json"
    # Where a prediction has a box, its area and not the mask's would decide what is small.
    found = [
        {k: v for k, v in one.items() if k != "bbox"} for one in json.loads(predictions.read_text())
    ]
    truth = hotcoco.COCO(annotations)
    evaluation = hotcoco.COCOeval(truth, truth.load_res(found), "segm")
    with contextlib.redirect_stdout(io.StringIO()):  # its table is in the report
        evaluation.run()
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # fonts that it lacks
    hotcoco.plot.report(evaluation, save_path=output / "report.pdf", title="Handwritten digits")


def draw_grid(
    predictor: resnest_d2.Predictor, dicts: Sequence[dict[str, Any]], picture: Path
) -> None:
    """Draw images of Detectron2's dataset format twice: with annotations, with detections."""
    rows = -(-len(dicts) // PAIRS_PER_ROW)
    figure = Figure(figsize=(5.2 * PAIRS_PER_ROW, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * PAIRS_PER_ROW, squeeze=False).ravel()
    for left, right, entry in zip(axes[::2], axes[1::2], dicts, strict=False):
        image = read_image(entry["file_name"])
        truth = Result(truth_of(entry, image), image, predictor.metadata)
        left.imshow(truth.plot(SCALE))
        left.set_title("ground truth", fontsize=9)
        right.imshow(predictor(image).plot(SCALE))
        right.set_title("prediction", fontsize=9, color="tab:blue")
    for axis in axes:
        axis.axis("off")
    figure.savefig(picture, dpi=90)


def truth_of(entry: dict[str, Any], image: np.ndarray) -> dict[str, Instances]:
    """The annotations of an image in the format of a model's output, without scores."""
    true = annotations_to_instances(entry["annotations"], image.shape[:2], mask_format="bitmask")
    found = Instances(true.image_size, pred_boxes=true.gt_boxes, pred_classes=true.gt_classes)
    found.pred_masks = true.gt_masks.tensor
    return {"instances": found}


if __name__ == "__main__":
    main()
