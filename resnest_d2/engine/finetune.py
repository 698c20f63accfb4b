"""Training on any COCO-format data, from the command line."""

import argparse
import copy
import logging
from collections.abc import Sequence
from functools import reduce
from operator import getitem

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig

from ..config.classes import num_classes_key, set_num_classes, set_num_keypoints
from ..config.lazy import select
from ..data.coco_json import CocoData, read_coco
from ..weights import read_classes
from .evaluate import weights_to_evaluate

logger = logging.getLogger(__name__)

TRAIN, VAL = "finetune_train", "finetune_val"
# OKS's sigma for keypoints that COCO does not know: between its eyes (0.025) and hips (0.107).
DEFAULT_SIGMA = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a data set of one's own."""
    group = parser.add_argument_group(
        "your own data", "in COCO's format; the classes are read from the training file"
    )
    for split, verb in (("train", "train"), ("val", "evaluate")):
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"annotations to {verb} on")
        group.add_argument(f"--{split}-images", metavar="DIR", help="folder of its images")


def wants_own_data(args: argparse.Namespace) -> bool:
    """Whether any of the options is given; other parsers need not have them."""
    return any(vars(args).get(f"{s}_{w}") for s in ("train", "val") for w in ("json", "images"))


def register_own_data(
    cfg: CfgNode | DictConfig, args: argparse.Namespace
) -> tuple[CocoData | None, CocoData | None]:
    """Read, check and register the data sets that the command line names.

    Args:
        cfg: a config of either kind.
        args: of a parser with :func:`add_arguments`.

    Returns:
        what is trained on, and what is evaluated on.

    Raises:
        FileNotFoundError: a file, folder or image is not there.
        ValueError: the files contradict themselves, each other or the model.
    """
    for split in ("train", "val"):
        if bool(vars(args)[f"{split}_json"]) != bool(vars(args)[f"{split}_images"]):
            raise ValueError(f"--{split}-json and --{split}-images belong together")
    if args.eval_only and not args.val_json:
        raise ValueError("--eval-only needs --val-json")
    if not args.eval_only and not args.train_json:
        raise ValueError("--val-json without --train-json can only be evaluated: add --eval-only")
    masks, keypoints = _needs(cfg)
    train = val = None
    if args.train_json:
        train = read_coco(args.train_json, args.train_images, masks=masks)
        if not args.eval_only:
            _check_trainable(train, masks, keypoints)
        _register(TRAIN, train)
    if args.val_json:
        if train:
            categories, names = train.categories, train.keypoint_names
        else:
            categories, names = _classes_of_weights(cfg, args.resume)
        names = names if keypoints else None
        val = read_coco(args.val_json, args.val_images, categories, masks, names)
        if masks and val.num_annotations and not val.num_masks:
            raise ValueError(f"{val.file} has no masks, which this config is evaluated on")
        _register(VAL, val)
    return train, val


def use_own_data(cfg: CfgNode | DictConfig, args: argparse.Namespace) -> None:
    """Register the data sets that the command line names, and fit the config to them.

    Data sets, number of classes, format of masks and keypoints follow from the files. Of the
    schedule, what the command line sets is meant as it stands: it is not scaled to the number of
    GPUs.

    Args:
        cfg: a config of either kind, changed in place.
        args: of a parser with :func:`add_arguments`.

    Raises:
        FileNotFoundError, ValueError: as :func:`register_own_data`.
    """
    train, val = register_own_data(cfg, args)
    names = list((train or val).categories.values())
    _check_num_classes(cfg, len(names), args.opts)
    logger.info("%d classes: %s", len(names), ", ".join(names))
    set_num_classes(cfg, len(names))
    if isinstance(cfg, CfgNode):
        # In evaluation too, Detectron2 asks the training set how keypoints are mirrored.
        cfg.DATASETS.TRAIN = (TRAIN,) if train else (VAL,)
        cfg.DATASETS.TEST = (VAL,) if val else ()
    else:
        if train:
            cfg.dataloader.train.dataset.names = [TRAIN]
        cfg.dataloader.test.dataset.names = VAL if val else []
    if train and train.num_rle:
        logger.info("%d masks are RLE: masks are trained as bitmasks", train.num_rle)
        if isinstance(cfg, CfgNode):
            cfg.INPUT.MASK_FORMAT = "bitmask"
        else:
            cfg.dataloader.train.mapper.instance_mask_format = "bitmask"
    if _needs(cfg)[1]:
        _set_keypoints(cfg, train or val)
    if train:
        _take_schedule_literally(cfg, args.opts)


