"""Make a trained model ready for others: weights alone, a hash in the name, and a model card."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..config import InputError
from ..config.keys import portable_config
from ..engine.hooks import read_metrics
from ..engine.options import METRICS
from ..files import make_folder, sha256, write_text
from ..modeling.detector import build_detector
from ..weights import Checkpoint, load_weights, open_weights
from ..weights.catalog import HUB
from ..weights.convert import rename
from ..weights.files import ENDINGS, of_model, write_checkpoint
from ..weights.hub import open_hub, upload
from ..weights.stored_config import config_to_use
from . import running


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if the files do not belong together."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="model_final.pth, say; metrics.json is read from beside it")
    add("output", type=Path, help="folder for the weights, their config and the model card")
    add("--name", help="of the model (default: that of the checkpoint's folder)")
    add("--config-file", default="", metavar="FILE", help="(default: the one in the checkpoint)")
    add("--format", choices=[e.lstrip(".") for e in ENDINGS], default="pth")
    text = "upload them to this repository on the Hugging Face hub, which is made if it is absent"
    add("--hub", default="", metavar="USER/REPOSITORY", help=text)
    add("--opts", default=[], nargs=argparse.REMAINDER, help="overrides of the config")
    args = parser.parse_args(arguments)
    with running("resnest_d2"):
        if args.hub:
            open_hub(args.hub)  # before the work
        weights, card, config = written = publish(args)
        lines = [*map(str, written)]
        if args.hub:
            files = {weights.name: weights, "README.md": card, "config.yaml": config}
            address = upload(args.hub, files)
            lines += [address, f"resnest-d2 predict --model {HUB}{args.hub} --input ..."]
    print("\n".join(lines))
    return 0


def publish(args: argparse.Namespace) -> tuple[Path, Path, Path]:
    """Write a checkpoint's weights to ``<name>-<hash>``, and config and model card beside them.

    Optimizer, schedule and whatever else training resumes from are left out; names of classes and
    the format of images stay. The config must build a model that the weights fill completely.

    Returns:
        the files that were written: weights, card and config.

    Raises:
        InputError: a file is not there or is damaged, or the checkpoint does not fit the config.
    """
    name = args.name or args.checkpoint.resolve().parent.name
    if Path(name).name != name or not name:
        raise InputError(f"a name is the beginning of a file's name, got {name!r}")
    checkpoint = open_weights(args.checkpoint)
    cfg = config_to_use(args.config_file, args.opts, checkpoint)
    cfg.MODEL.DEVICE = "cpu"
    model = build_detector(cfg)
    load_weights(model, checkpoint)
    text = settings_text(cfg)
    checkpoint = replace(rename(checkpoint), input_format=of_model(model), config=text)

    make_folder(args.output)
    unnamed = args.output / f"{name}-unnamed.{args.format}"
    write_checkpoint(checkpoint, unnamed)
    target = unnamed.replace(args.output / f"{name}-{sha256(unnamed)[:8]}.{args.format}")
    card, config = target.with_suffix(".md"), target.with_suffix(".yaml")
    metrics = last_metrics(args.checkpoint.with_name("metrics.json"))
    write_text(card, _card(name, target, checkpoint, metrics, args.hub))
    write_text(config, text)
    return target, card, config


def last_metrics(file: Path) -> dict[str, float]:
    """The last evaluation in Detectron2's ``metrics.json``; {} if there is none."""
    series = read_metrics(file) if file.is_file() else {}
    return {
        name: points[-1][1]
        for name, points in series.items()
        if "/" in name and name.split("/")[-2].removesuffix("_TTA") in METRICS
        if math.isfinite(points[-1][1])
    }


def settings_text(cfg: CfgNode) -> str:
    """Write what a config sets differently from Detectron2, but for its machine, as YAML."""
    cfg, defaults = portable_config(cfg), get_cfg()
    for node, key in ((cfg, "OUTPUT_DIR"), (cfg.MODEL, "WEIGHTS"), (cfg.MODEL, "DEVICE")):
        node.pop(key)
    changed = CfgNode(_changes(cfg, defaults))
    changed.VERSION = cfg.VERSION  # without it Detectron2 guesses, and says so
    return changed.dump()


def _changes(cfg: CfgNode, defaults: CfgNode) -> dict[str, Any]:
    return {
        key: _changes(value, defaults.get(key, {})) if isinstance(value, dict) else value
        for key, value in cfg.items()
        if key not in defaults or defaults[key] != value
    }


def _card(
    name: str, file: Path, checkpoint: Checkpoint, metrics: Mapping[str, float], hub: str
) -> str:
    """Write a model card in Markdown, with the front matter of the Hugging Face hub.

    Its command names the model by its repository ``hub``, if there is one, else by its file.
    """
    values = sum(tensor.numel() for tensor in checkpoint.weights.values())
    lines = [
        *("---", "library_name: detectron2", "tags:", "- resnest", "- object-detection", "---"),
        *(f"# {name}", ""),
        f"- File: `{file.name}`, {file.stat().st_size / 1e6:.1f} MB, {values / 1e6:.1f} M values",
        f"- SHA-256: `{sha256(file)}`",
    ]
    if images := checkpoint.input_format:
        lines.append(f"- Images: {images}")
    if names := checkpoint.classes.get("thing_classes"):
        lines.append(f"- Classes ({len(names)}): {', '.join(names)}")
    table = [f"| {metric} | {value:.2f} |" for metric, value in metrics.items()]
    table = ["| metric | value |", "|---|---:|", *table] if metrics else ["None were given."]
    model = f"{HUB}{hub}" if hub else file.name
    lines += [
        *("", "## Results", "", *table, "", "## Use", "", "```sh"),
        f"resnest-d2 predict --model {model} --input photo.jpg --output drawn",
        *("```", "", "## Config", "", "Settings that differ from Detectron2's defaults:", ""),
        *("```yaml", checkpoint.config.rstrip(), "```", ""),
    ]
    return "\n".join(lines)
