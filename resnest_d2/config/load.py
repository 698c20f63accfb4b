"""From a command line to a checked config that fits the machine."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig

from . import ConfigError, did_you_mean, require_int, require_one_of
from .keys import errors_of, merge_config, read_yaml
from .lazy import override, restore_lazy_config
from .settings import Config, Settings

logger = logging.getLogger(__name__)

# Keys whose values are at least 1, of YAML configs and of LazyConfigs.
POSITIVE_KEYS = (
    (
        *("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.CHECKPOINT_PERIOD"),
        *("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"),
    ),
    (
        *("train.max_iter", "train.log_period", "train.checkpointer.period"),
        "dataloader.train.total_batch_size",
    ),
)


def config_dir() -> Path:
    """The folder of the zoo's configs: inside an installed package, beside it in a clone."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode | DictConfig:
    """Read a config, YAML over the defaults of Detectron2 and ResNeSt or a LazyConfig.

    Args:
        config_file: path of a ``.yaml`` or ``.py`` file.
        opts: overrides, ``["SOLVER.BASE_LR", "0.01", ...]`` for YAML, ``["optimizer.lr=0.01",
            ...]`` for a LazyConfig.

    Returns:
        the config, not frozen.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: a key that does not exist, or a value that does not fit its key; the message
            names it.
    """
    if not os.path.isfile(config_file):
        root = config_dir()
        known = (str(Path("configs", p.relative_to(root))) for p in sorted(root.rglob("*.yaml")))
        hint = did_you_mean(f"configs/{Path(config_file).stem}.yaml", known, 0.8)
        raise FileNotFoundError(f"--config-file: there is no file {config_file!r}{hint}")
    late = next((option for option in opts if option.startswith("--")), None)
    if late:
        raise ConfigError(f"{late} must stand before the config's own options: {' '.join(opts)}")
    with errors_of(config_file):
        if config_file.endswith(".py"):
            cfg = override(LazyConfig.load(config_file), config_file, opts)
        else:
            content = read_yaml(config_file)
            if "model" in content:  # keys of the other kind are upper case
                cfg = restore_lazy_config(content, config_file, opts)
            elif len(opts) % 2:
                raise ConfigError(f"options must be pairs of KEY and VALUE, got {' '.join(opts)!r}")
            else:
                cfg = merge_config(content, config_file, opts)
    check(Settings.of(cfg))
    return cfg


def check_device(name: str, device: str) -> None:
    """Refuse a device that PyTorch does not know, or this machine does not have; GPUs may lack.

    Args:
        name: of the key or option.
        device: its value.

    Raises:
        ConfigError: the message names both.
    """
    try:
        kind = torch.device(device).type
        if kind not in ("cuda", "meta"):
            torch.empty(0, device=device)
    except (RuntimeError, TypeError, NotImplementedError, AssertionError):
        raise ConfigError(
            f"{name} {device!r} is no device of PyTorch, or not one of this machine"
        ) from None


def check(settings: Settings) -> None:
    """Refuse settings that Detectron2 trips over late, or in words that do not name the key.

    Raises:
        ConfigError: the message names the key and its value.
    """
    check_device(settings.key("device"), settings.device)
    for key in POSITIVE_KEYS[settings.is_lazy]:
        require_int(key, settings.get(key, 1), 1)
    if settings.is_lazy:
        return
    cfg = settings.cfg
    require_one_of("INPUT.FORMAT", cfg.INPUT.FORMAT, ("BGR", "RGB", "L", "YUV-BT.601"))
    if len(cfg.MODEL.PIXEL_MEAN) != len(cfg.MODEL.PIXEL_STD):
        raise ConfigError(
            f"MODEL.PIXEL_MEAN {cfg.MODEL.PIXEL_MEAN} and MODEL.PIXEL_STD {cfg.MODEL.PIXEL_STD} "
            "must have a value for each channel"
        )
    if cfg.INPUT.FORMAT == "L" and len(cfg.MODEL.PIXEL_MEAN) == 3:
        for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
            values = settings.get(key)
            settings.set(key, [sum(values) / 3])
            message = "INPUT.FORMAT 'L' has one channel: %s %s is now its mean, %s"
            logger.warning(message, key, values, settings.get(key))
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    for key, values in (("TRAIN", sizes), ("TEST", [cfg.INPUT.MIN_SIZE_TEST])):
        if not values or any(not isinstance(v, int | float) or v < 0 for v in values):
            raise ConfigError(
                f"INPUT.MIN_SIZE_{key} {settings.get(f'INPUT.MIN_SIZE_{key}')} must be numbers of "
                "pixels, of which 0 leaves images as they are"
            )
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN {sizes} must be the least and the greatest size with "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING 'range'"
        )


def choose_device(cfg: Config, num_gpus: int = 1, num_processes: int | None = None) -> int:
    """Fit a config, ``--num-gpus`` and ``--num-processes`` to the machine.

    Without a GPU a config made for one runs on the CPU, without AMP, which Detectron2 has for GPUs
    only; one warning says so.

    Args:
        cfg: a config, whose device and use of AMP may be changed.
        num_gpus: GPUs of this machine that the user asked for.
        num_processes: processes on CPUs that the user asked for.

    Returns:
        number of processes to start on this machine.

    Raises:
        ConfigError: more GPUs are asked for than there are, or processes on CPUs where a GPU is
            used.
    """
    settings = Settings.of(cfg)
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wants_gpu = settings.device.startswith("cuda")
    if num_processes is not None:
        require_int("--num-processes", num_processes, 1)
    if wants_gpu and num_gpus > available > 0:
        raise ConfigError(f"--num-gpus is {num_gpus}, but this machine has {available} GPUs")
    if wants_gpu and available:
        if num_processes:
            raise ConfigError(
                "--num-processes is for CPUs, and this machine has GPUs: take --num-gpus, or set "
                f"{settings.key('device')} cpu"
            )
        return max(num_gpus, 1)
    amp = ""
    if settings.amp:
        settings.amp = False
        amp = settings.key("amp").rpartition(".")[0]
    if wants_gpu:
        settings.device = "cpu"
        without = f" and without {amp}" if amp else ""
        logger.warning("No GPU was found: running on the CPU%s.", without)
    elif amp:
        logger.warning("%s needs a GPU: running on %s without it.", amp, settings.device)
    return num_processes or 1
