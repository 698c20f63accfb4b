"""Models by name, with the verbs of ``detectron2.model_zoo``.

A name is a config's path under ``configs/`` without its ending: ``"cascade_resnest101"``,
``"baselines/mask_resnet50"``, and ``"lazy/cascade_resnest101"`` for a LazyConfig. What was
published about them is in :mod:`resnest_d2.model_zoo.published`.
"""

import torch
from detectron2.config import CfgNode
from omegaconf import DictConfig
from torch import nn

from ..config import InputError, did_you_mean
from ..config.load import config_dir, load_config
from ..config.settings import Settings
from ..modeling.detector import build_detector
from .published import PUBLICATIONS, Publication

LAZY = "lazy/"


def names(lazy: bool = False) -> list[str]:
    """Names of all models, sorted; shared files (``base_*``, ``lazy/common``) are none.

    Args:
        lazy: those that are LazyConfigs (``.py``), in place of those in YAML.
    """
    root = config_dir()
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py" if lazy else "*.yaml"))
    return [
        path.with_suffix("").as_posix()
        for path in paths
        if not path.name.startswith(("base_", "_")) and "common" not in path.parts
    ]


def _known(name: str) -> str:
    """The name without its ending, if there is such a model."""
    if not isinstance(name, str):
        raise InputError(f"a model's name is a string, got {name!r}")
    stem = name.removesuffix(".yaml").removesuffix(".py")
    known = names() + names(lazy=True)
    if stem not in known or name == f"{stem}.{'yaml' if stem.startswith(LAZY) else 'py'}":
        # By the last part, so that a folder may be forgotten.
        last = stem.lower().rpartition("/")[2]
        same = [n for n in known if n.rpartition("/")[2] == last]
        hint = f"; did you mean {' or '.join(same)}?" if same else did_you_mean(last, known, 0.3)
        raise InputError(f"no model {name!r}{hint}")
    return stem


def get_config_file(name: str) -> str:
    """Path of a model's config file.

    Args:
        name: a name of :func:`names`, with or without its ending.

    Raises:
        InputError: there is no such model; the message lists the closest names.
    """
    name = _known(name)
    return str(config_dir() / f"{name}{'.py' if name.startswith(LAZY) else '.yaml'}")


def get_config(name: str) -> CfgNode | DictConfig:
    """A model's full config.

    Returns:
        Detectron2's defaults, ResNeSt's keys, those of the project that the head comes from, and
        the model's file; for a name under ``lazy/``, what the file defines.
    """
    return load_config(get_config_file(name))


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build a model in evaluation mode.

    Args:
        name: a name of :func:`names`.
        trained: load the published checkpoint; otherwise the weights are random.
        device: where to put it; None takes a GPU if there is one.

    Raises:
        InputError: there is no such model, no checkpoint of it, or one that does not fill it.
    """
    if trained:
        get_checkpoint_url(name)  # names a model that nobody has published
    settings = Settings.of(get_config(name))
    settings.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_detector(settings)
    if trained:
        from ..weights import load_weights  # it stands above the zoo, whose names it knows

        load_weights(model, f"resnest://COCO/{_known(name)}")
    return model.eval()


def _publication(name: str) -> Publication | None:
    return PUBLICATIONS.get(_known(name).removeprefix(LAZY))


def get_checkpoint_url(name: str) -> str:
    """Address of the published trained model; a LazyConfig has that of its YAML twin.

    Raises:
        InputError: there is no such model, or nobody has published a checkpoint of it.
    """
    if publication := _publication(name):
        return publication.url
    raise InputError(f"no checkpoint of {_known(name)!r} was published")


def published(name: str) -> dict[str, float]:
    """Published metrics, e.g. ``{"bbox/AP": 48.3, "segm/AP": 41.56}``; empty if there are none.

    They were measured on COCO val2017, those of ``cascade_resnest200_dcn_3x_ms`` on test-dev.

    Raises:
        InputError: there is no such model.
    """
    publication = _publication(name)
    return dict(publication.metrics) if publication else {}
