"""Settings for fine-tuning that follow from the data and the machine: ``--auto``."""

import logging
import math
import statistics
from collections.abc import Callable, Collection
from functools import reduce
from operator import getitem
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from tabulate import tabulate

from ..data.coco_json import CocoData

logger = logging.getLogger(__name__)

# The rules' numbers; docs/own_data.md has the rules in words.
SMALL_OBJECT = 24  # pixels that the square root of a small object's area shall have
GREATEST_ENLARGEMENT = 2
GIGABYTES_PER_IMAGE = 4  # Mask R-CNN with ResNeSt-50 in training, at 800 x 1333
# By kind of device: the greatest shorter side; how often a run sees each image; and how many images
# it sees at least, counted as often as they are seen, unless so many objects are enough.
GREATEST_SIDE = {"cpu": 384, "cuda": 800}
TIMES_SEEN = {"cpu": 20, "cuda": 40}
LEAST_SEEN = {"cpu": 2000, "cuda": 4000}
OBJECTS_SEEN = {"cpu": 30_000, "cuda": 120_000}
FEWEST_FOR_BATCH_NORM = 8  # images of a batch, where a network learns from nothing
EVALUATIONS = 5
NORMED = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")  # parts of a model with a key NORM
MOST_REGIONS = 512  # of an image, for the heads to learn from; Detectron2's default


def set_automatically(
    cfg: CfgNode, data: CocoData, given: Collection[str], num_processes: int, rate: float
) -> str:
    """Set batch, rate, length, sizes, anchors, detections and evaluation.

    Args:
        cfg: the config, changed in place.
        data: what is trained on.
        given: keys on the command line, which stay as they are.
        num_processes: that train, one a GPU.
        rate: the config file's, for each image of a batch.

    Returns:
        a table of what was set, and why.
    """
    rows = []

    def choose(key: str, value: Any, reason: str) -> Any:
        """Set a value, or take the one on the command line, which others follow from."""
        *path, last = key.split(".")
        node = reduce(getitem, path, cfg)
        if key in given:
            reason = "given on the command line"
        else:
            node[last] = value
        rows.append((key, node[last], reason))
        return node[last]

    scale = _choose_sizes(cfg, data, choose)
    _choose_limits(cfg, data, choose)
    _choose_samples(cfg, data, choose)
    _choose_anchors(cfg, data, choose, scale)
    _choose_schedule(cfg, data, choose, num_processes, rate)
    _choose_norms(cfg, given, choose)
    message = "--auto: %d iterations of %d images of %d pixels; OUTPUT_DIR/log.txt says why"
    logger.info(message, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.MIN_SIZE_TEST)
    return tabulate(rows, ("key", "value", "why"), disable_numparse=True)


Choose = Callable[[str, Any, str], Any]


def _kind(cfg: CfgNode) -> str:
    return "cpu" if cfg.MODEL.DEVICE.startswith("cpu") else "cuda"


def _object_sizes(data: CocoData) -> list[float]:
    """Square roots of the objects' areas, in pixels; thin ones, whose area rounds to 0, count 1."""
    return sorted(max(a["area"], 1) ** 0.5 for a in data.annotations if not a["iscrowd"])


