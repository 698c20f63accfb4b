"""The config that a checkpoint holds, and what counts where another one is given."""

import logging
import tempfile
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..config import ConfigError, InputError
from ..config.keys import (
    errors_of,
    flat_items,
    merge_config,
    parse_yaml,
    portable_config,
    read_yaml,
)
from ..config.lazy import override, restore_lazy_config
from ..config.load import check, load_config
from ..config.settings import MAPPER, Config, Settings
from .loading import look_into, read_config, require_file

logger = logging.getLogger(__name__)

# These keys change the results of a trained model, in YAML configs and in LazyConfigs.
RESULT_KEYS = (
    (
        *("MODEL", "INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
        *("TEST.DETECTIONS_PER_IMAGE", "TEST.KEYPOINT_OKS_SIGMAS"),
    ),
    ("model", f"{MAPPER}.augmentations"),
)
# Keys below these that do not.
RUN_KEYS = ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.COMPILE")
# The ends of keys that tell of a machine and its folders.
MACHINE_KEYS = (
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "NUM_WORKERS", "CUDNN_BENCHMARK"),
    *("output_dir", "init_checkpoint", "train.device", "num_workers", "cudnn_benchmark"),
)


def config_text(cfg: Config) -> str:
    """The text of a config in YAML, as training saves it in its output folder.

    It is "" for a LazyConfig with objects that could not be read again without running code.
    """
    settings = Settings.of(cfg)
    if not settings.is_lazy:
        return portable_config(settings.cfg).dump()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        LazyConfig.save(settings.cfg, str(file))
        text = file.read_text() if file.is_file() else ""
    try:
        parse_yaml(text, "the config")
    except ConfigError:
        return ""
    return text


def weights_to_evaluate(cfg: Config, resume: bool = False) -> str:
    """The weights that a config names or, with ``resume``, the last ones in its output folder."""
    settings = Settings.of(cfg)
    if resume and settings.output_dir:
        checkpointer = DetectionCheckpointer(nn.Module(), settings.output_dir)
        if checkpointer.has_checkpoint():
            return checkpointer.get_checkpoint_file()
    return settings.weights or ""


def load_config_of_weights(
    config_file: str, opts: Sequence[str] = (), resume: bool = False, weights: str = ""
) -> CfgNode | DictConfig:
    """Read the config for using trained weights.

    What changes results (``RESULT_KEYS``) is taken from the config that the weights were trained
    with, if they hold it; the options count over it, and it over the file. One warning lists where
    file and weights differ. Everything else is the file's or has its default.

    Args:
        config_file: as of :func:`load_config`, or "" for the weights' own.
        opts: as of :func:`load_config`.
        resume: the weights are the last ones in the output folder, if there are any.
        weights: a file of weights, by default those that the options or the file name.

    Returns:
        the config, not frozen.

    Raises:
        FileNotFoundError: there is no such file.
        FetchError: no file is given and the weights cannot be fetched.
        InputError: no file is given and the weights hold no config or are damaged; or the config
            is wrong.
    """
    given = load_config(config_file, opts) if config_file else None
    path = weights or (weights_named(opts) if given is None else weights_to_evaluate(given, resume))
    text = read_config(path)
    if not text:
        if given is not None:
            return given
        require_file(path)
        look_into(path)  # tells of a file that is damaged or cannot be fetched
        reason = f"MODEL.WEIGHTS {path} holds no config" if path else "no MODEL.WEIGHTS are given"
        raise InputError(f"a config is needed (--config-file, or --model), because {reason}")
    source = f"the config in {path}"
    trained = parse_yaml(text, source)
    is_lazy = "model" in trained
    if given is not None and Settings.of(given).is_lazy != is_lazy:
        kinds = ("a YAML config", "a LazyConfig")
        message = "%s is %s and %s is %s: the file counts"
        logger.warning(message, source, kinds[is_lazy], config_file, kinds[not is_lazy])
        return given
    with errors_of(source):
        combine = _combine_lazy if is_lazy else _combine_yaml
        cfg = combine(trained, source, config_file, opts)
    check(Settings.of(cfg))
    return cfg


