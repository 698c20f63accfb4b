"""The one way of timing: competitors take turns, so that disturbances meet all of them alike."""

import argparse
import datetime
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import detectron2
import torch

import resnest_d2

# Whose versions figures may depend on, where they are installed.
PACKAGES = ("torchvision", "resnest", "timm", "numpy", "pycocotools", "hotcoco")
PACKAGES += ("onnxruntime", "openvino")

# What a section found, as it is written to JSON: text, numbers, lists and dictionaries.
Found = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """One part of ``python -m benchmarks``."""

    measure: Callable[[argparse.Namespace], Found]
    """Gives what was measured."""
    render: Callable[[Found], list[str]]
    """Lines of Markdown from that alone."""
    options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Options of the command line that only this section reads, as ``add_argument`` takes them."""


def measure(
    competitors: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Run competitors in turn.

    Args:
        competitors: what to call, by name.
        rounds: how often each is timed.
        warmup: how often each is called before that.
        device: whose work is waited for.

    Returns:
        the seconds of each round.
    """
    found: dict[str, list[float]] = {name: [] for name in competitors}
    for index in range(warmup + rounds):
        for name, run in competitors.items():
            seconds = time_call(run, device)
            if index >= warmup:
                found[name].append(seconds)
    return found


def time_call(run: Callable[[], Any], device: str = "cpu") -> float:
    """Seconds of one call and of the work that it leaves to a GPU."""
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The values that a quarter, a half and three quarters are below."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of how many times faster ours are; each round compares runs that followed."""
    return quartiles([their / our for our, their in zip(ours, theirs, strict=True)])


def summarize(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Found]:
    """Medians, ratios to a baseline and every run, by competitor."""
    found: dict[str, Found] = {}
    for name, seconds in times.items():
        low, middle, high = speedup(seconds, times[baseline])
        found[name] = {"median": statistics.median(seconds), "times as fast": middle}
        found[name] |= {"its quartiles": [low, high], "seconds": list(seconds)}
    return found


def table(title: str, found: Mapping[str, Found], baseline: str) -> list[str]:
    """Lines of a Markdown table of what :func:`summarize` gives with this baseline."""
    lines = [f"## {title}", "", f"| | median (s) | times as fast as {baseline} | quartiles |"]
    lines.append("|---|---:|---:|---|")
    for name, one in found.items():
        low, high = one["its quartiles"]
        cells = f"{one['median']:.4f} | {one['times as fast']:.2f} | {low:.2f} to {high:.2f}"
        lines.append(f"| {name} | {cells} |")
    return lines


def environment(device: str) -> Found:
    """What every figure depends on: versions, threads, the machine and the day."""
    found = {
        "resnest_d2": resnest_d2.__version__,
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device == "cuda" else device,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    """Its name, where Linux says it, and the instructions that PyTorch takes."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or ['unknown'])[0]} ({torch.backends.cpu.get_cpu_capability()})"
