"""From a command line to a config that fits the machine."""

import difflib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from .. import model_zoo
from ..config import add_resnest_config

logger = logging.getLogger(__name__)


def load_config(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """Read a YAML config over the defaults of Detectron2 and ResNeSt.

    Args:
        config_file: path of a YAML file.
        opts: keys and values that override it, ``["SOLVER.BASE_LR", "0.01", ...]``.

    Returns:
        the config, not frozen.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key that does not exist, or a value that does not fit its key; the message
            names it.
    """
    cfg = get_cfg()
    add_resnest_config(cfg)
    if not os.path.isfile(config_file):
        name = os.path.basename(config_file).rpartition(".")[0] or config_file
        close = difflib.get_close_matches(name, model_zoo.names(), n=3)
        hint = f"; did you mean configs/{' or '.join(c + '.yaml' for c in close)}?" if close else ""
        raise FileNotFoundError(f"--config-file: there is no file {config_file!r}{hint}")
    with _errors_of(config_file):
        cfg.merge_from_file(config_file)
    if opts:
        if len(opts) % 2:
            raise ValueError(f"options must be pairs of KEY and VALUE, got {' '.join(opts)!r}")
        with _errors_of("the command line"):
            cfg.merge_from_list(opts)
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
    for key, value in (
        ("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER),
        ("SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH),
    ):
        if value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise ValueError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is no device of PyTorch") from None


@contextmanager
def _errors_of(source: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{source}: {error.args[0]}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML: {' '.join(str(error).split())}") from error
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def choose_device(cfg: CfgNode, num_gpus: int = 1, num_machines: int = 1) -> int:
    """Fit a config and ``--num-gpus`` to the machine.

    Without a GPU a config made for one runs on the CPU, in one process and without AMP; one
    warning says so.

    Args:
        cfg: the config; ``MODEL.DEVICE`` and ``SOLVER.AMP.ENABLED`` may be changed.
        num_gpus: GPUs of this machine that the user asked for.
        num_machines: machines that the user asked for.

    Returns:
        number of processes to start.

    Raises:
        ValueError: more GPUs are asked for than there are, or several machines without GPUs.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return 1
    if num_gpus > available > 0:
        raise ValueError(f"--num-gpus is {num_gpus}, but this machine has {available} GPUs")
    if available:
        return max(num_gpus, 1)
    if num_machines > 1:
        raise ValueError(f"--num-machines is {num_machines}, but no GPU was found on this one")
    cfg.MODEL.DEVICE = "cpu"
    amp = " and without SOLVER.AMP" if cfg.SOLVER.AMP.ENABLED else ""
    cfg.SOLVER.AMP.ENABLED = False
    logger.warning("No GPU was found: running in one process on the CPU%s.", amp)
    return 1