def _choose_sizes(cfg: CfgNode, data: CocoData, choose: Choose) -> float:
    """Choose the sizes of images, and return by how much they are enlarged at inference."""
    sizes = _object_sizes(data)
    small = sizes[len(sizes) // 5]
    side = statistics.median(min(i["width"], i["height"]) for i in data.images)
    longer = statistics.median(max(i["width"], i["height"]) for i in data.images)
    wanted = _multiple(side * min(max(SMALL_OBJECT / small, 1), GREATEST_ENLARGEMENT))
    reason = f"images of {side:g}, a fifth of the objects below {small:.0f} pixels"
    wanted = min(wanted, GREATEST_SIDE[_kind(cfg)])
    test_side = choose("INPUT.MIN_SIZE_TEST", wanted, reason)
    train_sides = tuple(dict.fromkeys(_multiple(test_side * part) for part in (0.8, 0.9, 1)))
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        train_sides = (train_sides[0], train_sides[-1])
    choose("INPUT.MIN_SIZE_TRAIN", train_sides, "0.8 to 1 times that")
    greatest = _multiple(1.2 * longer * test_side / side)
    for key in ("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"):
        choose(key, greatest, f"images of {longer:g} on their longer side")
    return test_side / side


def _choose_anchors(cfg: CfgNode, data: CocoData, choose: Choose, scale: float) -> None:
    sizes = _object_sizes(data)
    smallest = sizes[len(sizes) // 10] * scale
    anchors = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    factor = 2 ** min(max(round(math.log2(smallest)), 3), 5) / min(anchors[0])
    reason = f"a tenth of the objects is below {smallest:.0f} pixels of resized images"
    scaled = [[size * factor for size in level] for level in anchors]
    choose("MODEL.ANCHOR_GENERATOR.SIZES", scaled, reason)


def _choose_limits(cfg: CfgNode, data: CocoData, choose: Choose) -> None:
    objects = data.most_objects
    wanted = max(100, 50 * math.ceil(1.5 * objects / 50))
    reason = f"an image has up to {objects} objects"
    detections = choose("TEST.DETECTIONS_PER_IMAGE", wanted, reason)
    for split, factor in (("TEST", 2), ("TRAIN", 3)):
        key = f"POST_NMS_TOPK_{split}"
        if cfg.MODEL.RPN[key] < factor * detections:
            number = choose(
                f"MODEL.RPN.{key}", factor * detections, f"{factor} times the detections"
            )
            choose(f"MODEL.RPN.PRE_NMS_TOPK_{split}", 2 * number, "twice that")


def _choose_samples(cfg: CfgNode, data: CocoData, choose: Choose) -> None:
    """Choose what a batch is made of: its pictures, mirrored or not, and regions of each."""
    reason = "every batch shall have pictures of all shapes, whose norms it computes"
    choose("DATALOADER.ASPECT_RATIO_GROUPING", False, reason)
    if cfg.INPUT.RANDOM_FLIP == "none" and not cfg.MODEL.KEYPOINT_ON:
        choose("INPUT.RANDOM_FLIP", "horizontal", "where mirrored objects are others, say none")
    objects = len(_object_sizes(data)) / len(data.images)
    regions = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    wanted = 2 ** round(math.log2(objects / cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION))
    if regions < wanted:
        reason = f"an image has {objects:.0f} objects on average"
        choose("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", min(wanted, MOST_REGIONS), reason)


def _choose_schedule(
    cfg: CfgNode, data: CocoData, choose: Choose, num_processes: int, rate: float
) -> None:
    kind, solver, images = _kind(cfg), cfg.SOLVER.clone(), len(data.images)
    pixels = cfg.INPUT.MIN_SIZE_TEST * cfg.INPUT.MAX_SIZE_TEST
    wanted, reason = _batch(kind, pixels, num_processes)
    wanted = num_processes * math.ceil(min(wanted, max(images, 2)) / num_processes)
    batch = choose("SOLVER.IMS_PER_BATCH", wanted, reason)
    choose("SOLVER.REFERENCE_WORLD_SIZE", 0, "nothing is scaled to the processes")
    choose("SOLVER.BASE_LR", rate * batch, f"the config's {rate:g} for each image of a batch")
    # Crowded images teach more.
    enough = 100 * round(OBJECTS_SEEN[kind] * images / len(_object_sizes(data)) / 100)
    times, least = TIMES_SEEN[kind], min(LEAST_SEEN[kind], max(enough, 100))
    seen = min(max(times * images, least), solver.MAX_ITER * solver.IMS_PER_BATCH)
    reason = f"{seen} images: {times} times the {images}, at least {least}"
    length = choose("SOLVER.MAX_ITER", math.ceil(seen / batch), reason)
    if solver.STEPS:
        steps = (length * 2 // 3, length * 8 // 9)
        choose("SOLVER.STEPS", steps, "after 2/3 and 8/9 of the run")
    choose("SOLVER.WARMUP_ITERS", min(length // 10, 1000), "a tenth of the run")
    period = math.ceil(length / EVALUATIONS)
    choose("TEST.EVAL_PERIOD", period, f"{EVALUATIONS} evaluations")
    choose("SOLVER.CHECKPOINT_PERIOD", period, "with them")


def _choose_norms(cfg: CfgNode, given: Collection[str], choose: Choose) -> None:
    batch = cfg.SOLVER.IMS_PER_BATCH
    norms = {f"MODEL.{name}.NORM": cfg.MODEL[name].NORM for name in NORMED}
    parts = [key for key, norm in norms.items() if "BN" in norm and norm != "FrozenBN"]
    is_fresh = not cfg.MODEL.WEIGHTS and "MODEL.RESNETS.NORM" not in given
    if parts and batch < FEWEST_FOR_BATCH_NORM and is_fresh and _takes_group_norm(cfg):
        reason = f"from random weights, batches of {batch} are too small for batch norm"
        for key in parts:
            choose(key, "GN", reason)
    elif parts:
        reason = f"batches of {batch} leave batch norms rough statistics"
        choose("TEST.PRECISE_BN.ENABLED", True, reason)


def _takes_group_norm(cfg: CfgNode) -> bool:
    """Whether group norm's 32 groups divide the channels of a model with a ResNeSt."""
    if "resnest" not in cfg.MODEL.BACKBONE.NAME:  # others may not be built without memory
        return False
    cfg = cfg.clone()
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "GN"
    try:
        with torch.device("meta"):  # no memory, no values
            build_backbone(cfg)
    except ValueError:  # PyTorch's, and our ConfigError
        return False
    return not any(cfg.MODEL[name].CONV_DIM % 32 for name in ("ROI_BOX_HEAD", "ROI_MASK_HEAD"))


def _batch(kind: str, pixels: int, num_processes: int) -> tuple[int, str]:
    """Images a batch, and why."""
    if kind == "cpu":
        small = pixels <= 200 * 200
        return (8, "a CPU and small images") if small else (4, "a CPU")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    images = max(2, min(16, 2 * int(memory / GIGABYTES_PER_IMAGE / 2)))
    return images * num_processes, f"{images} for each GPU of {memory:.0f} GB"


def _multiple(side: float) -> int:
    """The nearest multiple of 32, the stride of the network."""
    return max(32, 32 * round(side / 32))
