"""From a command line to a config that fits the machine."""

import difflib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import yaml
from detectron2.config import CfgNode
from omegaconf import DictConfig

from .. import model_zoo
from .keys import read_config
from .lazy import is_lazy, read_lazy_config, select

logger = logging.getLogger(__name__)


def load_config(config_file: str, opts: list[str] | None = None) -> CfgNode | DictConfig:
    """Read a config, YAML over the defaults of Detectron2 and ResNeSt or a LazyConfig.

    Args:
        config_file: path of a ``.yaml`` or ``.py`` file.
        opts: what overrides it: ``["SOLVER.BASE_LR", "0.01", ...]`` for YAML,
            ``["optimizer.lr=0.01", ...]`` for a LazyConfig.

    Returns:
        the config, not frozen.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key that does not exist, or a value that does not fit its key; the message
            names it.
    """
    if not os.path.isfile(config_file):
        name = os.path.basename(config_file).rpartition(".")[0] or config_file
        close = difflib.get_close_matches(name, model_zoo.names(), n=3)
        hint = f"; did you mean configs/{' or '.join(c + '.yaml' for c in close)}?" if close else ""
        raise FileNotFoundError(f"--config-file: there is no file {config_file!r}{hint}")
    opts = opts or []
    late = next((option for option in opts if option.startswith("--")), None)
    if late:
        raise ValueError(f"{late} must stand before the config's own options: {' '.join(opts)}")
    if is_lazy(config_file):
        with _errors_of(config_file):
            cfg = read_lazy_config(config_file, opts)
        _check_lazy(cfg)
        return cfg
    if len(opts) % 2:
        raise ValueError(f"options must be pairs of KEY and VALUE, got {' '.join(opts)!r}")
    with _errors_of(config_file):
        cfg = read_config(config_file)
    if opts:
        with _errors_of("the command line"):
            cfg = read_config(config_file, opts)
    _check(cfg)
    return cfg


def _check(cfg: CfgNode) -> None:
    """Settings that Detectron2 trips over late, or in words that do not name the key."""
    formats = ("BGR", "RGB", "L", "YUV-BT.601")
    if cfg.INPUT.FORMAT not in formats:
        raise ValueError(
            f"INPUT.FORMAT must be one of {', '.join(formats)}, got {cfg.INPUT.FORMAT!r}"
        )
    if len(cfg.MODEL.PIXEL_MEAN) != len(cfg.MODEL.PIXEL_STD):
        raise ValueError(
            f"MODEL.PIXEL_MEAN {cfg.MODEL.PIXEL_MEAN} and MODEL.PIXEL_STD {cfg.MODEL.PIXEL_STD} "
            "must have a value for each channel"
        )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN {sizes} must be the least and the greatest size with "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING 'range'"
        )
    for key, value in (
        ("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER),
        ("SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH),
    ):
        if value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    _check_device("MODEL.DEVICE", cfg.MODEL.DEVICE)


def _check_lazy(cfg: DictConfig) -> None:
    """The same for a LazyConfig; keys that it does not have are nobody's fault here."""
    for key in ("max_iter", "log_period", "checkpointer.period"):
        value = select(cfg, f"train.{key}", 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"train.{key} must be at least 1, got {value!r}")
    _check_device("train.device", select(cfg, "train.device", "cuda"))


def _check_device(key: str, name: str) -> None:
    try:
        torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"{key} {name!r} is no device of PyTorch") from None


@contextmanager
def _errors_of(source: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{source}: {error.args[0]}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML: {' '.join(str(error).split())}") from error
    except (AssertionError, AttributeError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def choose_device(cfg: CfgNode | DictConfig, num_gpus: int = 1, num_machines: int = 1) -> int:
    """Fit a config and ``--num-gpus`` to the machine.

    Without a GPU a config made for one runs on the CPU, in one process and without AMP, which
    Detectron2 has for GPUs only; one warning says so.

    Args:
        cfg: a config of either kind; its device and whether it uses AMP may be changed.
        num_gpus: GPUs of this machine that the user asked for.
        num_machines: machines that the user asked for.

    Returns:
        number of processes to start.

    Raises:
        ValueError: more GPUs are asked for than there are, or several machines without GPUs.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not get_device(cfg).startswith("cuda"):
        if amp := _switch_off_amp(cfg):
            logger.warning("%s needs a GPU: running on %s without it.", amp, get_device(cfg))
        return 1
    if num_gpus > available > 0:
        raise ValueError(f"--num-gpus is {num_gpus}, but this machine has {available} GPUs")
    if available:
        return max(num_gpus, 1)
    if num_machines > 1:
        raise ValueError(f"--num-machines is {num_machines}, but no GPU was found on this one")
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = "cpu"
    else:
        cfg.train.device = "cpu"
    amp = _switch_off_amp(cfg)
    without = f" and without {amp}" if amp else ""
    logger.warning("No GPU was found: running in one process on the CPU%s.", without)
    return 1


def _switch_off_amp(cfg: CfgNode | DictConfig) -> str:
    """The key that was on, or an empty text."""
    if isinstance(cfg, CfgNode):
        settings, key, value = cfg.SOLVER.AMP, "SOLVER.AMP", "ENABLED"
    else:
        settings, key, value = select(cfg, "train.amp", {}), "train.amp", "enabled"
    if not settings or not settings.get(value, False):
        return ""
    settings[value] = False
    return key


def get_device(cfg: CfgNode | DictConfig) -> str:
    """The device that a config of either kind names."""
    return cfg.MODEL.DEVICE if isinstance(cfg, CfgNode) else select(cfg, "train.device", "cuda")
