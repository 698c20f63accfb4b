"""What a long training leaves behind: memory, open files, threads and processes over time."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase

from resnest_d2 import model_zoo
from resnest_d2.config.load import load_config
from resnest_d2.data import DigitsSpec, build_digits
from resnest_d2.engine import Trainer

from .timing import Report

PERIOD = 100  # iterations between evaluations, each of which is followed by a look
SPEC = DigitsSpec(train_images=24, val_images=6)
OPTIONS = {
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "SOLVER.IMS_PER_BATCH": "2",
    "DATALOADER.NUM_WORKERS": "1",
}


def state() -> dict[str, int]:
    """This process's resident memory in KiB, open files, threads, and children that are dead."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = Path("/proc/self/task").glob("*/children")
    pids = [pid for file in children for pid in file.read_text().split()]
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "zombies": states.count("Z"),
    }


class _Look(HookBase):
    def __init__(self) -> None:
        self.seen: list[dict[str, int]] = []

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % PERIOD == 0:
            self.seen.append(state())


def train(iterations: int, device: str) -> list[dict[str, int]]:
    """Train a small Mask R-CNN, and look at the process after each evaluation."""
    look = _Look()
    with tempfile.TemporaryDirectory() as folder:
        build_digits(Path(folder) / "digits", SPEC)
        os.environ["DETECTRON2_DATASETS"] = folder
        given = {**OPTIONS, "SOLVER.MAX_ITER": str(iterations), "MODEL.DEVICE": device}
        given |= {"SOLVER.CHECKPOINT_PERIOD": str(PERIOD), "TEST.EVAL_PERIOD": str(PERIOD)}
        opts = [part for pair in given.items() for part in pair]
        config = model_zoo.get_config_file("mask_resnest14_digits")
        trainer = Trainer(load_config(config, [*opts, "OUTPUT_DIR", f"{folder}/output"]))
        trainer.register_hooks([look])
        trainer.train()
    return look.seen


def run(args: argparse.Namespace) -> Report:
    """The section "endurance" of ``python -m benchmarks``."""
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # the other half loads
    seen = train(args.endurance, args.device)
    half = seen[len(seen) // 2 :]
    lines = [
        f"## {args.endurance} iterations with an evaluation and a checkpoint each {PERIOD}",
        "",
        "| | first | middle | last | slope of the second half, per 100 iterations |",
        "|---|---:|---:|---:|---:|",
    ]
    report: dict[str, Any] = {"seen": seen}
    for name in seen[0]:
        values = [one[name] for one in half]
        slope = float(np.polyfit(range(len(values)), values, 1)[0]) if len(values) > 1 else 0.0
        report[f"{name} slope"] = slope
        unit = "memory (KiB)" if name == "memory" else name
        lines.append(
            f"| {unit} | {seen[0][name]} | {half[0][name]} | {seen[-1][name]} | {slope:.2f} |"
        )
    return lines, report