def weights_named(opts: Sequence[str]) -> str:
    """The weights that options of either kind name."""
    named = dict(zip(opts[::2], opts[1::2], strict=False))
    named |= dict(option.split("=", 1) for option in opts if "=" in option)
    return named.get("MODEL.WEIGHTS") or named.get("train.init_checkpoint", "").strip("'\"")


def _combine_yaml(
    trained: dict[str, Any], source: str, config_file: str, opts: Sequence[str]
) -> CfgNode:
    if len(opts) % 2:
        raise ConfigError(f"options must be pairs of KEY and VALUE, got {' '.join(opts)!r}")
    theirs = Settings(merge_config(trained, source))
    content = read_yaml(config_file) if config_file else {"VERSION": theirs.cfg.VERSION}
    ours = Settings(merge_config(content, config_file))
    result = ours.copy()
    for key in RESULT_KEYS[False]:
        result.set(key, theirs.get(key))
    for key in RUN_KEYS:
        result.set(key, ours.get(key))
    if config_file:
        _warn(differences(ours.cfg, result.cfg), opts[::2], config_file, source)
    return merge_config(portable_config(result.cfg), config_file or source, opts)


def _combine_lazy(
    trained: dict[str, Any], source: str, config_file: str, opts: Sequence[str]
) -> DictConfig:
    if not config_file:
        settings = Settings(restore_lazy_config(trained, source))
        defaults = {"output_dir": "./output", "weights": "", "device": "cuda"}
        for name, value in defaults.items():
            setattr(settings, name, value)
        for split in ("train", "test"):
            if settings.datasets(split)[1]:
                settings.set_datasets(split, [])
        return override(settings.cfg, source, opts)
    cfg = load_config(config_file)
    ours = parse_yaml(config_text(cfg), config_file)
    parts = _result_parts(trained)
    # They may call what the file calls, which the user trusts.
    restored = restore_lazy_config(parts, source, known=ours)
    for key in parts:
        OmegaConf.update(cfg, key, restored[key], merge=False)
    _warn(differences(_result_parts(ours), parts), opts, config_file, source)
    return override(cfg, config_file, opts)


def _result_parts(content: dict[str, Any]) -> dict[str, Any]:
    """The parts of a LazyConfig's content that RESULT_KEYS name, by these keys."""
    found = {}
    for key in RESULT_KEYS[True]:
        try:
            found[key] = reduce(getitem, key.split("."), content)
        except (KeyError, TypeError):
            continue
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Values of two configs that differ, by their dotted keys; None for an absent one."""
    sides = [{key: _listed(value) for key, value in flat_items(side)} for side in (ours, theirs)]
    pairs = {key: tuple(side.get(key) for side in sides) for key in sides[0] | sides[1]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def describe_changes(before: str, after: str) -> list[str]:
    """List what differs between two texts of configs, ``["SOLVER.BASE_LR 0.02 -> 0.01", ...]``.

    Keys of the machine (``MACHINE_KEYS``) are left out. Nothing is told of a text that is "" or of
    another kind of config.
    """
    sides = [parse_yaml(text, "the config") for text in (before, after)]
    if not all(sides) or ("model" in sides[0]) != ("model" in sides[1]):
        return []
    changes = differences(*sides)
    return _listing({k: v for k, v in changes.items() if not k.endswith(MACHINE_KEYS)})


def _listing(changes: dict[str, tuple[Any, Any]]) -> list[str]:
    return [f"{key} {before!r} -> {after!r}" for key, (before, after) in changes.items()]


def _listed(value: Any) -> Any:
    """The value with lists for tuples, which a saved YAML keeps apart by chance."""
    return [_listed(one) for one in value] if isinstance(value, list | tuple) else value


def _warn(
    changes: dict[str, tuple[Any, Any]], opts: Sequence[str], config_file: str, source: str
) -> None:
    """Say where a file and the weights' config differ, but for what the options set."""
    named = tuple(f"{option.partition('=')[0]}." for option in opts)
    if listed := _listing({k: v for k, v in changes.items() if not f"{k}.".startswith(named)}):
        logger.warning(
            "%s and %s differ, and the latter counts (an option on the command line would count "
            "over it): %s",
            config_file,
            source,
            "; ".join(listed),
        )
