"""Making a trained model ready for others: weights alone, a hash in the name, and a model card."""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg
from omegaconf import DictConfig

from ..config.load import load_config
from ..config.projects import flat_keys
from ..files import sha256, write_text
from ..modeling.build import build_detector
from ..weights import CLASSES_KEY, classes_in, describe_conversion, of_model, parts, read_checkpoint
from ..weights.writing import write_checkpoint

# Whose metrics are results; metrics.json of training has times and losses too.
TASKS = ("bbox", "segm", "keypoints", "sem_seg", "panoptic_seg")
_ABSENT = object()
# Of the machine that a model was trained on.
_PERSONAL = ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE")


def publish(
    checkpoint: Path,
    output: Path,
    config_file: Path,
    results: Path | None = None,
    name: str | None = None,
    ending: str = ".pth",
    opts: Sequence[str] = (),
) -> list[Path]:
    """Write a checkpoint's weights to ``<name>-<hash>`` and a model card beside it.

    Optimizer, schedule and whatever else training resumes from are left out; names of classes and
    the format of images stay. The config must build a model that the weights fill completely.

    Args:
        checkpoint: a file of training, or of any known naming.
        output: folder to write to; it is made if it is not there.
        config_file: the model's config, YAML or LazyConfig.
        results: ``metrics.json`` of training, or a JSON file of metrics by task.
        name: of the model; that of the config's file, or of its folder if that is "config".
        ending: ``.pth`` or ``.safetensors``.
        opts: overrides of the config.

    Returns:
        the files that were written: weights, card and, of a YAML config, what it sets otherwise
        than Detectron2.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: the checkpoint does not fit the config, is damaged, or there are no results in
            the file of results.
    """
    for file in filter(None, (checkpoint, results)):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
    if name is not None and Path(name).name != name:
        raise ValueError(f"a name is the beginning of a file's name, got {name!r}")
    cfg = load_config(str(config_file), list(opts))
    metrics = read_results(results) if results else {}
    content = read_checkpoint(checkpoint)
    try:
        weights = describe_conversion(content).weights
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    images = _check_fit(weights, cfg, checkpoint, config_file)
    published: dict[str, Any] = {"model": weights, "__author__": "resnest_d2"}
    if images:
        published["input"] = images
    if classes_in(content):
        published[CLASSES_KEY] = classes_in(content)

    is_yaml = isinstance(cfg, CfgNode)
    settings = _differing(cfg) if is_yaml else _as_yaml(cfg)
    output.mkdir(parents=True, exist_ok=True)
    name = name or _name(config_file)
    unnamed = output / f"{name}-unnamed{ending}"
    write_checkpoint(published, unnamed)
    digest = sha256(unnamed)
    target = output / f"{name}-{digest[:8]}{ending}"
    unnamed.replace(target)
    card = target.with_suffix(".md")
    write_text(card, _card(name, target, digest, published, settings, is_yaml, metrics))
    if not is_yaml:
        return [target, card]
    config = target.with_suffix(".yaml")
    write_text(config, settings)
    return [target, card, config]


def read_results(file: Path) -> dict[str, float]:
    """The last metrics in a file, ``{"bbox/AP": 42.8, ...}``.

    Known are Detectron2's ``metrics.json``, a JSON object a line, and one JSON object of metrics by
    task or with flat names.

    Raises:
        ValueError: there are none.
    """
    found: dict[str, float] = {}
    try:
        text = file.read_text()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no JSON but a binary file") from None
    try:
        entries = [json.loads(text)]
    except json.JSONDecodeError:
        try:
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is no JSON: {error}") from error
    for entry in entries:
        if isinstance(entry, Mapping):
            found.update(_flat(entry))
    if not found:
        known = ", ".join(f"{task}/AP" for task in TASKS)
        raise ValueError(f"{file} holds no results such as {known}")
    return found


def _flat(entry: Mapping[str, Any]) -> dict[str, float]:
    flat = {}
    for key, value in entry.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        for metric, number in inner.items():
            full = f"{key}/{metric}".rstrip("/")
            task = full.partition("/")[0].removesuffix("_TTA")
            if task in TASKS and isinstance(number, int | float) and math.isfinite(number):
                flat[full] = float(number)
    return flat


