"""Config keys of Detectron2's projects, for the models whose heads come from them."""

import importlib
from collections.abc import Collection, Iterator
from typing import Any

from detectron2.config import CfgNode

# Modules with the function that adds their keys. Importing them also registers their heads, so they
# are imported only for configs that need them.
PROJECTS: dict[str, str] = {
    "resnest_d2.modeling.deeplab": "add_deeplab_config",
    "detectron2.projects.point_rend": "add_pointrend_config",
}


def flat_keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values below a config node, ``"MODEL.WEIGHTS"``, ..."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def add_project_config(cfg: CfgNode, keys: Collection[str]) -> None:
    """Add the keys of each project that has some of ``keys`` which ``cfg`` lacks.

    Args:
        cfg: a config of defaults.
        keys: dotted names that are going to be set. Ones that no project knows stay missing.

    Raises:
        ImportError: this Detectron2 came without its projects.
    """
    for module, function in PROJECTS.items():
        missing = set(keys) - set(flat_keys(cfg))
        if not missing:
            return
        add_keys = getattr(importlib.import_module(module), function)
        extended = cfg.clone()
        add_keys(extended)
        if missing & set(flat_keys(extended)):
            add_keys(cfg)
