"""ResNeSt's keys, the keys of Detectron2's projects, and reading YAML without running it."""

import importlib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, ClassVar

import yaml
from detectron2.config import CfgNode, downgrade_config, get_cfg, upgrade_config
from detectron2.config.compat import guess_version
from detectron2.layers import ShapeSpec
from detectron2.utils.file_io import PathManager

from . import ConfigError, did_you_mean

RESNEST_DEFAULTS: dict[str, Any] = {
    # Splits per cardinal group: 0 a plain convolution, 1 sigmoid attention, >= 2 softmax attention.
    "RADIX": 2,
    # Three 3x3 convolutions in place of one 7x7 (ResNet-C/D); the stem's width comes with DEPTH.
    "DEEP_STEM": True,
    # Downsample with a 3x3 average pooling beside the 3x3 convolution, in place of its stride.
    "AVD": True,
    # Pool before the 3x3 convolution (the ImageNet "fast" variants), not after it.
    "AVD_FIRST": False,
    # Average pooling in front of a 1x1 projection shortcut of stride 1 (ResNet-D).
    "AVG_DOWN": True,
    # The d of the variants' names (2s1x64d); the group width is scaled by BOTTLENECK_WIDTH / 64.
    "BOTTLENECK_WIDTH": 64,
    # Recompute blocks in the backward pass instead of keeping their activations.
    "GRAD_CHECKPOINT": False,
}

# Detectron2's builders of plain ResNets, and the depths that these have.
PLAIN_BUILDERS = (
    *("build_resnet_backbone", "build_resnet_fpn_backbone"),
    "build_retinanet_resnet_fpn_backbone",
)
PLAIN_DEPTHS = (18, 34, 50, 101, 152)

# Modules with the function that adds their keys. Importing them also registers their heads, so they
# are imported only for configs that need them.
PROJECTS: dict[str, str] = {
    "resnest_d2.modeling.deeplab": "add_deeplab_config",
    "detectron2.projects.point_rend": "add_pointrend_config",
}


def add_resnest_config(cfg: CfgNode) -> None:
    """Add ResNeSt's keys under ``MODEL.RESNETS``, and this package's others, if they are missing.

    The names are those of the reference (``resnest.d2.add_resnest_config``), so its users' YAML
    files load unchanged. Unlike the reference it leaves ``STRIDE_IN_1X1`` alone, which ResNet
    baselines need at Detectron2's default; the ResNeSt builders do not read that key.
    """
    for node, key, default in _own_keys(cfg):
        node.setdefault(key, default)


def _own_keys(cfg: CfgNode) -> Iterator[tuple[CfgNode, str, Any]]:
    """The nodes of a config, the keys that this package adds to them, and their defaults."""
    for key, default in RESNEST_DEFAULTS.items():
        yield cfg.MODEL.RESNETS, key, default
    # Compile the backbone for training with torch.compile.
    yield cfg.MODEL, "COMPILE", False
    # Factor of the learning rate in the bottom-up network, as in MaskFormer's configs.
    yield cfg.SOLVER, "BACKBONE_MULTIPLIER", 1.0
    # Large-scale jitter in place of INPUT.MIN_SIZE_TRAIN: images are scaled to fit a random
    # multiple of IMAGE_SIZE, and cropped or padded to it (arXiv:2012.07177).
    jitter = {"ENABLED": False, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "IMAGE_SIZE": 1024}
    yield cfg.INPUT, "LSJ", CfgNode(jitter)