def _check_fit(
    weights: Mapping[str, torch.Tensor],
    cfg: CfgNode | DictConfig,
    checkpoint: Path,
    config_file: Path,
) -> dict[str, Any] | None:
    """Refuse weights that are not the config's; tell what images its model takes."""
    if isinstance(cfg, CfgNode):
        cfg = cfg.clone()
        cfg.MODEL.DEVICE = "cpu"
    else:
        cfg.train.device = "cpu"
    model = build_detector(cfg)
    states = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    optional = ("pixel_mean", "pixel_std")
    absent = [k for k in states if k not in weights and k not in optional]
    other = [
        k for k, v in states.items() if k in weights and tuple(weights[k].shape) != tuple(v.shape)
    ]
    too_many = [
        k
        for k in weights
        if k not in states and not k.endswith("num_batches_tracked") and k not in optional
    ]
    for keys, what in (
        (absent, "lacks"),
        (other, "has other shapes for"),
        (too_many, "has besides the model"),
    ):
        if keys:
            raise ValueError(
                f"{checkpoint} is not of the model in {config_file}: it {what} {len(keys)} "
                f"parameters, in {parts(keys)}"
            )
    found = of_model(model)
    return found.to_dict() if found else None


def _name(config_file: Path) -> str:
    return config_file.parent.name if config_file.stem == "config" else config_file.stem


def _card(
    name: str,
    file: Path,
    digest: str,
    published: Mapping[str, Any],
    settings: str,
    is_yaml: bool,
    metrics: Mapping[str, float],
) -> str:
    """A model card in Markdown, with the front matter of the Hugging Face hub."""
    weights = published["model"]
    values = sum(tensor.numel() for tensor in weights.values())
    lines = ["---", "library_name: detectron2", "tags:", "- resnest", "- object-detection", "---"]
    lines += [f"# {name}", ""]
    lines += [
        f"- File: `{file.name}`, {file.stat().st_size / 1e6:.1f} MB, {values / 1e6:.1f} M values",
        f"- SHA-256: `{digest}`",
    ]
    if published.get("input"):
        images = published["input"]
        lines.append(f"- Images: {images['channels']}, mean {images['mean']}, std {images['std']}")
    names = (published.get(CLASSES_KEY) or {}).get("thing_classes")
    if names:
        lines.append(f"- Classes ({len(names)}): {', '.join(map(str, names))}")
    lines += ["", "## Results", ""]
    if metrics:
        lines += ["| metric | value |", "|---|---:|"]
        lines += [f"| {metric} | {value:.2f} |" for metric, value in metrics.items()]
    else:
        lines.append("None were given.")
    what = "Settings that differ from Detectron2's defaults" if is_yaml else "The LazyConfig"
    if is_yaml:
        lines += [
            *("", "## Use", "", "In a clone of resnest_d2:", "", "```sh"),
            f"tools/predict.py --config-file {file.with_suffix('.yaml').name} --input photo.jpg "
            f"--output drawn --opts MODEL.WEIGHTS {file.name}",
            "```",
        ]
    lines += ["", "## Config", "", f"{what}:", "", "```yaml", settings.rstrip(), "```", ""]
    return "\n".join(lines)


def _as_yaml(cfg: DictConfig) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        LazyConfig.save(cfg, str(file))
        return file.read_text()


def _differing(cfg: CfgNode) -> str:
    """As YAML, what a config sets otherwise than Detectron2."""
    defaults = get_cfg()
    changed = CfgNode()
    for key in flat_keys(cfg):
        *parents, last = key.split(".")
        ours, theirs = cfg, defaults
        for parent in parents:
            ours = ours[parent]
            theirs = theirs.get(parent, {})
        if key in _PERSONAL or theirs.get(last, _ABSENT) == ours[last]:
            continue
        node = changed
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        node[last] = ours[last]
    changed.VERSION = cfg.VERSION  # without it Detectron2 guesses, and says so
    return changed.dump()
