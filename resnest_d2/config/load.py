"""From files and command lines to configs that fit the machine."""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import detectron2
import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from . import ConfigError, FileError, MissingFileError, did_you_mean, require_int
from .keys import add_project_config, add_resnest_config, flat_items, flat_keys

logger = logging.getLogger(__name__)

MOST_VALUES = 100_000  # of a config, which has some 700
PLAIN_BUILDERS = (
    *("build_resnet_backbone", "build_resnet_fpn_backbone"),
    "build_retinanet_resnet_fpn_backbone",
)


def config_dir() -> Path:
    """The folder of the zoo's configs: inside an installed package, beside it in a clone."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file over the defaults of Detectron2, of ResNeSt and of the projects it needs.

    Args:
        config_file: a local file; its ``_BASE_`` may be an address.
        opts: overrides, ``["SOLVER.BASE_LR", "0.01", ...]``.

    Returns:
        the config, not frozen.

    Raises:
        MissingFileError: there is no such file.
        ConfigError: a key that does not exist, a value that does not fit its key, or a tag that
            would run code; the message names it.
    """
    if not os.path.isfile(config_file):  # pathlib's raises where a name is too long
        root = config_dir()
        known = (str(Path("configs", p.relative_to(root))) for p in sorted(root.rglob("*.yaml")))
        hint = did_you_mean(f"configs/{Path(config_file).stem}.yaml", known, 0.8)
        raise MissingFileError(f"--config-file: there is no file {config_file!r}{hint}")
    if not config_file.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"--config-file must be a YAML file, got {config_file}; tools/lazyconfig_train_net.py "
            "trains Detectron2's LazyConfigs (.py)"
        )
    # One of Detectron2's own files, Base-RetinaNet.yaml, computes its anchors. It is code like the
    # rest of Detectron2; tags in any other file are refused.
    own = Path(detectron2.__file__).parent in Path(config_file).resolve().parents
    with _errors_of(config_file):
        loaded = CfgNode.load_yaml_with_base(config_file, allow_unsafe=own)
    _check_values(loaded, config_file)
    return _build(loaded, config_file, opts)


def parse_config(text: str, source: str, opts: Sequence[str] = ()) -> CfgNode:
    """As :func:`load_config`, from a text of YAML, which messages call ``source``."""
    return _build(load_values(text, source), source, opts)


def load_values(text: str, source: str) -> dict[str, Any]:
    """The keys and values in the text of a config, whether or not this version knows them.

    Raises:
        ConfigError: it is no YAML of plain values, or nested without end.
    """
    with _errors_of(source):
        loaded = yaml.safe_load(text)
    _check_values(loaded, source)
    return loaded


def _build(loaded: dict[str, Any], source: str, opts: Sequence[str]) -> CfgNode:
    """Merge what was loaded, and then the options, over the defaults."""
    cfg = get_cfg()
    add_resnest_config(cfg)
    named = {*flat_keys(loaded), *opts[::2]}
    add_project_config(cfg, named)
    if (version := loaded.get("VERSION", cfg.VERSION)) != cfg.VERSION:
        raise ConfigError(f"{source}: VERSION must be {cfg.VERSION}, got {version!r}")
    with _errors_of(source, cfg):
        cfg.merge_from_other_cfg(CfgNode(loaded))
    merge_options(cfg, opts)
    _check_builder(cfg, named)
    return cfg


def _check_values(loaded: Any, source: str) -> None:
    """Refuse what is no config, or grows without end: YAML's aliases can hold themselves."""
    if not isinstance(loaded, dict):
        raise ConfigError(f"{source}: a config is keys and values, not a {type(loaded).__name__}")
    values, count = [loaded], 0
    while values and count <= MOST_VALUES:
        value, count = values.pop(), count + 1
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
    if values:
        raise ConfigError(f"{source}: it is nested without end")


