#!/usr/bin/env python3
"""Train a small ResNeSt Mask R-CNN on the digits set and show what it learned."""

import argparse
import contextlib
import json
import logging
import math
import time
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng

from resnest_d2.commands.demo_grid import draw_grid
from resnest_d2.commands.demo_progress import ProgressBar, plot_curves
from resnest_d2.data import build_digits
from resnest_d2.engine import Trainer, choose_device, load_config, one_line_errors
from resnest_d2.inference import Predictor

ROOT = Path(__file__).resolve().parents[1]
NUM_PICTURES = 12
LOGGERS = ("detectron2", "fvcore", "resnest_d2")


def parse_args() -> argparse.Namespace:
    """Define and read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="output/demo", metavar="DIR")
    parser.add_argument(
        "--config-file", default=str(ROOT / "configs/mask_resnest14_digits.yaml"), metavar="FILE"
    )
    parser.add_argument("opts", default=[], nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser.parse_args()


def log_to_file(file: Path) -> None:
    """Keep Detectron2's long log out of the terminal, where the progress bar is; warnings stay."""
    handler = logging.FileHandler(file, mode="w")
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [handler, console]


def main() -> None:
    """Train, evaluate, draw, and print where everything is."""
    args = parse_args()
    output = Path(args.output)
    with one_line_errors():
        cfg = load_config(args.config_file, args.opts)
        cfg.OUTPUT_DIR = str(output)
        output.mkdir(parents=True, exist_ok=True)
        # Detectron2 appends to it, and the curves should show this run only.
        (output / "metrics.json").unlink(missing_ok=True)
        log_to_file(output / "log.txt")
        choose_device(cfg)
        print(f"Data set: {build_digits()}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)

    start = time.monotonic()
    # pycocotools prints its tables; they belong in the log.
    with open(output / "evaluation.txt", "w") as tables, contextlib.redirect_stdout(tables):
        with one_line_errors():
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=False)
        trainer.register_hooks([ProgressBar()])
        trainer.train()
    minutes = (time.monotonic() - start) / 60
    results = {
        # COCO's "no object of that size" is NaN, which is not JSON.
        f"{task}/{metric}": None if math.isnan(value) else value
        for task, metrics in trainer._last_eval_results.items()
        for metric, value in metrics.items()
    }
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")

    plot_curves(output / "metrics.json", output / "curves.png")
    cfg.MODEL.WEIGHTS = str(output / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.5
    images = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    draw_grid(Predictor(cfg), images[:NUM_PICTURES], output / "predictions.png")
    report(results, len(images), minutes, output)


def report(results: dict[str, float], num_images: int, minutes: float, output: Path) -> None:
    """Print the short table."""
    print(f"\nTrained and evaluated in {minutes:.1f} minutes; on {num_images} validation images:\n")
    print("         AP   AP50   AP75")
    for task, name in (("bbox", "box "), ("segm", "mask")):
        if f"{task}/AP" not in results:
            continue
        values = (results[f"{task}/{metric}"] for metric in ("AP", "AP50", "AP75"))
        print(f"  {name} " + " ".join(f"{value:6.1f}" for value in values))
    print()
    for file, what in (
        ("predictions.png", "ground truth beside prediction"),
        ("curves.png", "losses and AP over iterations"),
        ("results.json", "all metrics"),
        ("model_final.pth", "the trained model"),
    ):
        print(f"  {output / file}: {what}")


if __name__ == "__main__":
    main()
