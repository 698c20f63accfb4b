"""Training on any COCO-format data, from the command line."""

import argparse
import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES

from ..config import ConfigError, InputError
from ..config.load import load_config
from ..config.settings import Config, Settings
from ..data.coco_json import CocoData, names_in_use, read_coco
from ..data.repair import Options
from ..files import hold_folder, write_text
from ..processes import in_first_process
from ..weights import read_classes
from ..weights.stored_config import weights_to_evaluate
from .auto import set_automatically

logger = logging.getLogger(__name__)

TRAIN, VAL = "finetune_train", "finetune_val"
EVALUATOR = "dataloader.evaluator"
# Sigma of OKS for keypoints that COCO does not know, between its eyes (0.025) and hips (0.107).
DEFAULT_SIGMA = 0.05
# The left side in names of keypoints, a word or a single letter, and the right one.
SIDES = (
    (re.compile("left", re.IGNORECASE), "right"),
    (re.compile("(?<![A-Za-z])[Ll](?![a-z])|(?<=[a-z])L(?![a-z])"), "r"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a data set of one's own."""
    group = parser.add_argument_group(
        "your own data", "in COCO's format; the classes are read from the training file"
    )
    for split, verb in (("train", "train"), ("val", "evaluate")):
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"annotations to {verb} on")
        group.add_argument(f"--{split}-images", metavar="DIR", help="folder of its images")
    group.add_argument(
        "--auto", action="store_true", help="set schedule, sizes, anchors and so on by the data"
    )
    Options.add_arguments(group)


def wants_own_data(args: argparse.Namespace) -> bool:
    """Whether any of the options is given; other parsers need not have them."""
    names = [f"{split}_{what}" for split in ("train", "val") for what in ("json", "images")]
    return any(vars(args).get(name) for name in ("auto", *names))


def register_own_data(
    settings: Settings, args: argparse.Namespace
) -> tuple[CocoData | None, CocoData | None]:
    """Read, check and register the data sets that the command line names.

    Args:
        settings: the config's settings.
        args: parsed arguments of :func:`add_arguments`.

    Returns:
        what is trained on, and what is evaluated on.

    Raises:
        FileNotFoundError: a file, folder or image is not there.
        ValueError: the files contradict themselves, each other or the model.
    """
    for split in ("train", "val"):
        if bool(vars(args)[f"{split}_json"]) != bool(vars(args)[f"{split}_images"]):
            raise InputError(f"--{split}-json and --{split}-images belong together")
    if args.auto and (args.eval_only or not args.train_json):
        raise InputError("--auto sets how to train on --train-json")
    if args.eval_only and not args.val_json:
        raise InputError("--eval-only needs --val-json")
    if not args.eval_only and not args.train_json:
        raise InputError("--val-json without --train-json can only be evaluated: add --eval-only")
    masks, keypoints = settings.learns()
    wanted = {"masks": masks, "keypoints": keypoints, "options": Options.of(args)}
    train = val = None
    if args.train_json:
        in_val = partial(names_in_use, args.val_json) if args.val_json else tuple
        train = read_coco(args.train_json, args.train_images, named_in_val=in_val, **wanted)
        if not args.eval_only:
            _check_trainable(train, masks, keypoints)
        _register(TRAIN, train)
    if args.val_json:
        if train:
            categories, names = train.categories, train.keypoint_names
        else:
            categories, names = _classes_of_weights(settings, args.resume)
        wanted["keypoint_names"] = names if keypoints else None
        val = read_coco(args.val_json, args.val_images, categories, **wanted)
        if masks and val.num_annotations and not val.num_masks:
            raise InputError(f"{val.file} has no masks, which this config is evaluated on")
        _register(VAL, val, Path(settings.output_dir) / "annotations_val.json")
    return train, val


def use_own_data(settings: Config, args: argparse.Namespace, num_processes: int = 1) -> None:
    """Register the data sets that the command line names, and fit the config to them.

    Data sets, number of classes, format of masks and keypoints follow from the files. A schedule
    on the command line is meant as it stands: it is not scaled to the number of GPUs.

    Args:
        settings: the config's settings, changed in place.
        args: parsed arguments of :func:`add_arguments`.
        num_processes: that train or evaluate.

    Raises:
        FileNotFoundError, ValueError: as :func:`register_own_data`.
    """
    settings = Settings.of(settings)
    train, val = register_own_data(settings, args)
    names = list((train or val).categories.values())
    given = {option.partition("=")[0] for option in args.opts}
    if args.auto:
        # Without the command line: its batch is not the one that the config's rate is for.
        plain = Settings.of(load_config(args.config_file)) if args.opts else settings
        rate = plain.get("SOLVER.BASE_LR", 0) / plain.images_per_batch
        set_automatically(settings, train, given, num_processes, rate)
    for data in filter(None, (train, val)):
        _check_capacity(settings, data)
    key = settings.num_classes_key
    if key in given and settings.get(key) != len(names):
        raise ConfigError(
            f"{key} is {settings.get(key)} on the command line, but the data have {len(names)} "
            "classes"
        )
    logger.info("%d classes: %s", len(names), ", ".join(names))
    settings.set_num_classes(len(names))
    if train or not settings.is_lazy:
        # In evaluation too, Detectron2 asks the training set how keypoints are mirrored.
        settings.set_datasets("train", [TRAIN if train else VAL])
    settings.set_datasets("test", [VAL] if val else [])
    if settings.is_lazy and val and "build_evaluator" in str(settings.get(f"{EVALUATOR}._target_")):
        most, *_ = settings.detection_limits().values()
        settings.set(f"{EVALUATOR}.detections_per_image", most)
    if train and train.num_rle:
        logger.info("%d masks are RLE: masks are trained as bitmasks", train.num_rle)
        settings.mask_format = "bitmask"
    if settings.learns()[1]:
        _set_keypoints(settings, (train or val).keypoint_names)
    keys = {settings.key("images_per_batch"), *settings.SCHEDULE_KEYS[settings.is_lazy]}
    if train and keys & given and settings.key("reference_world_size") not in given:
        settings.reference_world_size = 0


def _check_trainable(data: CocoData, masks: bool, keypoints: bool) -> None:
    if masks and data.num_annotations and not data.num_masks:
        raise InputError(
            f"{data.file} has no masks, which this config learns: take a faster_ or cascade_box_ "
            "config, or MODEL.MASK_ON False"
        )
    if data.num_crowds == len(data.annotations):
        raise InputError(f"{data.file} has no annotation that can be learned, crowds set aside")
    if keypoints and not data.num_keypoints:
        raise InputError(f"{data.file} has no keypoints, which this config learns")


def _check_capacity(settings: Settings, data: CocoData) -> None:
    """Warn of images with more objects than the model can find."""
    short = [
        f"{key} {limit}"
        for key, limit in settings.detection_limits().items()
        if limit < data.most_objects
    ]
    if short:
        logger.warning(
            "%s: an image has %d objects, more than the model can find: raise %s",
            data.file,
            data.most_objects,
            " and ".join(short),
        )


def _classes_of_weights(
    settings: Settings, resume: bool
) -> tuple[dict[int, str] | None, list[str] | None]:
    """Categories and keypoints of the weights, so that predictions and annotations share them."""
    classes = read_classes(weights_to_evaluate(settings, resume))
    names = classes.get("thing_classes")
    if not names:
        return None, None
    ids = classes.get("thing_dataset_id_to_contiguous_id") or {n + 1: n for n in range(len(names))}
    return {number: names[index] for number, index in ids.items()}, classes.get("keypoint_names")


def _register(name: str, data: CocoData, completed: Path | None = None) -> None:
    """Register a data set.

    Args:
        name: of the data set.
        data: its content.
        completed: where a file is written if pycocotools cannot evaluate on the data's own.
    """
    if name in DatasetCatalog:  # a second run in this process
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: data.dicts)
    metadata = MetadataCatalog.get(name)
    metadata.set(
        thing_classes=list(data.categories.values()),
        thing_dataset_id_to_contiguous_id={n: i for i, n in enumerate(data.categories)},
        image_root=str(data.image_root),
        evaluator_type="coco",
    )
    if data.evaluable or completed is None:
        metadata.json_file = str(data.file)
    else:
        in_first_process(partial(_write, data, completed))
        metadata.json_file = str(completed)
        logger.info("%s, as it was read, is in %s, which AP is computed on", data.file, completed)
    if names := data.keypoint_names:
        metadata.set(
            keypoint_names=names,
            keypoint_flip_map=mirrored_keypoints(names),
            keypoint_connection_rules=[
                (names[a], names[b], (102, 204, 255)) for a, b in data.skeleton
            ],
        )


