"""Make a trained model ready for others: weights alone, a hash in the name, and a model card."""

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation.testing import flatten_results_dict
from torch import nn

from ..config import InputError
from ..config.keys import portable_config
from ..config.settings import Settings
from ..engine.options import TASKS
from ..files import sha256, write_text
from ..modeling.detector import build_detector
from ..weights.files import ENDINGS, Checkpoint, write_checkpoint
from ..weights.input_format import of_model
from ..weights.loading import parts, read_config
from ..weights.stored_config import config_text, load_config_of_weights
from . import setting_up
from .convert_weights import read

logger = logging.getLogger(__name__)

# These settings tell of the machine that a model was trained on.
_PERSONAL = ("output_dir", "weights", "device")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if the files do not belong together."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="model_final.pth, say")
    add("output", type=Path, help="folder for the weights and the model card")
    add(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="the model's config (default: config.yaml beside the checkpoint, or the one in it)",
    )
    add(
        "--results",
        type=Path,
        metavar="FILE",
        help="JSON file of metrics (default: metrics.json beside the checkpoint, if it is there)",
    )
    add("--name", help="of the model (default: that of the config)")
    add("--format", choices=[e.lstrip(".") for e in ENDINGS], default="pth")
    add("--opts", default=[], nargs=argparse.REMAINDER, help="overrides of the config")
    args = parser.parse_args(arguments)
    with setting_up("resnest_d2"):
        written = publish(args)
    print("\n".join(map(str, written)))
    return 0


def publish(args: argparse.Namespace) -> list[Path]:
    """Write a checkpoint's weights to ``<name>-<hash>`` and a model card beside it.

    Optimizer, schedule and whatever else training resumes from are left out; names of classes and
    the format of images stay. The config must build a model that the weights fill completely.

    Returns:
        the files that were written: weights, card and, for a YAML config, the settings that differ
        from Detectron2's.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: the checkpoint does not fit the config or is damaged, or the file of results
            has none.
    """
    folder, output, name = args.checkpoint.parent, args.output, args.name
    config_file = args.config_file or folder / "config.yaml"
    if not args.config_file and not config_file.is_file() and read_config(str(args.checkpoint)):
        config_file = None
    results = args.results or folder / "metrics.json"
    for file in filter(None, (args.checkpoint, args.results)):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
    if name is not None and Path(name).name != name:
        raise InputError(f"a name is the beginning of a file's name, got {name!r}")
    cfg = load_config_of_weights(str(config_file or ""), args.opts, weights=str(args.checkpoint))
    settings = Settings.of(cfg)
    metrics = {}
    if results.is_file():
        try:
            metrics = read_results(results)
        except InputError as error:  # a run that was never evaluated has a metrics.json, too
            if args.results:
                raise
            logger.warning("%s: the card names none", error)
    conversion, published = read(str(args.checkpoint))
    on_cpu = settings.copy()
    on_cpu.device = "cpu"
    model = build_detector(on_cpu)
    if problem := _misfit(conversion.weights, model):
        where = config_file or f"its own config{' with --opts' if args.opts else ''}"
        raise InputError(f"{args.checkpoint} is not of the model in {where}: {problem}")
    text = settings_text(settings)
    published = replace(published, input_format=of_model(model), config=text)

    output.mkdir(parents=True, exist_ok=True)
    named = config_file or folder / "config.yaml"
    name = name or (named.resolve().parent.name if named.stem == "config" else named.stem)
    unnamed = output / f"{name}-unnamed.{args.format}"
    write_checkpoint(published, unnamed)
    target = unnamed.replace(output / f"{name}-{sha256(unnamed)[:8]}.{args.format}")
    card, config = target.with_suffix(".md"), target.with_suffix(".yaml")
    write_text(card, _card(name, target, published, text, settings.is_lazy, metrics))
    if settings.is_lazy:
        return [target, card]
    write_text(config, text)
    return [target, card, config]


