"""Detectron2's LazyConfig: reading ``.py`` configs, overriding them, building their models."""

import difflib
import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..modeling.norm import convert_sync_batchnorm
from .projects import flat_keys

# What the commands read of a recipe, as in Detectron2's own; all else has a default.
EVALUATION_KEYS = (
    "dataloader.test",
    "dataloader.evaluator",
    "train.init_checkpoint",
    "train.output_dir",
)
TRAINING_KEYS = (
    *("dataloader.train", "lr_multiplier", "optimizer.params", "train.init_checkpoint"),
    *("train.output_dir", "train.max_iter", "train.ddp", "train.checkpointer.period"),
    *("train.eval_period", "train.log_period"),
)


def read_lazy_config(file: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a ``.py`` config.

    Args:
        file: its path.
        overrides: ``["train.max_iter=100", ...]`` in Hydra's grammar.

    Raises:
        ValueError: the file is no config, or an override names a key that does not exist.
    """
    cfg = LazyConfig.load(file)
    if "model" not in cfg:
        raise ValueError(f"{file} defines no 'model'")
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise ValueError(
                f"options of a .py config have the form key=value (train.init_checkpoint=x.pth), "
                f"got {override!r}"
            )
        _check_key(cfg, key)
        try:
            LazyConfig.apply_overrides(cfg, [override])
        except (KeyError, OmegaConfBaseException) as error:
            raise ValueError(f"option {override!r}: {error}") from error
        except Exception as error:  # Hydra's parser has a type of its own
            if type(error).__module__.startswith("hydra"):
                raise ValueError(f"option {override!r}: {error}") from error
            raise
    return cfg


def _check_key(cfg: DictConfig, key: str) -> None:
    """Refuse a name that OmegaConf would silently add."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, default=None) if parent else cfg
    if node is not None and OmegaConf.is_list(node):
        return
    if isinstance(node, DictConfig) and (name in node or _takes(node, name)):
        return
    known = list(flat_keys(OmegaConf.to_container(cfg, resolve=False)))
    close = difflib.get_close_matches(key, known, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"there is no key {key!r} in the config{hint}")


def _takes(node: DictConfig, argument: str) -> bool:
    """Whether a call that the config describes has an argument of that name."""
    target = node.get("_target_", None)
    if target is None:
        return False
    parameters = inspect.signature(locate(target) if isinstance(target, str) else target).parameters
    return argument in parameters or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )


def detectron2_config(path: str) -> DictConfig:
    """Read a LazyConfig that ships with Detectron2, ``"common/models/mask_rcnn_fpn.py"``.

    ``detectron2.model_zoo.get_config`` does the same, but cannot be imported with setuptools 81
    or newer, for want of ``pkg_resources``.

    Raises:
        FileNotFoundError: this Detectron2 has no such config.
    """
    file = Path(detectron2.__file__).parent / "model_zoo/configs" / path
    if not file.is_file():
        raise FileNotFoundError(f"this Detectron2 came without its config {file}")
    return LazyConfig.load(str(file))


def build_lazy_detector(cfg: DictConfig) -> nn.Module:
    """Instantiate ``cfg.model`` on ``cfg.train.device``; SyncBN works on any device.

    Raises:
        ValueError: a setting of the backbone that is not possible.
    """
    device = OmegaConf.select(cfg, "train.device", default="cpu")
    return convert_sync_batchnorm(instantiate(cfg.model)).to(device)


def is_lazy(file: str | os.PathLike) -> bool:
    """Whether a config file is a LazyConfig: ``.py``, or what training saved of one as YAML."""
    path = Path(file)
    if path.suffix in (".yaml", ".yml"):  # keys of the other kind are upper case
        return re.search(r"^model:", path.read_text(), re.MULTILINE) is not None
    return path.suffix == ".py"


def select(cfg: DictConfig, key: str, default: Any = None) -> Any:
    """A value by its dotted name, or the default where there is none."""
    return OmegaConf.select(cfg, key, default=default)


def require_keys(cfg: DictConfig, keys: Sequence[str]) -> None:
    """See that a LazyConfig has what a command needs.

    Raises:
        ValueError: it lacks a key; the message names it.
    """
    missing = [key for key in keys if select(cfg, key) is None]
    if missing:
        raise ValueError(f"the .py config lacks {', '.join(missing)}")
