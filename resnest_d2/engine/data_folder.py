"""What ``--data`` and ``--model`` stand for: annotation files, a config, weights and options."""

import argparse
import logging
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import torch

from .. import model_zoo
from ..config import InputError
from ..config.load import load_config
from ..data.coco_json import CocoData
from ..data.layouts import Part, find_layout, has_masks
from ..weights.fetch import FetchError, local_path
from ..weights.files import ENDINGS

logger = logging.getLogger(__name__)

KINDS = ("mask", "cascade", "faster")
SMALL = "mask_resnest14_digits"  # learns in minutes on a CPU, from random weights
SET_ASIDE, SEED = 0.2, 0  # of the pictures, where a data set has no validation part
# Roboflow's copies of one picture, augmented, are called NAME.rf.HASH.
COPY = re.compile(r"\.rf\.[0-9a-f]+$")


def expand(args: argparse.Namespace) -> None:
    """Put what ``--data`` and ``--model`` stand for into the other options, in place.

    Raises:
        InputError: they contradict another option, or as :func:`find_layout`.
    """
    if args.model and args.config_file:
        raise InputError("--model and --config-file are two ways to name a model: leave one out")
    part = _take_folder(args) if args.data else None
    if args.output:
        args.opts = ["OUTPUT_DIR", args.output, *args.opts]
    if args.config_file or not (args.model or args.train_json):
        return
    if not (args.train_json or args.eval_only):
        raise InputError(
            "--model is trained on --data or --train-json; --config-file trains on the data sets "
            "that it names"
        )
    file = args.train_json or args.val_json
    if part:  # whose file has been read
        masks = part.has_masks
    else:
        masks = not file or not os.path.isfile(file) or has_masks(Path(file))
    choose_model(args, masks)


def _take_folder(args: argparse.Namespace) -> Part:
    """Set the files that are in the folder of ``--data``, and what follows; return what counts."""
    if args.train_json or args.train_images or args.val_json or args.val_images:
        raise InputError("--data finds annotations and pictures: leave out --train-json and so on")
    layout = find_layout(args.data)
    logger.info("--data %s: %s", args.data, layout)
    if layout.val:
        args.val_json, args.val_images = str(layout.val.file), str(layout.val.images)
    elif args.eval_only:
        raise InputError("--eval-only: --data holds no validation part")
    if not args.eval_only:
        args.train_json, args.train_images = str(layout.train.file), str(layout.train.images)
        args.auto, args.keep_last = True, args.keep_last or 1
    args.output = args.output or f"output/{Path(args.data).resolve().name}"
    return layout.val if args.eval_only else layout.train


def choose_model(args: argparse.Namespace, masks: bool) -> None:
    """Set the config and the first weights by ``--model``, the machine and what is annotated."""
    given = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    name = model = args.model or ("mask" if masks else "faster")
    settings: dict[str, str] = {}
    if Path(model).suffix in ENDINGS or "://" in model:
        args.opts = ["MODEL.WEIGHTS", model, *args.opts]  # it holds its config
        return
    if model in KINDS:
        on_gpu = torch.cuda.is_available() and given.get("MODEL.DEVICE", "cuda") != "cpu"
        name = {
            "mask": "mmdet/mask_resnest50",
            "faster": "mmdet/faster_resnest50",
            "cascade": f"mmdet/cascade_{'' if masks else 'box_'}resnest50",
        }[model]
        if not on_gpu:
            name, settings["MODEL.MASK_ON"] = SMALL, str(masks and model != "faster")
            if model == "cascade":
                settings["MODEL.ROI_HEADS.NAME"] = "CascadeROIHeads"
    args.config_file = model_zoo.get_config_file(name)
    if "MODEL.WEIGHTS" not in given:
        weights = settings["MODEL.WEIGHTS"] = _best_weights(args.config_file, name)
        if not weights:
            settings["MODEL.BACKBONE.FREEZE_AT"] = "0"
        logger.info("--model %s: %s, from %s", model, name, weights or "random weights")
    args.opts = [*(word for pair in settings.items() for word in pair), *args.opts]


def _best_weights(config_file: str, name: str) -> str:
    """The trained model, else the backbone of the config, else nothing, by what can be had."""
    candidates = [load_config(config_file).MODEL.WEIGHTS]
    if model_zoo.published(name):
        candidates.insert(0, f"resnest://COCO/{name}")
    for weights in filter(None, candidates):
        try:
            local_path(weights)
        except FetchError as error:
            logger.warning("%s", error)
            continue
        return weights
    return ""


def set_aside(data: CocoData) -> tuple[CocoData, CocoData]:
    """Draw a fifth of the pictures to evaluate on; copies of one picture stay together.

    Raises:
        InputError: there is one picture.
    """
    groups: dict[str, list[int]] = {}
    for image in sorted(data.images, key=lambda image: image["file_name"]):
        groups.setdefault(COPY.sub("", Path(image["file_name"]).stem), []).append(image["id"])
    if len(groups) < 2:
        raise InputError(f"{data.file} has one picture, and none to evaluate on: add --val-json")
    names = list(groups)
    random.Random(SEED).shuffle(names)
    number = max(1, round(SET_ASIDE * len(names)))
    taken = {one for name in names[:number] for one in groups[name]}
    logger.info("%d of %d pictures are set aside to evaluate on", len(taken), len(data.images))

    def part(inside: bool) -> CocoData:
        images = [i for i in data.images if (i["id"] in taken) == inside]
        annotations = [a for a in data.annotations if (a["image_id"] in taken) == inside]
        return replace(data, images=images, annotations=annotations)

    return part(False), part(True)