def read_results(file: Path) -> dict[str, float]:
    """Read the last metrics in a file, ``{"bbox/AP": 42.8, ...}``.

    The file is Detectron2's ``metrics.json``, a JSON object a line, or one JSON object of metrics
    by task or with flat names.

    Raises:
        InputError: there are none.
    """
    try:
        text = file.read_text()
        try:
            entries = [json.loads(text)]
        except json.JSONDecodeError as error:
            entries = []
            for line in text.splitlines():
                with suppress(json.JSONDecodeError):  # cut off where a machine died
                    entries.append(json.loads(line))
            if not entries:
                raise InputError(f"{file} is no JSON: {error}") from error
    except UnicodeDecodeError:
        raise InputError(f"{file} is no JSON but a binary file") from None
    found: dict[str, float] = {}
    for entry in entries:
        for key, value in flatten_results_dict(entry if isinstance(entry, dict) else {}).items():
            is_result = key.partition("/")[0].removesuffix("_TTA") in TASKS
            if is_result and isinstance(value, int | float) and math.isfinite(value):
                found[key] = float(value)
    if not found:
        known = ", ".join(f"{task}/AP" for task in TASKS)
        raise InputError(f"{file} holds no results such as {known}")
    return found


def _misfit(weights: Mapping[str, Any], model: nn.Module) -> str:
    """Say how weights differ from a model's; "" if they fill it."""
    optional = ("pixel_mean", "pixel_std", "num_batches_tracked")
    ours, theirs = (
        {key: value.shape for key, value in state.items() if not key.endswith(optional)}
        for state in (model.state_dict(), weights)
    )
    common = ours.keys() & theirs.keys()
    for keys, what in (
        (ours.keys() - common, "lacks"),
        ([key for key in common if ours[key] != theirs[key]], "has other shapes for"),
        (theirs.keys() - common, "has besides the model"),
    ):
        if keys:
            return f"it {what} {len(keys)} parameters, in {parts(keys)}"
    return ""


def settings_text(settings: Settings) -> str:
    """Write a config as YAML, without the folder, weights and device of its training.

    A ``CfgNode`` is written without what Detectron2 and this package set alike.
    """
    settings, defaults = settings.copy(), Settings.of(get_cfg())
    for name in _PERSONAL:
        setattr(settings, name, getattr(defaults, name))
    if settings.is_lazy:
        return config_text(settings)
    changed = CfgNode(_changes(portable_config(settings.cfg), defaults.cfg))
    changed.VERSION = settings.cfg.VERSION  # without it Detectron2 guesses, and says so
    return changed.dump()


def _changes(cfg: CfgNode, defaults: CfgNode) -> dict[str, Any]:
    return {
        key: _changes(value, defaults.get(key, {})) if isinstance(value, CfgNode) else value
        for key, value in cfg.items()
        if key not in defaults or defaults[key] != value
    }


def _card(
    name: str,
    file: Path,
    published: Checkpoint,
    settings: str,
    is_lazy: bool,
    metrics: Mapping[str, float],
) -> str:
    """Write a model card in Markdown, with the front matter of the Hugging Face hub."""
    values = sum(tensor.numel() for tensor in published.weights.values())
    lines = [
        *("---", "library_name: detectron2", "tags:", "- resnest", "- object-detection", "---"),
        *(f"# {name}", ""),
        f"- File: `{file.name}`, {file.stat().st_size / 1e6:.1f} MB, {values / 1e6:.1f} M values",
        f"- SHA-256: `{sha256(file)}`",
    ]
    if published.input_format:
        images = published.input_format.to_dict()
        lines.append(f"- Images: {images['channels']}, mean {images['mean']}, std {images['std']}")
    if names := published.classes.get("thing_classes"):
        lines.append(f"- Classes ({len(names)}): {', '.join(names)}")
    table = [f"| {metric} | {value:.2f} |" for metric, value in metrics.items()]
    table = ["| metric | value |", "|---|---:|", *table] if metrics else ["None were given."]
    lines += ["", "## Results", "", *table]
    what = "The LazyConfig"
    if not is_lazy:
        what = "Settings that differ from Detectron2's defaults"
        config = file.with_suffix(".yaml").name
        lines += [
            *("", "## Use", "", "In a clone of resnest_d2:", "", "```sh"),
            f"tools/predict.py --config-file {config} --input photo.jpg "
            f"--output drawn --opts MODEL.WEIGHTS {file.name}",
            "```",
        ]
    lines += ["", "## Config", "", f"{what}:", "", "```yaml", settings.rstrip(), "```", ""]
    return "\n".join(lines)
