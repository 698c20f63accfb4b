"""The paper's claim on small data: one recipe, trained with radix 0, 1, 2 and 4.

Radix 0 is the ResNet-D of the same depth, stem and width. Runs are trained one after another from
random weights; those that ``--claim-runs`` holds are not repeated, and one that was stopped goes on
from its last checkpoint. AP is that of the last iteration, not of the best evaluation.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.layers import ShapeSpec
from scipy.stats import t

from resnest_d2 import model_zoo
from resnest_d2.files import make_folder, write_text
from resnest_d2.modeling.build import build_resnest_backbone

from .cost import backbone_cost
from .timing import Found, Section, measure, summarize

MODEL = "mask_resnest14_digits"
BASE, RADIXES = 0, (0, 1, 2, 4)
SEEDS = (1, 2, 3)
DIGITS = "digits"
# Of a data folder: `train --data` chooses the rest. Group norm would leave the attention of narrow
# stages constant.
FOLDER_OPTIONS = ("MODEL.RESNETS.NORM", "SyncBN", "SOLVER.IMS_PER_BATCH", "8")
FOLDER_OPTIONS += ("INPUT.MIN_SIZE_TEST", "256", "SOLVER.CHECKPOINT_PERIOD", "50")
METRICS = {"box": "bbox/AP", "mask": "segm/AP"}

Run = dict[str, float | int | str]


def train(data: str, radix: int, seed: int, output: Path) -> Run:
    """Train one model in a process of its own; return its last AP."""
    command = [sys.executable, "-m", "resnest_d2", "train", "--resume"]
    if data == DIGITS:
        config = model_zoo.get_config_file(MODEL)
        command += ["--config-file", config, "SOLVER.CHECKPOINT_PERIOD", "100"]
    else:
        command += ["--data", data, "--model", MODEL, *FOLDER_OPTIONS]
    command += ["MODEL.RESNETS.RADIX", str(radix), "SEED", str(seed), "TEST.EVAL_PERIOD", "0"]
    make_folder(output)
    with (output / "screen.txt").open("a") as screen:
        subprocess.run(
            [*command, "OUTPUT_DIR", str(output)], check=True, stdout=screen, stderr=screen
        )
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    last = [line for line in lines if METRICS["box"] in line][-1]
    run: Run = {"data": Path(data).name, "radix": radix, "seed": seed}
    run["iterations"] = last["iteration"] + 1
    return run | {name: round(last[metric], 2) for name, metric in METRICS.items()}


def measure_claim(args: argparse.Namespace) -> Found:
    """Train what is missing, and measure what each radix costs.

    Returns:
        "runs", and by radix "costs": parameters and multiply-adds of the backbone at 224x224, and
        its seconds at 256x256.
    """
    file, runs = args.claim_runs, []
    if file.exists():
        runs = json.loads(file.read_text())
    for seed in args.claim_seeds:  # so that what is there is comparable at any time
        for data in args.claim_data:
            for radix in RADIXES:
                key = (Path(data).name, radix, seed)
                if key in ((run["data"], run["radix"], run["seed"]) for run in runs):
                    continue
                output = args.claim_output / "-".join(map(str, key))
                runs.append(train(data, radix, seed, output))
                write_text(file, json.dumps(runs, indent=1) + "\n")
    return {"runs": runs, "costs": _costs(args.rounds)}


@torch.no_grad()
def _costs(rounds: int) -> Found:
    costs, calls = {}, {}
    image = torch.rand(1, 3, 256, 256)
    for radix in RADIXES:
        cfg = model_zoo.get_config(MODEL)
        cfg.MODEL.RESNETS.RADIX = radix
        cost = backbone_cost(cfg)
        costs[str(radix)] = {"parameters": cost.parameters, "macs": cost.macs}
        backbone = build_resnest_backbone(cfg, ShapeSpec(channels=3)).eval()
        calls[str(radix)] = lambda backbone=backbone: backbone(image)
    for radix, times in summarize(measure(calls, rounds, warmup=3), str(BASE)).items():
        costs[radix] |= times
    return costs


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of paired differences and the ends of its 95% interval by Student's t."""
    mean, number = statistics.mean(differences), len(differences)
    if number < 2:
        return mean, -math.inf, math.inf
    half = t.ppf(0.975, number - 1) * statistics.stdev(differences) / math.sqrt(number)
    return mean, mean - half, mean + half


def compare(runs: Sequence[Run], data: str, metric: str, radix: int) -> tuple[list[float], str]:
    """AP of a radix by seed, and its differences from radix 0 of the same seeds in words."""
    by_radix = [
        {run["seed"]: run[metric] for run in runs if (run["data"], run["radix"]) == (data, one)}
        for one in (radix, BASE)
    ]
    values, base = by_radix
    paired = [values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())]
    if radix == BASE or not paired:
        return list(values.values()), ""
    mean, low, high = interval(paired)
    return list(values.values()), f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def render(found: Found) -> list[str]:
    """A table of costs, and one of AP for each data set."""
    lines = ["## What a radix costs (backbone)", ""]
    lines += [
        "| radix | parameters (M) | multiply-adds (M, 224x224) | ms (256x256) | times as fast |"
    ]
    lines += ["|---:|---:|---:|---:|---:|"]
    for radix, cost in found["costs"].items():
        numbers = f"{cost['parameters'] / 1e6:.2f} | {cost['macs'] / 1e6:.0f}"
        time = f"{1000 * cost['median']:.1f} | {cost['times as fast']:.2f}"
        lines.append(f"| {radix} | {numbers} | {time} |")
    for data in dict.fromkeys(run["data"] for run in found["runs"]):
        lines += ["", f"## AP on {data}: mean and standard deviation over seeds", ""]
        lines += ["| radix | seeds | box | beside radix 0 (95%) | mask | beside radix 0 (95%) |"]
        lines += ["|---:|---:|---:|---:|---:|---:|"]
        for radix in RADIXES:
            cells = []
            for metric in METRICS:
                values, difference = compare(found["runs"], data, metric, radix)
                if values:
                    spread = statistics.stdev(values) if len(values) > 1 else math.nan
                    cells += [f"{statistics.mean(values):.1f} ± {spread:.1f}", difference]
            if cells:
                lines.append(f"| {radix} | {len(values)} | {' | '.join(cells)} |")
    return lines


SECTION = Section(
    measure_claim,
    render,
    {
        "--claim-data": {
            "nargs": "+",
            "default": [DIGITS],
            "metavar": "DATA",
            "help": "digits, or folders as `resnest-d2 train --data` takes them",
        },
        "--claim-seeds": {"nargs": "+", "type": int, "default": SEEDS, "help": "of the runs"},
        "--claim-runs": {
            "type": Path,
            "default": Path(__file__).with_name("claim.json"),
            "metavar": "FILE",
            "help": "runs that are done; new ones are added",
        },
        "--claim-output": {
            "type": Path,
            "default": Path("output/claim"),
            "metavar": "DIR",
            "help": "of checkpoints and logs, 25 MB a run",
        },
    },
)