def _check_num_classes(cfg: CfgNode | DictConfig, number: int, opts: Sequence[str]) -> None:
    """What the command line says of it must be what the files say."""
    key, given = num_classes_key(cfg), {option.partition("=")[0] for option in opts}
    value = (
        select(cfg, key) if isinstance(cfg, DictConfig) else reduce(getitem, key.split("."), cfg)
    )
    if key in given and value != number:
        raise ValueError(
            f"{key} is {value} on the command line, but the data have {number} classes"
        )


def _needs(cfg: CfgNode | DictConfig) -> tuple[bool, bool]:
    """Whether a config's model learns masks and keypoints."""
    if isinstance(cfg, CfgNode):
        kind = cfg.MODEL.META_ARCHITECTURE
        if kind in ("PanopticFPN", "SemanticSegmentor"):
            raise ValueError(
                f"--train-json and --val-json hold instances, MODEL.META_ARCHITECTURE {kind} "
                "learns from maps of whole images: register such a data set in Python"
            )
        boxes_only = kind == "RetinaNet"
        return cfg.MODEL.MASK_ON and not boxes_only, cfg.MODEL.KEYPOINT_ON and not boxes_only
    heads = select(cfg, "model.roi_heads", {})
    return bool(heads.get("mask_head")), bool(heads.get("keypoint_head"))


def _check_trainable(data: CocoData, masks: bool, keypoints: bool) -> None:
    if masks and data.num_annotations and not data.num_masks:
        raise ValueError(
            f"{data.file} has no masks, which this config learns: take a faster_ or cascade_box_ "
            "config, or MODEL.MASK_ON False"
        )
    if all(a["iscrowd"] for record in data.dicts for a in record["annotations"]):
        raise ValueError(f"{data.file} has no annotation that can be learned, crowds set aside")
    if keypoints and not data.num_keypoints:
        raise ValueError(f"{data.file} has no keypoints, which this config learns")


def _classes_of_weights(
    cfg: CfgNode | DictConfig, resume: bool
) -> tuple[dict[int, str] | None, list[str] | None]:
    """Categories and keypoints that the weights were trained on, so that both count in the same."""
    classes = read_classes(weights_to_evaluate(cfg, resume))
    ids = classes.get("thing_dataset_id_to_contiguous_id")
    if not ids:
        return None, None
    names = {number: classes["thing_classes"][index] for number, index in ids.items()}
    return names, classes.get("keypoint_names")


def _register(name: str, data: CocoData) -> None:
    if name in DatasetCatalog:  # a second run in this process
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    # Converting to COCO's format, Detectron2 changes what it is given.
    DatasetCatalog.register(name, lambda: copy.deepcopy(data.dicts))
    metadata = MetadataCatalog.get(name)
    metadata.set(
        thing_classes=list(data.categories.values()),
        thing_dataset_id_to_contiguous_id={n: i for i, n in enumerate(data.categories)},
        image_root=str(data.image_root),
        evaluator_type="coco",
    )
    if data.evaluable:
        metadata.json_file = str(data.file)
    elif name == VAL:
        logger.info("%s is completed for pycocotools in the output folder", data.file)
    if data.keypoint_names:
        metadata.set(
            keypoint_names=data.keypoint_names,
            keypoint_flip_map=_flip_map(data.keypoint_names),
            keypoint_connection_rules=[
                (data.keypoint_names[a], data.keypoint_names[b], (102, 204, 255))
                for a, b in data.skeleton
            ],
        )


def _flip_map(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs that change places in a mirror, by COCO's way of naming them."""
    mirrored = {name: name.replace("left", "right") for name in names if "left" in name}
    return [(left, right) for left, right in mirrored.items() if right in names]


def _set_keypoints(cfg: CfgNode | DictConfig, data: CocoData) -> None:
    number = len(data.keypoint_names)
    set_num_keypoints(cfg, number)
    if isinstance(cfg, CfgNode) and len(cfg.TEST.KEYPOINT_OKS_SIGMAS) != number:
        logger.info("TEST.KEYPOINT_OKS_SIGMAS: %d times %g", number, DEFAULT_SIGMA)
        cfg.TEST.KEYPOINT_OKS_SIGMAS = [DEFAULT_SIGMA] * number


def _take_schedule_literally(cfg: CfgNode | DictConfig, opts: Sequence[str]) -> None:
    if isinstance(cfg, CfgNode):
        keys = {f"SOLVER.{k}" for k in ("IMS_PER_BATCH", "BASE_LR", "STEPS", "MAX_ITER")}
        if keys & set(opts) and "SOLVER.REFERENCE_WORLD_SIZE" not in opts:
            cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
        return
    keys = {"dataloader.train.total_batch_size", "optimizer.lr", "train.max_iter"}
    given = {option.partition("=")[0] for option in opts}
    if keys & given and "train.reference_world_size" not in given:
        cfg.train.reference_world_size = 0
