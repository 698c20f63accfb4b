"""Train or evaluate a detector: Detectron2's command line, and options for one's own data."""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import detectron2.utils.comm as comm
from detectron2.engine import default_argument_parser
from detectron2.utils.logger import setup_logger

from ..config import InputError, MissingPackageError
from ..data.images import set_max_pixels
from ..engine.checkpoint import BEST, FINAL
from ..engine.finetune import ANNOTATIONS, add_arguments
from ..engine.hooks import read_metrics
from ..engine.launch import Job, once, prepare, start_processes, work
from ..engine.options import TrainingOptions
from ..engine.terminal import metric_label
from ..engine.trainer import evaluate_model, load_for_evaluation
from ..evaluation.report import write_report
from ..inference import Predictor
from ..inference.gallery import draw_gallery
from . import add_max_pixels, one_line_errors

logger = logging.getLogger(__name__)

AFTER_FIRST = 3  # seconds


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = default_argument_parser()
    add_arguments(parser)
    text = "processes to start on the CPUs of this machine, which share each batch (default: 1)"
    parser.add_argument("--num-processes", type=int, metavar="N", help=text)
    TrainingOptions.add_arguments(parser)
    add_max_pixels(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if the arguments, the config or the data are wrong."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    own = args.data or args.train_json  # which choose a model
    if not (args.config_file or args.model or args.eval_only or own):
        parser.error(
            "--data DIR, or --config-file such as configs/cascade_resnest101.yaml, is needed"
        )
    with one_line_errors():
        setup_logger(name="resnest_d2")
        set_max_pixels(args.max_pixels)
        job, num_processes = prepare(args)
        code = start_processes(
            _work, (job,), num_processes, args.num_machines, args.machine_rank, args.dist_url
        )
        if args.data and not (code or args.eval_only or args.machine_rank):
            summarize(job)  # in all processes of torchrun, which evaluate together
        return code


def _work(job: Job) -> None:
    """Run in each process."""
    set_max_pixels(job.args.max_pixels)
    with one_line_errors():
        try:
            work(job)
        except InputError:
            if comm.get_rank():
                time.sleep(AFTER_FIRST)  # if the first process says the same, it ends this one
            raise


def _read_best(folder: Path) -> tuple[dict[str, Any], dict[str, dict[int, float]]]:
    """The note on the best evaluation, empty if there is none, and each metric by iteration."""
    file = folder / f"{BEST}.json"
    if not file.is_file():
        return {}, {}
    curves = read_metrics(folder / "metrics.json")
    return json.loads(file.read_text()), {name: dict(points) for name, points in curves.items()}


def summarize(job: Job) -> None:
    """Draw what the best weights find, write hotcoco's report on them, and print where all is.

    A drawing whose library is not installed is named and left out.
    """
    cfg, folder = job.cfg, Path(job.cfg.OUTPUT_DIR)
    note, curves = once(lambda: _read_best(folder))  # which the first process has just written
    if not note:
        if comm.is_main_process():
            print(f"\nNo evaluation gave an AP; {folder / FINAL}.pth holds the last weights.")
        return
    weights, iteration = folder / f"{BEST}.pth", note["iteration"]
    if iteration != max(curves[note["metric"]]):  # what was evaluated last is not the best
        evaluate_model(cfg, load_for_evaluation(cfg, str(weights)))
    if not comm.is_main_process():
        return
    results, annotations = folder / "inference/coco_instances_results.json", folder / ANNOTATIONS
    task = note["metric"].partition("/")[0]
    files = {
        "predictions.png": "annotations beside predictions",
        "curves.png": "losses and AP over iterations",
        "report.pdf": "AP by class, kinds of errors, calibration (hotcoco)",
    }
    try:
        predictor = Predictor(weights, device=cfg.MODEL.DEVICE)
        draw_gallery(predictor, job.data[1].dicts, folder / "predictions.png")
        write_report(annotations, results, task, folder / "report.pdf", folder.name)
    except MissingPackageError as error:
        logger.warning("%s", error)
    measured = {metric_label(name): points.get(iteration) for name, points in curves.items()}
    values = [f"{k} AP {v:.1f}" for k, v in measured.items() if k and v is not None]
    done = min(iteration + 1, cfg.SOLVER.MAX_ITER)
    print(f"\nThe best evaluation was that of iteration {done}: {', '.join(values)}.")
    print(f"  {weights}: its weights, with config and classes")
    for name, what in files.items():
        if (folder / name).is_file():
            print(f"  {folder / name}: {what}")
    words = {"--model": weights, "--input": job.data[1].image_root, "--output": folder / "drawn"}
    print("Try it on your own pictures:")
    print("  resnest-d2 predict", *(f"{key} {quote(str(path))}" for key, path in words.items()))
