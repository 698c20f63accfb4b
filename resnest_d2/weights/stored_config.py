"""The config that a checkpoint was trained with."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..config import ConfigError, InputError
from ..config.keys import add_resnest_config, flat_items, portable_config
from ..config.load import load_config, load_values, parse_config
from .files import Checkpoint

logger = logging.getLogger(__name__)

# Keys, or nodes of keys, that change the results of a trained model.
RESULT_KEYS = (
    *("MODEL.", "INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
    *("INPUT.PIXEL_RANGE", "TEST.DETECTIONS_PER_IMAGE", "TEST.KEYPOINT_OKS_SIGMAS"),
)
# Keys that tell of a machine, its folders or how the model is run.
MACHINE_KEYS = (
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.COMPILE", "DATALOADER.NUM_WORKERS"),
    "CUDNN_BENCHMARK",
)


def config_text(cfg: CfgNode) -> str:
    """The text of a config in YAML, as checkpoints hold it."""
    return portable_config(cfg).dump()


def config_to_use(config_file: str, opts: Sequence[str], checkpoint: Checkpoint | None) -> CfgNode:
    """The config for using trained weights.

    A file is taken as it stands, and one warning lists where the weights were trained with other
    settings. Without a file, "", the checkpoint's own config counts. Options count over both.

    Raises:
        InputError: there is neither a file nor a config in the checkpoint, or the config is wrong.
    """
    text = checkpoint.config if checkpoint else ""
    if config_file:
        cfg = load_config(config_file, opts)
        changes = describe_changes(text, config_text(cfg))
        changed = [k for k in changes if k.startswith(RESULT_KEYS) and k not in opts[::2]]
        if listed := [f"{key} {changes[key]}" for key in changed]:
            message = "%s was trained with other settings than those of %s, which count: %s"
            logger.warning(message, checkpoint.name, config_file, "; ".join(listed))
        return cfg
    if not text:
        reason = f"{checkpoint.name} holds no config" if checkpoint else "no weights are given"
        raise InputError(f"--config-file is needed, because {reason}")
    cfg, defaults = parse_config(text, f"the config in {checkpoint.name}", opts), get_cfg()
    # What the text says of another machine.
    if "OUTPUT_DIR" not in opts[::2]:
        cfg.OUTPUT_DIR = defaults.OUTPUT_DIR
    if "MODEL.DEVICE" not in opts[::2]:
        cfg.MODEL.DEVICE = defaults.MODEL.DEVICE
    if "MODEL.WEIGHTS" not in opts[::2]:
        cfg.MODEL.WEIGHTS = checkpoint.name
    return cfg


def describe_changes(before: str, after: str) -> dict[str, str]:
    """What differs between two texts of configs, ``{"SOLVER.BASE_LR": "0.02 -> 0.01"}``.

    Nothing is told of a text that is "", or that this version cannot read.
    """
    if not (before and after):
        return {}
    try:  # a trainer of the user's may have added keys that nobody else knows
        texts = [load_values(text, "the stored config") for text in (before, after)]
    except ConfigError as error:
        logger.warning("Settings are not compared: %s", error)
        return {}
    defaults = get_cfg()
    add_resnest_config(defaults)
    known = dict(flat_items(defaults))
    return _differences(*({**known, **dict(flat_items(text))} for text in texts))


def _differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """Values that differ, by their dotted keys, but for those of a machine; None for an absent."""
    # A saved YAML has lists for tuples.
    sides = [{key: _as_list(value) for key, value in side.items()} for side in (before, after)]
    pairs = {key: tuple(side.get(key) for side in sides) for key in sides[0] | sides[1]}
    return {
        key: f"{one!r} -> {other!r}"
        for key, (one, other) in pairs.items()
        if one != other and key not in MACHINE_KEYS
    }


def _as_list(value: Any) -> Any:
    return [_as_list(one) for one in value] if isinstance(value, list | tuple) else value
