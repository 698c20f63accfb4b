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
from resnest_d2.config import InputError

# Whose versions figures may depend on, where they are installed.
PACKAGES = ("torchvision", "resnest", "timm", "numpy", "pycocotools", "hotcoco", "onnxruntime")
PACKAGES += ("openvino",)
# Of the square matrices whose product is the machine's limit.
MATMUL_SIZE = 4096

# What a section found, as it is written to JSON: text, numbers, lists and dictionaries.
Found = dict[str, Any]


@dataclass
class Progress:
    """What a section of an earlier, interrupted call had found, and where to keep more of it."""

    found: Found = field(default_factory=dict)
    keep: Callable[[Found], None] = lambda found: None


@dataclass(frozen=True)
class Section:
    """One part of ``python -m benchmarks``."""

    measure: Callable[[argparse.Namespace, Progress], Found]
    """Gives what was measured. It may go on from its progress and keep more there."""
    render: Callable[[Found], list[str]]
    """Lines of Markdown from that alone, so that a file of results can be printed again."""
    options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Options of the command line that only this section reads, as ``add_argument`` takes them."""


@dataclass(frozen=True)
class Times:
    """Of one competitor, in seconds, in the order in which they were taken, after a warm-up."""

    seconds: tuple[float, ...]
    warmup: int = 0

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def ratio_to(self, other: "Times") -> tuple[float, float, float]:
        """How many times faster than another: median of the rounds, and their quartiles.

        Each round compares two runs that followed each other.
        """
        pairs = zip(self.seconds, other.seconds, strict=True)
        low, middle, high = quartiles([theirs / ours for ours, theirs in pairs])
        return middle, low, high


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The values that a quarter, a half and three quarters are below."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def summarize(times: Mapping[Any, Times], baseline: str | None = None) -> dict[Any, Found]:
    """Medians, quartiles and every run, by competitor; with a baseline also ratios to it."""
    found: dict[Any, Found] = {}
    for name, one in times.items():
        low, middle, high = quartiles(one.seconds)
        found[name] = {"median": middle, "quartiles": [low, high], "warmup": one.warmup}
        if baseline is not None:
            ratio, low, high = one.ratio_to(times[baseline])
            found[name] |= {"times as fast": ratio, "its quartiles": [low, high]}
        found[name]["seconds"] = list(one.seconds)
    return found


def measure(
    competitors: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    device: str = "cpu",
) -> dict[str, Times]:
    """Run competitors in turn, in this process; see :mod:`benchmarks.apart` for one of each.

    Args:
        competitors: what to call, by name.
        rounds: how often each is timed.
        warmup: how often each is called before that.
        device: whose work is waited for.

    Raises:
        ValueError: no rounds, or a negative warm-up.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be at least 1 and warm-up 0, got {rounds} and {warmup}")
    found: dict[str, list[float]] = {name: [] for name in competitors}
    for index in range(warmup + rounds):
        for name, run in competitors.items():
            seconds = time_call(run, device)
            if index >= warmup:
                found[name].append(seconds)
    return {name: Times(tuple(seconds), warmup) for name, seconds in found.items()}


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


def matrix_product(device: str) -> Callable[[], torch.Tensor]:
    """A competitor of ``MATMUL_SIZE ** 3`` multiply-adds, as fast as the machine does them."""
    a, b = (torch.rand(MATMUL_SIZE, MATMUL_SIZE, device=device) for _ in range(2))
    return lambda: a @ b


def table(title: str, found: Mapping[str, Found], baseline: str) -> list[str]:
    """Lines of a Markdown table of what :func:`summarize` gives with this baseline."""
    lines = [f"## {title}", "", f"| | median (s) | times as fast as {baseline} | quartiles |"]
    lines.append("|---|---:|---:|---|")
    for name, one in found.items():
        low, high = one["its quartiles"]
        cells = f"{one['median']:.4f} | {one['times as fast']:.2f} | {low:.2f} to {high:.2f}"
        lines.append(f"| {name} | {cells} |")
    return lines


def at_least(least: int) -> Callable[[str], int]:
    """An option's ``type``: a whole number that is not too small."""

    def integer(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return integer


def environment(device: str) -> Found:
    """What every figure depends on: versions, threads, the machine and the day.

    Raises:
        InputError: the device is not "cpu", nor a GPU that is there.
    """
    is_gpu = device.startswith("cuda")
    if is_gpu and not torch.cuda.is_available():
        raise InputError(f"--device {device}: no GPU was found")
    if not is_gpu and device != "cpu":
        raise InputError(f"--device must be cpu or cuda, got {device!r}")
    found = {
        "resnest_d2": resnest_d2.__version__,
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if is_gpu else device,
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
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or ['unknown'])[0]} ({torch.backends.cpu.get_cpu_capability()})"
