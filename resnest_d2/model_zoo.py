"""Models by name, with the verbs of ``detectron2.model_zoo``.

A name is a config's path under ``configs/`` without its ending: ``"cascade_resnest101"``.
"""

import difflib
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from .build import build_detector
from .config import add_resnest_config
from .weights import load_weights

# Box and mask AP on COCO val2017, as published beside the reference's configurations.
_PUBLISHED: dict[str, dict[str, float]] = {
    "faster_resnest50": {"bbox/AP": 42.33},
    "mask_resnest50": {"bbox/AP": 42.81, "segm/AP": 38.14},
    "cascade_resnest50": {"bbox/AP": 46.19, "segm/AP": 39.55},
    "cascade_resnest101": {"bbox/AP": 48.30, "segm/AP": 41.56},
}

# The file names of the trained models that belong to those figures.
_CHECKPOINT_ROOT = "https://s3.us-west-1.wasabisys.com/resnest/detectron/"
_CHECKPOINTS: dict[str, str] = {
    "faster_resnest50": "faster_rcnn_ResNeSt_50_FPN_syncbn_range-scale_1x-ad123c0b.pth",
    "mask_resnest50": "mask_rcnn_ResNeSt_50_FPN_syncBN_1x-f442d863.pth",
    "cascade_resnest50": "mask_cascade_rcnn_ResNeSt_50_FPN_syncBN_1x-c58bd325.pth",
    "cascade_resnest101": "mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x-62448b9c.pth",
}


def _config_dir() -> Path:
    # Inside the package when it was installed from a wheel, beside it in a clone.
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Names of all models, sorted; shared ``base_*`` files are none."""
    root = _config_dir()
    return sorted(
        path.relative_to(root).with_suffix("").as_posix()
        for path in root.rglob("*.yaml")
        if not path.name.startswith("base_")
    )


def _known(name: str) -> str:
    """The name without its ending, if there is such a model."""
    name = name.removesuffix(".yaml")
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        raise ValueError(f"no model {name!r}; did you mean {' or '.join(close or known)}?")
    return name


def get_config_file(name: str) -> str:
    """Path of a model's config file.

    Args:
        name: a name of :func:`names`, with or without ``.yaml``.

    Raises:
        ValueError: there is no such model; the message lists the closest names.
    """
    return str(_config_dir() / f"{_known(name)}.yaml")


def get_config(name: str) -> CfgNode:
    """A model's full config: Detectron2's defaults, ResNeSt's keys and the model's file."""
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    return cfg


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build a model in evaluation mode.

    Args:
        name: a name of :func:`names`.
        trained: load the published checkpoint; otherwise the weights are random.
        device: where to put it; None takes a GPU if there is one.

    Raises:
        ValueError: there is no such model, no checkpoint of it, or one that does not fill it.
    """
    cfg = get_config(name)
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = get_checkpoint_url(name) if trained else None
    model = build_detector(cfg)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model.eval()


def get_checkpoint_url(name: str) -> str:
    """Address of the published trained model.

    Raises:
        ValueError: there is no such model, or nobody has published a checkpoint of it.
    """
    name = _known(name)
    if name not in _CHECKPOINTS:
        raise ValueError(f"no checkpoint of {name!r} was published")
    return _CHECKPOINT_ROOT + _CHECKPOINTS[name]


def published(name: str) -> dict[str, float]:
    """Published metrics, e.g. ``{"bbox/AP": 48.3, "segm/AP": 41.56}``; empty if there are none.

    Raises:
        ValueError: there is no such model.
    """
    return dict(_PUBLISHED.get(_known(name), {}))
