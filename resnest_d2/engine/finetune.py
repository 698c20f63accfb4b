"""Training on any COCO-format data, from the command line."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES

from ..config import ConfigError, InputError
from ..data.coco_json import CocoData, read_coco
from ..data.images import PixelRange
from ..data.options import Options
from ..weights import Checkpoint
from ..weights.stored_config import config_to_use
from .auto import NORMED, set_automatically
from .data_folder import set_aside

logger = logging.getLogger(__name__)

TRAIN, VAL = "finetune_train", "finetune_val"
ANNOTATIONS = "annotations_val.json"
# Sigma of OKS for keypoints that COCO does not know, between its eyes (0.025) and hips (0.107).
DEFAULT_SIGMA = 0.05

Data = tuple[CocoData | None, CocoData | None]
"""What is trained on, and what is evaluated on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a data set of one's own."""
    group = parser.add_argument_group(
        "your own data", "in COCO's format; the classes are read from the training file"
    )
    text = "folder of a data set: its annotations and pictures are found; sets --auto, --keep-best "
    text += "and --keep-last, and draws what was learned"
    group.add_argument("--data", default="", metavar="DIR", help=text)
    text = "mask, cascade or faster (default: by the annotations), of a size for the machine; or a "
    text += "name of the zoo; or a checkpoint; in place of --config-file"
    group.add_argument("--model", default="", metavar="MODEL", help=text)
    text = "in place of OUTPUT_DIR (default with --data: output/<its name>)"
    group.add_argument("--output", default="", metavar="DIR", help=text)
    for split, verb in (("train", "train"), ("val", "evaluate")):
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"annotations to {verb} on")
        group.add_argument(f"--{split}-images", metavar="DIR", help="folder of its images")
    group.add_argument(
        "--auto", action="store_true", help="set schedule, sizes, anchors and so on by the data"
    )
    Options.add_arguments(group)


def wants_own_data(args: argparse.Namespace) -> bool:
    """Whether any of the options is given."""
    names = ("auto", "train_json", "train_images", "val_json", "val_images")
    return any(getattr(args, name) for name in names)


def learned(cfg: CfgNode) -> tuple[bool, bool]:
    """Whether the model of a config learns masks, and whether it learns keypoints.

    Raises:
        ConfigError: it learns from maps of whole images.
    """
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind in ("PanopticFPN", "SemanticSegmentor"):
        raise ConfigError(
            f"--train-json and --val-json hold instances, MODEL.META_ARCHITECTURE {kind} learns "
            "from maps of whole images: register such a data set in Python"
        )
    has_roi_heads = kind != "RetinaNet"
    return cfg.MODEL.MASK_ON and has_roi_heads, cfg.MODEL.KEYPOINT_ON and has_roi_heads


def read_own_data(cfg: CfgNode, args: argparse.Namespace, classes: dict[str, Any]) -> Data:
    """Read and check the files that the command line names, in the order of a model's classes.

    Raises:
        InputError: a file, folder or image is not there; or the files contradict themselves, each
            other or the model.
    """
    for split in ("train", "val"):
        if bool(vars(args)[f"{split}_json"]) != bool(vars(args)[f"{split}_images"]):
            raise InputError(f"--{split}-json and --{split}-images belong together")
    if args.eval_only and (args.auto or not args.val_json):
        raise InputError("--eval-only needs --val-json, and --auto is for training")
    if not args.eval_only and not args.train_json:
        raise InputError("training needs --train-json; --val-json alone is for --eval-only")
    masks, keypoints = learned(cfg)
    options = replace(Options.of(args), has_range=bool(PixelRange.of_config(cfg)))
    wanted = {"masks": masks, "keypoints": keypoints, "options": options}
    train = val = None
    categories, names = _classes_of_weights(classes)
    if args.train_json:
        train = read_coco(args.train_json, args.train_images, **wanted)
        if not args.eval_only:
            _check_trainable(train, masks, keypoints)
        categories, names = train.categories, train.keypoint_names
        if args.data and not args.val_json:
            train, val = set_aside(train)
    if args.val_json:
        wanted["keypoint_names"] = names if keypoints else None
        val = read_coco(args.val_json, args.val_images, categories, **wanted)
        if masks:
            _require_masks(val)
    return train, val


