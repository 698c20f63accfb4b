"""Training steps of whole detectors, and the arithmetic of the published schedule from them."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from resnest_d2 import model_zoo
from resnest_d2.engine.trainer import Trainer

from .timing import Report, Times, as_json, measure

# The 1x schedule of every published model: 90,000 iterations of 16 images.
ITERATIONS, IMAGES = 90_000, 16
GPUS = (1, 8, 64)
OBJECTS = 7  # an image, COCO's average
HOUR = 3600


def make_inputs(batch: int, size: tuple[int, int], device: str) -> list[dict[str, Any]]:
    """Random images with square objects, as a loader gives them."""
    height, width = size
    inputs = []
    for _ in range(batch):
        corners = torch.rand(OBJECTS, 2) * torch.tensor([width, height]) * 0.7
        boxes = torch.cat([corners, corners + min(size) * (0.05 + 0.2 * torch.rand(OBJECTS, 1))], 1)
        masks = torch.zeros(OBJECTS, height, width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        found = Instances(size, gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
        found.gt_classes = torch.zeros(OBJECTS, dtype=torch.long)
        inputs.append({"image": torch.rand(3, *size) * 255, "instances": found.to(device)})
    return inputs


def make_step(
    name: str, batch: int, size: tuple[int, int], device: str, amp: bool
) -> Callable[[], None]:
    """A step of a zoo model with its optimizer: forward, losses, backward, update."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    cfg.INPUT.MASK_FORMAT = "bitmask"
    model = Trainer.build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # random images teach nothing; the update takes as long
    inputs = make_inputs(batch, size, device)

    def step() -> None:
        with EventStorage(), torch.autocast(device, torch.bfloat16, enabled=amp):
            loss = sum(model(inputs).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure_schedule(
    name: str, batches: list[int], size: tuple[int, int], rounds: int, device: str, amp: bool
) -> dict[int, Times]:
    """Seconds a step of a detector, by batch size."""
    found = {}
    for batch in batches:
        step = make_step(name, batch, size, device, amp)
        found[batch] = measure({name: step}, rounds, warmup=2, device=device)[name]
        del step
        if device != "cpu":
            torch.cuda.empty_cache()
    return found


def hours(seconds: float, batch: int, gpus: int) -> float:
    """Of the 1x schedule's images on some GPUs that take so long for a batch each.

    The linear scaling rule keeps the number of images: ``90,000 * 16``. Communication is left out.
    """
    return ITERATIONS * IMAGES / (batch * gpus) * seconds / HOUR


def run(args: argparse.Namespace) -> Report:
    """The section "schedule" of ``python -m benchmarks``."""
    size = (args.schedule_height, args.schedule_width)
    kind = "bf16 autocast" if args.amp else "fp32"
    lines = [f"## Training steps of detectors, {size[0]}x{size[1]}, {kind}", ""]
    listed = " | ".join(f"1x schedule on {n} (h)" for n in GPUS)
    lines += [f"| model | images a GPU | s a step | images/s | {listed} |"]
    lines.append("|---|" + "---:|" * (3 + len(GPUS)))
    report: dict[str, Any] = {}
    for name in args.detectors:
        times = measure_schedule(
            name, args.schedule_batches, size, args.rounds, args.device, args.amp
        )
        for batch, found in times.items():
            cells = " | ".join(f"{hours(found.median, batch, n):.1f}" for n in GPUS)
            rate = batch / found.median
            lines.append(f"| {name} | {batch} | {found.median:.3f} | {rate:.1f} | {cells} |")
        report[name] = as_json(times)
    return lines, report
