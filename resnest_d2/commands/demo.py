"""Train a small ResNeSt Mask R-CNN on the digits set and show what it learned."""

import argparse
import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from ..analysis import analyze, read_predictions, write_report
from ..config.load import choose_device, config_dir, load_config
from ..data import build_digits
from ..data.coco_json import read_coco
from ..data.images import read_image
from ..engine import Trainer
from ..engine.options import TrainingOptions
from ..evaluation.coco import choose_implementation
from ..inference import Predictor
from ..inference.drawing import import_to_draw
from ..processes import require_alone
from . import DATA_ERRORS, one_line_errors, write_metrics

NUM_PICTURES = 12
PAIRS_PER_ROW = 3
SCALE = 2.5


def log_to_file(file: Path) -> None:
    """Keep Detectron2's long log out of the terminal, where the progress bar is; warnings stay."""
    file.unlink(missing_ok=True)  # Detectron2 appends to it
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    for name in ("detectron2", "fvcore", "resnest_d2"):
        setup_logger(str(file), name=name, configure_stdout=False).addHandler(console)


@one_line_errors(DATA_ERRORS)
def main(arguments: Sequence[str] | None = None) -> int:
    """Train, evaluate, draw, and print where everything is; the exit code is 2 on wrong input."""
    config = str(config_dir() / "mask_resnest14_digits.yaml")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR")
    parser.add_argument("--config-file", default=config, metavar="FILE")
    parser.add_argument("opts", default=[], nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args(arguments)
    output = args.output
    with one_line_errors():
        require_alone()
        cfg = load_config(args.config_file, args.opts)
        cfg.OUTPUT_DIR = str(output)
        import_to_draw("detectron2.utils.visualizer")  # found missing before anything is trained
        output.mkdir(parents=True, exist_ok=True)
        log_to_file(output / "log.txt")
        choose_device(cfg)
        print(f"Data set: {build_digits()}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)

    start = time.monotonic()
    # pycocotools prints its tables; they belong in the log.
    with open(output / "evaluation.txt", "w") as tables, contextlib.redirect_stdout(tables):
        with one_line_errors():
            trainer = Trainer(cfg, TrainingOptions(progress=True))
            trainer.resume_or_load(resume=False)
        trainer.train()
    minutes = (time.monotonic() - start) / 60
    results = write_metrics(output / "results.json", trainer._last_eval_results)
    cfg.MODEL.WEIGHTS = str(output / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.5
    images = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    draw_grid(Predictor(cfg), images[:NUM_PICTURES], output / "predictions.png")
    if choose_implementation() == "hotcoco":  # the page is built on it
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        data = read_coco(metadata.json_file, metadata.image_root)
        found = read_predictions(output / "inference/coco_instances_results.json", data)
        write_report(analyze(data, found), output, "Handwritten digits")
    report(results, len(images), minutes, output)
    return 0


def report(results: dict[str, float | None], num_images: int, minutes: float, output: Path) -> None:
    """Print the short table."""
    print(f"\nTrained and evaluated in {minutes:.1f} minutes; on {num_images} validation images:\n")
    rows = [
        (name, *(results[f"{task}/{metric}"] for metric in ("AP", "AP50", "AP75")))
        for task, name in (("bbox", "  box "), ("segm", "  mask"))
        if f"{task}/AP" in results
    ]
    print(tabulate(rows, ("", "AP", "AP50", "AP75"), "plain", floatfmt=".1f") + "\n")
    print(f"  {output}/predictions.png: ground truth beside prediction")
    print(f"  {output}/curves.png: losses and AP over iterations")
    if (output / "report.html").exists():
        print(f"  {output}/report.html: errors by kind and class, worst and best images")
    print(f"  {output}/results.json: all metrics")
    print(f"  {output}/model_final.pth: the trained model")


def draw_grid(predictor: Predictor, dicts: Sequence[dict[str, Any]], picture: str | Path) -> None:
    """Draw each image twice, with its annotations and with its detections, to a PNG file.

    The images are given in Detectron2's dataset format.
    """
    from detectron2.utils.visualizer import Visualizer
    from matplotlib.figure import Figure

    rows, columns = -(-len(dicts) // PAIRS_PER_ROW), 2 * PAIRS_PER_ROW
    figure = Figure(figsize=(2.6 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for left, right, entry in zip(axes[::2], axes[1::2], dicts, strict=False):
        image = read_image(entry["file_name"])
        truth = Visualizer(image, predictor.metadata, SCALE).draw_dataset_dict(entry).get_image()
        left.imshow(truth)
        left.set_title("ground truth", fontsize=9)
        right.imshow(predictor.draw(image, predictor(image), SCALE))
        right.set_title("prediction", fontsize=9, color="tab:blue")
    figure.savefig(picture, dpi=90)
