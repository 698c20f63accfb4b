#!/usr/bin/env python3
"""Train a small ResNeSt Mask R-CNN on handwritten digits, evaluate it and draw what it learned.

``make demo`` runs this. Options override the config: ``demo.py --output DIR SOLVER.MAX_ITER 20``.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

import resnest_d2
from resnest_d2.data import build_digits
from resnest_d2.engine import Trainer, TrainingOptions, choose_device, load_config
from resnest_d2.evaluation.report import write_report
from resnest_d2.inference.gallery import draw_gallery


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
    predictor = resnest_d2.Predictor(output, device=cfg.MODEL.DEVICE)
    draw_gallery(predictor, images, output / "predictions.png")
    annotations = MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file
    results = output / "inference/coco_instances_results.json"
    write_report(annotations, results, "segm", output / "report.pdf", "Handwritten digits")
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


if __name__ == "__main__":
    main()