def merge_options(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """Merge overrides into a config, KEY, VALUE, KEY, VALUE, ...

    Raises:
        ConfigError: a key that does not exist, or a value that does not fit its key.
    """
    if late := next((option for option in opts if str(option).startswith("--")), None):
        given = " ".join(map(str, opts))
        raise ConfigError(f"{late} must stand before the config's own options: {given}")
    with _errors_of("the command line", cfg):
        cfg.merge_from_list(list(opts))


def _check_builder(cfg: CfgNode, named: Collection[str]) -> None:
    """Refuse ResNeSt's keys with a plain ResNet's builder, as the authors' fork spells it.

    Only the keys in ``named``, which a user has set, ask for anything.
    """
    builder, resnets = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS
    if builder not in PLAIN_BUILDERS:
        return
    asked = {"RADIX": resnets.RADIX > 1, "AVD": resnets.AVD, "DEEP_STEM": resnets.DEEP_STEM}
    for key, is_asked in asked.items():
        if is_asked and f"MODEL.RESNETS.{key}" in named:
            raise ConfigError(
                f"MODEL.RESNETS.{key} {resnets[key]} is a ResNeSt's, but MODEL.BACKBONE.NAME "
                f"{builder!r} builds a plain ResNet without it: write "
                f"{builder.replace('resnet_', 'resnest_')!r}, or take the key out"
            )


@contextmanager
def _errors_of(source: str, cfg: CfgNode | None = None) -> Iterator[None]:
    """Turn what yacs and PyYAML raise on a wrong config into a ConfigError; only their calls.

    Args:
        source: the file, or "the command line", which the message begins with.
        cfg: a config that is changed; its keys are suggested for one that does not exist.
    """
    empty = {key for key, value in flat_items(cfg or {}) if value is None}
    try:
        yield
    except OSError as error:
        raise FileError(f"{source}: its _BASE_ cannot be read: {error}") from error
    except yaml.YAMLError as error:  # of a tag that would run code, above all
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: it is its own _BASE_, or nested too deep") from error
    except (AttributeError, TypeError) as error:  # of what should be a dict, or a path
        raise ConfigError(f"{source}: it is not keys and values: {error}") from error
    except (AssertionError, KeyError, SyntaxError, ValueError) as error:
        # yacs checks by assertions, evaluates values, and puts whole nodes into its messages.
        first, *others = str(error.args[0] if error.args else error).splitlines() or [""]
        message = f"{first}{' ... ' + others[-1] if others else ''}"
        is_unknown = "Non-existent" in message  # the key is its last word
        hint = did_you_mean(message.split()[-1], flat_keys(cfg or {})) if is_unknown else ""
        raise ConfigError(f"{source}: {message}{hint}") from error
    for key, value in flat_items(cfg or {}):  # yacs takes None for any key
        if value is None and key not in empty:
            raise ConfigError(f"{source}: {key} has no value")


def choose_device(
    cfg: CfgNode, num_gpus: int = 1, num_processes: int | None = None, *, required: bool = False
) -> int:
    """Fit a config, ``--num-gpus`` and ``--num-processes`` to the machine.

    Without a GPU a config made for one runs on the CPU, without AMP, which Detectron2 has for GPUs
    only; one warning says so.

    Args:
        cfg: a config, whose device and use of AMP may be changed.
        num_gpus: GPUs of this machine that the user asked for.
        num_processes: processes on CPUs that the user asked for.
        required: whether the user named the device, so that a missing GPU is an error.

    Returns:
        number of processes to start on this machine.

    Raises:
        ConfigError: there is no such device, fewer GPUs are there than are asked for, or processes
            on CPUs are asked for where a GPU is used.
    """
    try:
        if torch.device(cfg.MODEL.DEVICE).type not in ("cuda", "meta"):
            torch.empty(0, device=cfg.MODEL.DEVICE)
    except (RuntimeError, NotImplementedError, AssertionError):
        raise ConfigError(
            f"device {cfg.MODEL.DEVICE!r} is no device of PyTorch, or not one of this machine"
        ) from None
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wants_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if num_processes is not None:
        require_int("--num-processes", num_processes, 1)
    if wants_gpu and num_gpus > available > 0:
        raise ConfigError(f"--num-gpus is {num_gpus}, but this machine has {available} GPUs")
    if wants_gpu and available:
        if num_processes:
            raise ConfigError(
                "--num-processes is for CPUs, and this machine has GPUs: take --num-gpus, or set "
                "MODEL.DEVICE cpu"
            )
        return max(num_gpus, 1)
    if wants_gpu and required:
        raise ConfigError(f"device {cfg.MODEL.DEVICE!r} was asked for, and no GPU was found")
    amp, cfg.SOLVER.AMP.ENABLED = cfg.SOLVER.AMP.ENABLED, False
    if wants_gpu:
        cfg.MODEL.DEVICE = "cpu"
        logger.warning("No GPU: running on the CPU%s.", " without SOLVER.AMP" if amp else "")
    elif amp:
        logger.warning("SOLVER.AMP needs a GPU: running on %s without it.", cfg.MODEL.DEVICE)
    return num_processes or 1