def _write(data: CocoData, file: Path) -> None:
    """Write what was read, but not over the data of a training that is running in the folder."""
    text = data.to_json()
    if file.is_file() and file.read_text() == text:
        return
    try:
        with hold_folder(file.parent):
            write_text(file, text)
    except BlockingIOError as error:
        raise InputError(
            f"{file}: {error.strerror} and evaluates on these; wait for its end, or choose another "
            "output folder"
        ) from error


def mirrored_keypoints(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of keypoints that change places in a mirror: ``left_eye`` or ``LeftEye``, ``L eye``."""
    known = {name.lower(): name for name in names}
    return [
        (name, mirrored)
        for name in names
        for left, right in SIDES
        if (mirrored := known.get(left.sub(right, name).lower(), name)) != name
    ]


def _set_keypoints(settings: Settings, names: Sequence[str]) -> None:
    settings.num_keypoints = len(names)
    if settings.get("INPUT.RANDOM_FLIP", "none") != "none" and not mirrored_keypoints(names):
        logger.warning(
            "No keypoint is named as left or right (%s), so that none change places in mirrored "
            "pictures; if they have sides, set INPUT.RANDOM_FLIP none",
            ", ".join(names),
        )
    key = "TEST.KEYPOINT_OKS_SIGMAS"
    if settings.is_lazy or len(settings.get(key)) == len(names):
        return
    if [name.lower() for name in names] == list(COCO_PERSON_KEYPOINT_NAMES):
        settings.set(key, [])  # which stands for COCO's
        return
    logger.warning("%s: %d times %g", key, len(names), DEFAULT_SIGMA)
    settings.set(key, [DEFAULT_SIGMA] * len(names))
