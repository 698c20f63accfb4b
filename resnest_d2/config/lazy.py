"""Detectron2's LazyConfig: reading ``.py`` configs and overriding them."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import ConfigError, did_you_mean
from .keys import flat_keys

# A LazyConfig saved as YAML may call these packages; a ``.py`` config is code and may call any.
TRUSTED = ("detectron2.", "fvcore.", "resnest_d2.", "torch.nn.", "torch.optim.")


def restore_lazy_config(
    content: dict[str, Any], file: str, overrides: Sequence[str] = (), known: Any = None
) -> DictConfig:
    """A LazyConfig from the YAML that training saved of it.

    Args:
        content: what the YAML holds.
        file: its path, for messages.
        overrides: as of :func:`override`.
        known: another config's content; what that one calls may be called.

    Raises:
        ConfigError: as :func:`override`, or it calls what is none of the known packages'.
    """
    for target in set(_targets(content)).difference(_targets(known)):
        found = locate(target) if target.startswith(TRUSTED) else None
        if not f"{getattr(found, '__module__', '')}.".startswith(TRUSTED):
            raise ConfigError(
                f"{file} calls {target}, which is none of {', '.join(t[:-1] for t in TRUSTED)}: "
                "take the .py config that it was saved from"
            )
    cfg = OmegaConf.create(content, flags={"allow_objects": True})
    return override(cfg, file, overrides)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    for value in node if isinstance(node, list) else ():
        yield from _targets(value)


def override(cfg: DictConfig, file: str, overrides: Sequence[str]) -> DictConfig:
    """Override keys of a LazyConfig, in place, and return it.

    Args:
        cfg: the config.
        file: its path, for messages.
        overrides: ``["train.max_iter=100", ...]`` in Hydra's grammar.

    Raises:
        ConfigError: the file is no config, or an override names a key that does not exist.
    """
    if "model" not in cfg:
        raise ConfigError(f"{file} defines no 'model'")
    for override in overrides:
        from hydra.errors import HydraException  # Detectron2, too, imports it for options only

        key, equals, _ = override.partition("=")
        if not equals:
            raise ConfigError(
                f"options of a .py config have the form key=value (train.init_checkpoint=x.pth), "
                f"got {override!r}"
            )
        _check_key(cfg, key)
        try:
            LazyConfig.apply_overrides(cfg, [override])
        except (KeyError, OmegaConfBaseException, HydraException) as error:
            raise ConfigError(f"option {override!r}: {error}") from error
    return cfg


def _check_key(cfg: DictConfig, key: str) -> None:
    """Refuse a name that OmegaConf would silently add."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, default=None) if parent else cfg
    if node is not None and OmegaConf.is_list(node):
        return
    if OmegaConf.is_dict(node) and (name in node or _takes(node, name)):
        return
    known = flat_keys(OmegaConf.to_container(cfg, resolve=False))
    raise ConfigError(f"there is no key {key!r} in the config{did_you_mean(key, known)}")


def _takes(node: DictConfig, argument: str) -> bool:
    """Whether a call that the config describes has an argument of that name."""
    target = node.get("_target_", None)
    if target is None:
        return False
    signature = inspect.signature(locate(target) if isinstance(target, str) else target)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return argument in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds


def detectron2_config(path: str) -> DictConfig:
    """Read a LazyConfig that ships with Detectron2, ``"common/models/mask_rcnn_fpn.py"``.

    ``detectron2.model_zoo.get_config`` does the same, but cannot be imported with setuptools 81
    or newer, which have no ``pkg_resources``.

    Raises:
        FileNotFoundError: this Detectron2 has no such config.
    """
    file = Path(detectron2.__file__).parent / "model_zoo/configs" / path
    if not file.is_file():
        raise FileNotFoundError(f"this Detectron2 came without its config {file}")
    return LazyConfig.load(str(file))
