"""Models by name, with the four verbs of ``detectron2.model_zoo`` and their meanings.

A name is a config's path under ``configs/``, with or without its ending: ``"cascade_resnest101"``,
``"baselines/mask_resnet50"``. What was published about them is in
:mod:`resnest_d2.model_zoo.published`.
"""

from detectron2.config import CfgNode
from torch import nn

from ..config import InputError, did_you_mean
from ..config.load import choose_device, config_dir, load_config
from ..modeling.detector import build_detector
from .published import PUBLICATIONS


def names() -> list[str]:
    """Names of all models, sorted; shared files (``base_*``) are none."""
    root = config_dir()
    paths = sorted(path.relative_to(root) for path in root.rglob("*.yaml"))
    return [p.with_suffix("").as_posix() for p in paths if not p.name.startswith("base_")]


def _known(name: str) -> str:
    """The name without its ending, if there is such a model."""
    stem, known = name.removesuffix(".yaml"), names()
    if stem not in known:
        last = stem.lower().rpartition("/")[2]  # so that a folder may be forgotten
        same = [n for n in known if n.rpartition("/")[2] == last]
        raise InputError(f"no model {name!r}{did_you_mean(stem.lower(), known, 0.3, same)}")
    return stem


def get_config_file(name: str) -> str:
    """Path of a model's config file.

    Raises:
        InputError: there is no such model; the message lists the closest names.
    """
    return str(config_dir() / f"{_known(name)}.yaml")


def get_config(name: str, trained: bool = False) -> CfgNode:
    """A model's full config.

    Args:
        name: of the model.
        trained: set ``MODEL.WEIGHTS`` to the published checkpoint; else it is the config's, for
            most models a backbone for ImageNet.

    Raises:
        InputError: there is no such model, or no checkpoint of it.
    """
    cfg = load_config(get_config_file(name))
    if trained:
        get_checkpoint_url(name)  # names a model that nobody has published
        cfg.MODEL.WEIGHTS = f"resnest://COCO/{name.removesuffix('.yaml')}"
    return cfg


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build a model and load the ``MODEL.WEIGHTS`` of its config; it is in training mode.

    Args:
        name: of the model.
        trained: load the published checkpoint.
        device: as ``MODEL.DEVICE``; None takes the config's, or the CPU where there is no GPU.

    Raises:
        InputError: as :func:`get_config`, or the weights cannot be fetched or do not fit.
    """
    # They stand above the zoo, whose names they know.
    from ..weights import WeightsCheckpointer, load_weights

    cfg = get_config(name, trained)
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    choose_device(cfg, required=device is not None)
    model = build_detector(cfg)
    if trained:
        load_weights(model, cfg.MODEL.WEIGHTS)
    else:
        WeightsCheckpointer(model).load_to_train(cfg.MODEL.WEIGHTS)
    return model


def get_checkpoint_url(name: str) -> str:
    """Address of the published trained model.

    Raises:
        InputError: there is no such model, or nobody has published a checkpoint of it.
    """
    name = _known(name)
    if name not in PUBLICATIONS:
        raise InputError(f"no checkpoint of {name!r} was published")
    return PUBLICATIONS[name].url


def published(name: str) -> dict[str, float]:
    """Published metrics, e.g. ``{"bbox/AP": 48.3, "segm/AP": 41.56}``; empty if there are none.

    They were measured on COCO val2017, those of ``cascade_resnest200_dcn_3x_ms`` on test-dev.

    Raises:
        InputError: there is no such model.
    """
    publication = PUBLICATIONS.get(_known(name))
    return dict(publication.metrics) if publication else {}