def fit_config(
    cfg: CfgNode,
    args: argparse.Namespace,
    data: Data,
    num_processes: int,
    checkpoint: Checkpoint | None = None,
) -> str:
    """Fit a config to data that were read, in place, and ``--keep-best`` with ``--data``.

    Returns:
        a table of what ``--auto`` has set, and why; "" without it.

    Raises:
        ConfigError: the command line says otherwise.
    """
    train, val = data
    names = list((train or val).categories.values())
    masks, keypoints = learned(cfg)
    given, why = set(args.opts[::2]), ""
    if args.auto:
        # Without the command line: its batch is not the one that the config's rate is for.
        plain = config_to_use(args.config_file, (), checkpoint).SOLVER
        rate = plain.BASE_LR / plain.IMS_PER_BATCH
        if args.resume and checkpoint:  # whose norms its weights are for
            given |= {f"MODEL.{name}.NORM" for name in NORMED}
        why = set_automatically(cfg, train, given, num_processes, rate)
    limit, most = cfg.TEST.DETECTIONS_PER_IMAGE, max(one.most_objects for one in data if one)
    if most > limit:
        message = "An image has %d objects, more than the model can find: raise %s %d"
        logger.warning(message, most, "TEST.DETECTIONS_PER_IMAGE", limit)
    _set_num_classes(cfg, len(names), given)
    logger.info("%d classes: %s", len(names), ", ".join(names))
    # In evaluation too, Detectron2 asks the training set how keypoints are mirrored.
    cfg.DATASETS.TRAIN = (TRAIN if train else VAL,)
    cfg.DATASETS.TEST = (VAL,) if val else ()
    if train and train.num_rle:
        logger.info("%d masks are RLE: masks are trained as bitmasks", train.num_rle)
        cfg.INPUT.MASK_FORMAT = "bitmask"
    if keypoints:
        _set_keypoints(cfg, (train or val).keypoint_names)
    if args.data and not args.eval_only:
        args.keep_best = args.keep_best or f"{'segm' if masks else 'bbox'}/AP"
    return why


def _set_num_classes(cfg: CfgNode, number: int, given: set[str]) -> None:
    for node in (node for node in ("ROI_HEADS", "RETINANET", "POINT_HEAD") if node in cfg.MODEL):
        key, has = f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES
        if key in given and has != number:
            raise ConfigError(
                f"{key} is {has} on the command line, but the data have {number} classes"
            )
        cfg.MODEL[node].NUM_CLASSES = number


def register(data: Data, output_dir: str) -> None:
    """Register data that were read; AP is computed on the file :data:`ANNOTATIONS`."""
    for name, one in zip((TRAIN, VAL), data, strict=True):
        if one is None:
            continue
        if name in DatasetCatalog:  # a second run in this process
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        dicts = one.dicts
        DatasetCatalog.register(name, lambda dicts=dicts: dicts)
        metadata = MetadataCatalog.get(name)
        metadata.set(
            thing_classes=list(one.categories.values()),
            thing_dataset_id_to_contiguous_id={n: i for i, n in enumerate(one.categories)},
            image_root=str(one.image_root),
            evaluator_type="coco",
            json_file=str(one.file if name == TRAIN else Path(output_dir) / ANNOTATIONS),
        )
        if names := one.keypoint_names:
            lines = [(names[a], names[b], (102, 204, 255)) for a, b in one.skeleton]
            metadata.set(
                keypoint_names=names,
                keypoint_flip_map=mirrored_keypoints(names),
                keypoint_connection_rules=lines,
            )


def _require_masks(data: CocoData) -> None:
    if data.num_annotations and not data.num_masks:
        raise InputError(
            f"{data.file} has no masks, which this config learns: take a faster_ or cascade_box_ "
            "config, or MODEL.MASK_ON False"
        )


def _check_trainable(data: CocoData, masks: bool, keypoints: bool) -> None:
    if masks:
        _require_masks(data)
    if data.num_crowds == len(data.annotations):
        raise InputError(f"{data.file} has no annotation that can be learned, crowds set aside")
    if keypoints and not data.num_keypoints:
        raise InputError(f"{data.file} has no keypoints, which this config learns")


def _classes_of_weights(classes: dict[str, Any]) -> tuple[dict[int, str] | None, list[str] | None]:
    """Categories and keypoints of the weights, so that predictions and annotations share them."""
    names = classes.get("thing_classes")
    if not names:
        return None, None
    ids = classes.get("thing_dataset_id_to_contiguous_id") or {n + 1: n for n in range(len(names))}
    return {number: names[index] for number, index in ids.items()}, classes.get("keypoint_names")


def mirrored_keypoints(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of keypoints that change places in a mirror, as ``left_eye`` and ``right_eye``."""
    known = {name.lower(): name for name in names}
    pairs = [(name, known.get(lower.replace("left", "right"))) for lower, name in known.items()]
    return [(left, right) for left, right in pairs if right not in (None, left)]


def _set_keypoints(cfg: CfgNode, names: Sequence[str]) -> None:
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(names)
    if cfg.INPUT.RANDOM_FLIP != "none" and not mirrored_keypoints(names):
        logger.warning(
            "No keypoint is named as left or right (%s), so that none change places in mirrored "
            "pictures; if they have sides, set INPUT.RANDOM_FLIP none",
            ", ".join(names),
        )
    if len(cfg.TEST.KEYPOINT_OKS_SIGMAS) == len(names):
        return
    is_coco = [name.lower() for name in names] == list(COCO_PERSON_KEYPOINT_NAMES)
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [] if is_coco else [DEFAULT_SIGMA] * len(names)  # [] are COCO's
    if not is_coco:
        logger.warning("TEST.KEYPOINT_OKS_SIGMAS: %d times %g", len(names), DEFAULT_SIGMA)
