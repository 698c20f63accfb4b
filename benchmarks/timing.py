"""Times of competitors that alternate in one process, so that disturbances meet all of them."""

import datetime
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import torch

import resnest_d2

# Whose versions figures may depend on, where they are installed.
PACKAGES = ("torchvision", "resnest", "timm", "numpy", "pillow", "simplejpeg", "pycocotools")
PACKAGES += ("hotcoco", "faster-coco-eval")
# Of the square matrices whose product is the machine's limit.
MATMUL_SIZE = 4096

# Lines of Markdown, and what goes into the JSON file.
Report = tuple[list[str], dict[str, Any]]


@dataclass(frozen=True)
class Times:
    """Of one competitor, in seconds, in the order in which they were taken, after a warm-up."""

    seconds: tuple[float, ...]
    warmup: int = 0

    @property
    def median(self) -> float:
        """Half of the runs took less."""
        return statistics.median(self.seconds)

    def ratio_to(self, other: "Times") -> tuple[float, float, float]:
        """How many times faster than another: median of the rounds, and their quartiles.

        Each round compares two runs that followed each other.
        """
        low, middle, high = quartiles(
            [b / a for a, b in zip(self.seconds, other.seconds, strict=True)]
        )
        return middle, low, high


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The values that a quarter, a half and three quarters are below."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def as_json(times: Mapping[Any, Times], baseline: str | None = None) -> dict[Any, dict[str, Any]]:
    """Medians, quartiles and every run, by competitor; with a baseline also ratios to it."""
    found: dict[Any, dict[str, Any]] = {}
    for name, one in times.items():
        low, middle, high = quartiles(one.seconds)
        found[name] = {"median": middle, "quartiles": [low, high], "warmup": one.warmup}
        if baseline is not None:
            ratio, low, high = one.ratio_to(times[baseline])
            found[name] |= {"times as fast": ratio, "its quartiles": [low, high]}
        found[name]["seconds"] = one.seconds
    return found


def measure(
    competitors: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    device: str = "cpu",
) -> dict[str, Times]:
    """Run competitors in turn.

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
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if index >= warmup:
                found[name].append(time.perf_counter() - start)
    return {name: Times(tuple(seconds), warmup) for name, seconds in found.items()}


def matrix_product(device: str) -> Callable[[], torch.Tensor]:
    """A competitor of ``MATMUL_SIZE ** 3`` multiply-adds, which nothing is faster at."""
    a, b = (torch.rand(MATMUL_SIZE, MATMUL_SIZE, device=device) for _ in range(2))
    return lambda: a @ b


def synchronize(device: str) -> None:
    """Wait until a device's work is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def environment(device: str) -> dict[str, Any]:
    """What every figure depends on: versions, threads, the machine and the day.

    Raises:
        ValueError: it is not "cpu", nor a GPU that is there.
    """
    is_gpu = device.startswith("cuda")
    if is_gpu and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: no GPU was found")
    if not is_gpu and device != "cpu":
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
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


def table(title: str, times: Mapping[str, Times], baseline: str) -> list[str]:
    """Lines of a Markdown table: medians, and ratios to one of the competitors."""
    lines = [f"## {title}", "", f"| | median (s) | times as fast as {baseline} | quartiles |"]
    lines.append("|---|---:|---:|---|")
    for name, found in times.items():
        middle, low, high = found.ratio_to(times[baseline])
        lines.append(f"| {name} | {found.median:.4f} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    return lines
