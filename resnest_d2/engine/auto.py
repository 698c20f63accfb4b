"""Settings for fine-tuning that follow from the data and the machine: ``--auto``."""

import logging
import math
import statistics
from collections.abc import Collection
from typing import Any

import torch
from tabulate import tabulate

from ..config import ConfigError
from ..config.settings import Settings
from ..data.coco_json import CocoData

logger = logging.getLogger(__name__)

# The rules' numbers; docs/own_data.md has the rules in words.
SMALL_OBJECT = 24  # pixels that the square root of a small object's area shall have
GREATEST_ENLARGEMENT = 2
GIGABYTES_PER_IMAGE = 4  # Mask R-CNN with ResNeSt-50 in training, at 800 x 1333
# By kind of device: the greatest shorter side, how often a run sees each image, and how many images
# it sees at least, counted as often as they are seen.
GREATEST_SIDE = {"cpu": 384, "cuda": 800}
TIMES_SEEN = {"cpu": 20, "cuda": 40}
LEAST_SEEN = {"cpu": 2000, "cuda": 4000}
EVALUATIONS = 5


def set_automatically(
    settings: Settings, data: CocoData, given: Collection[str], num_processes: int = 1
) -> None:
    """Set batch, rate, length, sizes, anchors, detections and evaluation, and say why.

    Args:
        settings: of a YAML config, changed in place.
        data: what is trained on.
        given: keys on the command line, which stay as they are.
        num_processes: that train, one a GPU.

    Raises:
        ConfigError: it is a .py config, or nothing can be learned from the data.
    """
    if settings.is_lazy:
        raise ConfigError("--auto is for YAML configs; a .py config says what it wants by itself")
    rows = []
    for key, value, reason in _rules(settings, data, num_processes):
        if key in given:
            rows.append((key, settings.get(key), "given on the command line"))
        else:
            settings.set(key, value)
            rows.append((key, value, reason))
    table = tabulate(rows, ("key", "value", "why"), disable_numparse=True)
    logger.info("--auto sets, where the command line does not:\n%s", table)


def _rules(settings: Settings, data: CocoData, num_processes: int) -> list[tuple[str, Any, str]]:
    cfg = settings.cfg
    kind = "cpu" if settings.device.startswith("cpu") else "cuda"
    sizes = sorted(a["area"] ** 0.5 for a in data.annotations if not a["iscrowd"])
    images, objects = len(data.images), data.most_objects
    side = statistics.median(min(i["width"], i["height"]) for i in data.images)
    longer = statistics.median(max(i["width"], i["height"]) for i in data.images)

    small = sizes[len(sizes) // 5]
    scale = min(max(SMALL_OBJECT / small, 1), GREATEST_ENLARGEMENT)
    greatest = GREATEST_SIDE[kind]
    test_side = min(_multiple(side * scale), greatest)
    scale = test_side / side
    train_sides = tuple(dict.fromkeys(_multiple(test_side * part) for part in (0.8, 0.9, 1)))
    reason = f"images of {side:g}, a fifth of the objects below {small:.0f} pixels"
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        train_sides = (train_sides[0], train_sides[-1])
    rules: list[tuple[str, Any, str]] = [
        ("INPUT.MIN_SIZE_TEST", test_side, reason),
        ("INPUT.MIN_SIZE_TRAIN", train_sides, "0.8 to 1 times that"),
    ]
    greatest = _multiple(1.2 * longer * scale)
    for key in ("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"):
        rules.append((key, greatest, f"images of {longer:g} on their longer side"))

    anchors = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    first = min(anchors[0])
    smallest = sizes[len(sizes) // 10] * scale
    wanted = 2 ** min(max(round(math.log2(smallest)), 3), 5)
    scaled = [[size * wanted / first for size in level] for level in anchors]
    reason = f"a tenth of the objects is below {smallest:.0f} pixels of resized images"
    rules.append(("MODEL.ANCHOR_GENERATOR.SIZES", scaled, reason))

    detections = max(100, 50 * math.ceil(1.5 * objects / 50))
    reason = f"an image has up to {objects} objects"
    rules.append(("TEST.DETECTIONS_PER_IMAGE", detections, reason))
    for split, factor in (("TEST", 2), ("TRAIN", 3)):
        key = f"MODEL.RPN.POST_NMS_TOPK_{split}"
        if settings.get(key) < factor * detections:
            rules.append((key, factor * detections, f"{factor} times the detections"))
            rules.append((f"MODEL.RPN.PRE_NMS_TOPK_{split}", 2 * factor * detections, "twice that"))

    batch, reason = _batch(kind, test_side * greatest, num_processes)
    batch = min(batch, max(images, 2))
    rules.append(("SOLVER.IMS_PER_BATCH", batch, reason))
    rules.append(("SOLVER.REFERENCE_WORLD_SIZE", 0, "nothing is scaled to the processes"))
    rate = cfg.SOLVER.BASE_LR * batch / cfg.SOLVER.IMS_PER_BATCH
    reason = f"the config's {cfg.SOLVER.BASE_LR:g} for {cfg.SOLVER.IMS_PER_BATCH}, in proportion"
    rules.append(("SOLVER.BASE_LR", rate, reason))
    times, least = TIMES_SEEN[kind], LEAST_SEEN[kind]
    seen = max(times * images, least)
    length = min(math.ceil(seen / batch), cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH // batch)
    reason = f"{seen} images: {times} times the {images}, at least {least}"
    rules.append(("SOLVER.MAX_ITER", length, reason))
    if cfg.SOLVER.STEPS:
        steps = (length * 2 // 3, length * 8 // 9)
        rules.append(("SOLVER.STEPS", steps, "after 2/3 and 8/9 of the run"))
    rules.append(("SOLVER.WARMUP_ITERS", min(length // 10, 1000), "a tenth of the run"))
    period = math.ceil(length / EVALUATIONS)
    rules.append(("TEST.EVAL_PERIOD", period, f"{EVALUATIONS} evaluations"))
    rules.append(("SOLVER.CHECKPOINT_PERIOD", period, "with them"))
    return rules


def _batch(kind: str, pixels: int, num_processes: int) -> tuple[int, str]:
    """Images a batch, and why."""
    if kind == "cpu":
        small = pixels <= 400 * 400
        return (4, "a CPU and small images") if small else (2, "a CPU")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    images = max(2, min(16, 2 * int(memory / GIGABYTES_PER_IMAGE / 2)))
    return images * num_processes, f"{images} for each GPU of {memory:.0f} GB"


def _multiple(side: float) -> int:
    """The nearest multiple of 32, the stride of the network."""
    return max(32, 32 * round(side / 32))
