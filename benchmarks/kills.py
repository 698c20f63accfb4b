"""The average precision of trainings that are killed and resumed, beside those that are not."""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from resnest_d2 import model_zoo
from resnest_d2.data import build_digits
from resnest_d2.engine.watch import read_metrics

from .timing import Report

METRICS = ("bbox/AP", "segm/AP")
WAIT = 15  # seconds from a start to a kill, at least; imports and the data set take some of them


def train(folder: Path, seed: int, kills: int, args: argparse.Namespace) -> dict[str, float]:
    """Train on the digits by the command, which is killed at random moments and resumed.

    Returns:
        the metrics at the end, and "kills", how many there were before it.
    """
    moments, done = random.Random(seed), 0
    keys = {
        "OUTPUT_DIR": folder,
        "SEED": seed,
        "MODEL.DEVICE": args.device,
        "SOLVER.MAX_ITER": args.kill_iterations,
        "SOLVER.STEPS": f"({args.kill_iterations * 2 // 3},{args.kill_iterations * 8 // 9})",
        "SOLVER.CHECKPOINT_PERIOD": 10,
        "TEST.EVAL_PERIOD": 0,
    }
    config = model_zoo.get_config_file("mask_resnest14_digits")
    command = [sys.executable, "-m", "resnest_d2", "train", "--resume", "--keep-last", "2"]
    command += ["--config-file", config, *(str(part) for pair in keys.items() for part in pair)]
    while True:
        with (folder.parent / f"{folder.name}.log").open("a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            seconds = WAIT + moments.expovariate(1 / args.kill_after) if done < kills else None
            code = process.wait(seconds)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
    if code:
        raise RuntimeError(f"a training ended with {code}; its log is {log.name}")
    series = read_metrics(folder / "metrics.json")
    return {name: series[name][-1][1] for name in METRICS} | {"kills": done}


def run(args: argparse.Namespace) -> Report:
    """The section "kills" of ``python -m benchmarks``: as many runs of either kind, in turn."""
    build_digits()
    kinds: dict[str, list[dict[str, float]]] = {"not killed": [], "killed": []}
    with tempfile.TemporaryDirectory() as name:
        for seed in range(1, args.kill_runs + 1):
            for kind, runs in kinds.items():
                kills = args.kills if kind == "killed" else 0
                runs.append(train(Path(name) / f"{kind} {seed}", seed, kills, args))
    lines = [
        f"## {args.kill_runs} trainings of {args.kill_iterations} iterations, with SIGKILL and not",
        "",
        "| | kills | box AP: mean, least, most | mask AP: mean, least, most |",
        "|---|---:|---:|---:|",
    ]
    for kind, runs in kinds.items():
        cells = []
        for metric in METRICS:
            values = [run[metric] for run in runs]
            cells.append(f"{statistics.mean(values):.1f}, {min(values):.1f}, {max(values):.1f}")
        kills = sum(int(run["kills"]) for run in runs)
        lines.append(f"| {kind} | {kills} | {' | '.join(cells)} |")
    return lines, {"runs": kinds}
