"""Training every kind of head in mixed precision on digits, and whether all stays finite."""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.solver import build_optimizer
from detectron2.structures import Keypoints
from detectron2.utils.events import EventStorage

from resnest_d2 import model_zoo
from resnest_d2.engine.trainer import Trainer

from .timing import Report

# One model of the zoo for each kind of head.
HEADS = {
    "faster-dcnv1": "faster_resnest50_dcn",
    "faster-dcnv2": "faster_resnest50_dcn",
    "mask": "mask_resnest50",
    "cascade": "cascade_resnest50",
    "cascade-3x-dcnv2": "cascade_resnest200_dcn_3x",
    "averaging-cascade": "mmdet/cascade_resnest50",
    "retinanet": "retinanet_resnest50",
    "keypoint": "keypoint_resnest50",
    "panoptic": "panoptic_resnest200_3x",
    "pointrend": "pointrend_resnest50",
    "deeplabv3plus": "deeplabv3plus_resnest50",
}
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
SIDE = 128


def digits_config(head: str, device: str) -> CfgNode:
    """One of :data:`HEADS` on ResNeSt-14, for digits and from random weights."""
    cfg = model_zoo.get_config(HEADS[head])
    if head.endswith("dcnv1"):  # the zoo's are all v2
        cfg.MODEL.RESNETS.DEFORM_MODULATED = False
    # AMP is what the zoo's settings leave off; the rest fits the data and a test's patience.
    opts: dict[str, Any] = {
        "MODEL.DEVICE": device,
        "MODEL.WEIGHTS": "",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 14,
        "MODEL.ROI_HEADS.NUM_CLASSES": 10,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.RETINANET.NUM_CLASSES": 10,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
        "INPUT.MASK_FORMAT": "bitmask",
        "INPUT.MIN_SIZE_TRAIN": (SIDE,),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
        "INPUT.RANDOM_FLIP": "none",
        "INPUT.CROP.ENABLED": False,
        "DATASETS.TRAIN": ("digits_train",),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.ASPECT_RATIO_GROUPING": False,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    }
    cfg.merge_from_list([item for pair in opts.items() for item in pair])
    if cfg.MODEL.RESNETS.get("RES5_MULTI_GRID", None):
        cfg.MODEL.RESNETS.RES5_MULTI_GRID = cfg.MODEL.RESNETS.RES5_MULTI_GRID[:1]
    if "POINT_HEAD" in cfg.MODEL:
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = 10
    return cfg


def batches(cfg: CfgNode) -> Iterator[list[dict[str, Any]]]:
    """Of digits; with keypoints on their boxes, for heads that need them, and a semantic map."""
    plain = _without_keypoints(cfg)
    for batch in build_detection_train_loader(plain, mapper=DatasetMapper(plain)):
        for one in batch:
            instances = one["instances"]
            masks = instances.gt_masks.tensor
            if not cfg.MODEL.MASK_ON:
                instances.remove("gt_masks")
            if cfg.MODEL.KEYPOINT_ON:
                instances.gt_keypoints = _corners(instances.gt_boxes.tensor)
            one["sem_seg"] = masks.any(0).long()
        yield batch


def _without_keypoints(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.MASK_ON = False, True
    return cfg


def _corners(boxes: torch.Tensor) -> Keypoints:
    """COCO's 17 keypoints, along each box's diagonal."""
    share = torch.linspace(0.05, 0.95, 17)[None, :, None]
    points = boxes[:, None, :2] * (1 - share) + boxes[:, None, 2:] * share
    return Keypoints(torch.cat([points, torch.full_like(points[..., :1], 2)], 2))


def train(cfg: CfgNode, precision: str, iterations: int) -> dict[str, Any]:
    """Train with autocast and, in fp16, a gradient scaler, as Detectron2's ``AMPTrainer`` does.

    Returns:
        total losses ("losses"), steps that the scaler skipped ("skipped"), and whether all losses
        and parameters are finite ("finite").
    """
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    device = cfg.MODEL.DEVICE
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    losses, skipped = [], 0
    data = batches(cfg)
    with EventStorage():
        for index in range(iterations):
            for group in optimizer.param_groups:  # warm-up
                group["lr"] = cfg.SOLVER.BASE_LR * min(1, (index + 1) / 50)
            with torch.autocast(device, PRECISIONS[precision]):
                loss = sum(model(next(data)).values())
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
    finite = math.isfinite(losses[-1]) and all(
        p.isfinite().all() for p in model.state_dict().values()
    )
    return {"losses": losses, "skipped": int(skipped), "finite": bool(finite)}


def run(args: argparse.Namespace) -> Report:
    """The section "amp" of ``python -m benchmarks``."""
    kinds = [p for p in PRECISIONS if p == "bf16" or args.device != "cpu"]
    title = f"Mixed precision on digits, {args.iterations} iterations of 4 images, ResNeSt-14"
    lines = [f"## {title}", "", "| heads | precision | first 10 | last 10 | skipped | finite |"]
    lines.append("|---|---|---:|---:|---:|---|")
    report: dict[str, Any] = {}
    for head in args.heads or HEADS:
        for precision in kinds:
            found = train(digits_config(head, args.device), precision, args.iterations)
            first, last = (sum(x) / len(x) for x in (found["losses"][:10], found["losses"][-10:]))
            yes = "yes" if found["finite"] else "NO"
            lines.append(
                f"| {head} | {precision} | {first:.3f} | {last:.3f} | {found['skipped']} | {yes} |"
            )
            report[f"{head}, {precision}"] = found
    return lines, report
