"""What the loader of training images takes, part by part, and how many images a second it gives."""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader, detection_utils
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode
from PIL import Image

from resnest_d2 import model_zoo

from .coco import CLASSES, HEIGHT, OBJECTS, WIDTH
from .timing import Report, Times, as_json, measure

IMAGES = 32
SECONDS = 8.0  # for which a loader is watched
BATCH = 16
QUALITY = 92  # gives files of about 117 kB; COCO's average is about 160


def write_images(folder: Path, count: int) -> list[dict[str, Any]]:
    """JPEG files of COCO's usual size with polygons, as Detectron2's dataset dicts."""
    random = np.random.RandomState(0)
    entries = []
    for index in range(count):
        # Shapes of all scales, as photos have them, down to single pixels.
        image = np.zeros((HEIGHT, WIDTH, 3))
        for side in (4, 12, 40, 120, 480):
            noise = random.randint(0, 256, (side, side * 4 // 3, 3)).astype(np.uint8)
            large = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            image += np.asarray(large, float) * (0.35 if side < 100 else 0.1)
        file = folder / f"{index:06}.jpg"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, quality=QUALITY)
        annotations = []
        for _ in range(OBJECTS):
            x, y, r = random.uniform(60, 400), random.uniform(60, 400), random.uniform(10, 60)
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            points = np.stack([x + r * np.cos(angles), y + r * np.sin(angles)], 1)
            annotations.append(
                {
                    "bbox": [x - r, y - r, 2 * r, 2 * r],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": int(random.randint(CLASSES)),
                    "segmentation": [points.ravel().tolist()],
                }
            )
        entries.append(
            {"file_name": str(file), "height": HEIGHT, "width": WIDTH, "annotations": annotations}
        )
    return entries


def loader_config(mask_format: str = "polygon") -> CfgNode:
    """A published recipe: short side 640 to 800, at most 1333, flipped."""
    cfg = model_zoo.get_config("mask_resnest50")
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    return cfg


def measure_parts(entries: list[dict[str, Any]], rounds: int) -> dict[str, Times]:
    """Seconds for all of some images, in one process."""
    cfg = loader_config()
    mapper, bitmasks = (DatasetMapper(loader_config(kind)) for kind in ("polygon", "bitmask"))
    files = [entry["file_name"] for entry in entries]
    parts: dict[str, Callable[[], Any]] = {
        "whole mapper, polygons": lambda: [mapper(entry) for entry in entries],
        "whole mapper, bitmasks": lambda: [bitmasks(entry) for entry in entries],
        "decoding by Pillow": lambda: [
            detection_utils.read_image(file, cfg.INPUT.FORMAT) for file in files
        ],
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        parts["decoding by simplejpeg"] = lambda: [
            simplejpeg.decode_jpeg(Path(file).read_bytes()) for file in files
        ]
    images = [detection_utils.read_image(file, cfg.INPUT.FORMAT) for file in files]
    resize = mapper.augmentations.augs[0]
    parts["resizing"] = lambda: [resize.get_transform(i).apply_image(i) for i in images]
    return measure(parts, rounds)


def images_a_second(entries: list[dict[str, Any]], workers: int) -> float:
    """Of Detectron2's own loader in batches of :data:`BATCH`, once its workers run."""
    loader = build_detection_train_loader(
        entries,
        mapper=DatasetMapper(loader_config()),
        sampler=TrainingSampler(len(entries)),
        total_batch_size=BATCH,
        aspect_ratio_grouping=False,
        num_workers=workers,
    )
    batches = iter(loader)
    for _ in range(2 * max(workers, 1)):  # what was fetched ahead
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        count += len(next(batches))
    return count / (time.perf_counter() - start)


def run(args: argparse.Namespace) -> Report:
    """The section "loading" of ``python -m benchmarks``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        with tempfile.TemporaryDirectory() as folder:
            entries = write_images(Path(folder), IMAGES)
            size = sum(os.path.getsize(entry["file_name"]) for entry in entries) / len(entries)
            times = measure_parts(entries, args.rounds)
            rates = {workers: images_a_second(entries, workers) for workers in args.workers}
    finally:
        torch.set_num_threads(threads)
    lines = [
        f"## Loading {WIDTH}x{HEIGHT} JPEGs of {size / 1000:.0f} kB for training at 800x1333",
        "",
        "| part | ms an image | share of the whole |",
        "|---|---:|---:|",
    ]
    whole = times["whole mapper, polygons"].median
    for name, found in times.items():
        each = found.median / len(entries)
        lines.append(f"| {name} | {each * 1000:.2f} | {found.median / whole:.0%} |")
    lines += ["", f"| workers, batches of {BATCH} | images a second |", "|---:|---:|"]
    lines += [f"| {workers} | {rate:.0f} |" for workers, rate in rates.items()]
    lines += ["", f"CPU cores: {os.cpu_count()}."]
    return lines, {"times": as_json(times), "images_a_second": rates, "bytes": size}