def merge_config(loaded: dict[str, Any], file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Put settings over Detectron2's defaults, ResNeSt's keys and those of needed projects.

    Args:
        loaded: the content of a YAML file.
        file: its path, for messages.
        opts: keys and values that override it, ``["SOLVER.BASE_LR", "0.01", ...]``.

    Raises:
        ConfigError: a key that does not exist, or a value that does not fit its key.
    """
    cfg = get_cfg()
    add_resnest_config(cfg)
    _add_project_config(cfg, {*flat_keys(loaded), *opts[::2]})
    with errors_of(file, cfg):
        node = CfgNode(loaded)
        version = node.get("VERSION") or guess_version(node, file)
        if version > cfg.VERSION:
            raise ValueError(f"VERSION is {version}, this Detectron2's is {cfg.VERSION}")
        cfg = downgrade_config(cfg, to_version=version) if version < cfg.VERSION else cfg
        cfg.merge_from_other_cfg(node)
        cfg = upgrade_config(cfg)
    with errors_of("the command line", cfg):
        cfg.merge_from_list(list(opts))
    _check_builder(cfg, {*flat_keys(loaded), *opts[::2]})
    return cfg


def _check_builder(cfg: CfgNode, named: Collection[str]) -> None:
    """Refuse a plain ResNet's builder with settings of a ResNeSt, as ResNeSt's fork spells it.

    Args:
        cfg: the config.
        named: the keys that a user has set; a default of this package asks for nothing.
    """
    builder, resnets = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS
    if builder not in PLAIN_BUILDERS:
        return
    asks = {"RADIX": resnets.RADIX >= 2, "DEPTH": resnets.DEPTH not in PLAIN_DEPTHS}
    asks |= {key: resnets[key] for key in ("AVD", "DEEP_STEM", "AVG_DOWN")}
    for key, asked in asks.items():
        if asked and f"MODEL.RESNETS.{key}" in named:
            raise ConfigError(
                f"MODEL.RESNETS.{key} {resnets[key]} is a ResNeSt's, but MODEL.BACKBONE.NAME "
                f"{builder!r} builds a plain ResNet without it: write "
                f"{builder.replace('resnet_', 'resnest_')!r}, or take the key out"
            )


def portable_config(cfg: CfgNode) -> CfgNode:
    """A copy of a config that any Detectron2 program can read.

    It lacks the keys of this package that have their defaults.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for node, key, default in _own_keys(cfg):
        if node.get(key) == default:
            node.pop(key, None)
    return cfg


@contextmanager
def errors_of(source: str, cfg: CfgNode | None = None) -> Iterator[None]:
    """Turn what Detectron2 and OmegaConf raise on a wrong config into a ConfigError.

    Args:
        source: the file, or "the command line", which the message begins with.
        cfg: a config whose keys are suggested for one that does not exist.
    """
    try:
        yield
    except KeyError as error:
        name = str(error.args[0]).rpartition(" ")[2] if error.args else ""
        hint = did_you_mean(name, flat_keys(cfg)) if cfg is not None else ""
        raise ConfigError(f"{source}: {error.args[0]}{hint}") from error
    except ConfigError:
        raise
    except (AssertionError, AttributeError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error


def flat_items(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values below a config node with their dotted names, ``("MODEL.WEIGHTS", "")``, ..."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat_keys(node: dict[str, Any]) -> Iterator[str]:
    """Dotted names of all values below a config node."""
    return (key for key, _ in flat_items(node))


def _add_project_config(cfg: CfgNode, keys: Collection[str]) -> None:
    """Add the keys of each project that has some of ``keys`` which ``cfg`` lacks."""
    for module, function in PROJECTS.items():
        if missing := set(keys) - set(flat_keys(cfg)):
            add_keys = getattr(importlib.import_module(module), function)
            extended = cfg.clone()
            add_keys(extended)
            if missing & set(flat_keys(extended)):
                add_keys(cfg)


class _Loader(yaml.FullLoader):
    """YAML's plain values, and Python's tuples and the like; nothing that calls or imports."""

    # The only expression in Detectron2's own configs (Base-RetinaNet.yaml).
    EXPRESSIONS: ClassVar = {
        "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]": [
            [x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in (32, 64, 128, 256, 512)
        ]
    }

    def refuse(self, suffix: str, node: yaml.Node) -> Any:
        """Refuse a tag that would run code."""
        if suffix == "object/apply:eval":
            (expression,) = self.construct_sequence(node)
            if expression in self.EXPRESSIONS:
                return self.EXPRESSIONS[expression]
        if suffix == "object:detectron2.layers.shape_spec.ShapeSpec":  # in saved LazyConfigs
            return ShapeSpec(**self.construct_mapping(node))
        line = node.start_mark.line + 1
        raise ConfigError(f"line {line}: the tag !!python/{suffix} would run code; it was not read")

    yaml_multi_constructors: ClassVar = {"tag:yaml.org,2002:python/": refuse}


def parse_yaml(text: str | IO[str], name: str) -> dict[str, Any]:
    """Read YAML whose ``_BASE_``, if it has one, is not followed.

    Args:
        text: it, or a file that is open.
        name: of the file, for messages.

    Raises:
        ConfigError: it is no YAML, would run code, or holds no keys.
    """
    try:
        content = yaml.load(text, _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: it is no config but holds a {type(content).__name__}")
    return content


def read_yaml(file: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a YAML file over its ``_BASE_`` files (one, or a list of which later ones win).

    Args:
        file: a path or an address.
        above: the files that led to this one by their ``_BASE_``.

    Raises:
        ConfigError: a file is no YAML, would run code, or is its own base.
        OSError: a file cannot be read.
    """
    if file in above:
        raise ConfigError(f"{file} is its own _BASE_")
    with PathManager.open(file, "r") as stream:
        content = parse_yaml(stream, file)
    bases = content.pop("_BASE_", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        path = os.path.expanduser(base)
        if not path.startswith(("/", "https://", "http://")):
            path = os.path.normpath(os.path.join(os.path.dirname(file), path))
        _merge(read_yaml(path, (*above, file)), merged, file)
    _merge(content, merged, file)
    return merged


def _merge(new: dict[str, Any], into: dict[str, Any], file: str) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(value, into[key], file)
        elif isinstance(value, dict) and key in into:
            raise ConfigError(f"{file}: {key} holds keys here, and a value in its _BASE_")
        else:
            into[key] = value
