"""Measuring speed and memory side by side; ``python -m benchmarks`` is the command."""

from collections.abc import Callable

from . import (
    amp,
    backbones,
    coco,
    detectors,
    endurance,
    exported,
    growth,
    kills,
    loading,
    schedule,
    training,
)
from .timing import Report

# What the command's --sections names; each takes the parsed command line.
SECTIONS: dict[str, Callable[..., Report]] = {
    "backbones": backbones.run,
    "detectors": detectors.run_detectors,
    "sizes": detectors.run_sizes,
    "training": training.run_steps,
    "memory": training.run_memory,
    "amp": amp.run,
    "coco": coco.run,
    "loading": loading.run,
    "growth": growth.run,
    "endurance": endurance.run,
    "kills": kills.run,
    "exported": exported.run,
    "schedule": schedule.run,
}
