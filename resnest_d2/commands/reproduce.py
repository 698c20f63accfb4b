"""Evaluate published models on COCO val2017, and compare with the published figures."""

import argparse
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
from detectron2.data import MetadataCatalog
from detectron2.engine import launch
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from .. import model_zoo
from ..config import InputError
from ..config.load import choose_device, load_config
from ..config.settings import Settings
from ..engine.evaluate import evaluate_model, load_for_evaluation
from ..evaluation import check_datasets, coco
from ..files import sha256, write_text
from ..model_zoo.published import PUBLICATIONS, Publication
from ..weights import hash_problem, promised_hash, read_note
from . import one_line_errors

logger = logging.getLogger(__name__)

# Of the file in COCO's annotations_trainval2017.zip, 19,987,840 bytes.
VAL2017_SHA256 = "e8c7f7908f1d7278341fae127d0da654f102f11bd7b21d8aeefa635b8c810b6f"
VAL2017_IMAGES = 5000
# Figures are published with two decimals; other hardware and libraries move the rest.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Options:
    """How to measure."""

    output: Path
    """Folder for reports and predictions."""
    weights_dir: Path | None = None
    """Folder of checkpoints; None downloads the published ones."""
    tolerance: float = TOLERANCE
    """Greatest difference in points of AP or PQ that counts as reproduced."""
    any_dataset: bool = False
    """Measure also on data that are not COCO val2017."""
    num_gpus: int = 1
    coco_eval: str | None = None
    """The implementation of COCO's metrics; None for the default."""
    opts: tuple[str, ...] = ()
    """Overrides of every config, as ``load_config`` takes them."""


@dataclass
class Measurement:
    """What came out for one model."""

    model: str
    checkpoint: str = ""
    is_published: bool = False
    """Whether the checkpoint is the published one, by the hash in its name."""
    key: dict[str, Any] = field(default_factory=dict)
    """What the figures depend on; another run with the same need not measure again."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    problem: str = ""
    """Why there is no figure."""

    def rows(self, tolerance: float) -> list[dict[str, Any]]:
        """Published and measured figures, one row a metric."""
        rows = []
        for metric, published in model_zoo.published(self.model).items():
            measured = self.metrics.get(metric)
            difference = None if measured is None else measured - published
            within = difference is not None and abs(difference) <= tolerance + 1e-9
            rows.append(
                {
                    "metric": metric,
                    "published": published,
                    "measured": measured,
                    "difference": difference,
                    "within": within,
                }
            )
        return rows


def choose_models(names: Sequence[str]) -> list[str]:
    """Names of models that can be measured, "all" standing for each of them.

    Raises:
        ValueError: an unknown name, or a model without a figure that can be compared.
    """
    measurable = [n for n, p in PUBLICATIONS.items() if p.dataset == "coco_2017_val"]
    if list(names) == ["all"]:
        return measurable
    chosen = []
    for name in names:
        if name == "all":
            raise InputError("'all' stands alone; it holds every model")
        file = model_zoo.get_config_file(name)
        name = name.removesuffix(".yaml").removesuffix(".py")
        publication = PUBLICATIONS.get(name.removeprefix(model_zoo.LAZY))
        if publication is None:
            raise InputError(f"nothing is published about {name!r} that {file} could reproduce")
        if publication.dataset != "coco_2017_val":
            raise InputError(
                f"{name!r} was measured on {publication.dataset}, whose annotations only COCO's "
                "server has; train_net.py --eval-only writes the file to send there"
            )
        chosen.append(name)
    return list(dict.fromkeys(chosen))


def find_checkpoint(name: str, weights_dir: Path | None) -> tuple[str, bool]:
    """The checkpoint to measure.

    In a folder, a file of the published name is looked for, then ``<name>.pth``. Without a folder
    the published one is downloaded.

    Returns:
        its path, and whether the hash in its name shows it to be the published one.

    Raises:
        FileNotFoundError: the folder has neither.
        FetchError: it cannot be downloaded.
        ValueError: the file of the published name has another hash.
    """
    publication: Publication = PUBLICATIONS[name.removeprefix(model_zoo.LAZY)]
    if weights_dir is None:
        weights = f"resnest://COCO/{name}"
        path = PathManager.get_local_path(weights)
        return path, read_note(path)["verified"]
    file = weights_dir / publication.checkpoint
    own = weights_dir / f"{name}.pth"
    if not file.is_file() and own.is_file():
        return str(own), False
    if not file.is_file():
        raise FileNotFoundError(f"--weights-dir: there is neither {file} nor {own}")
    if not promised_hash(publication.checkpoint):
        return str(file), False
    problem = hash_problem(file, publication.checkpoint)
    if problem:
        raise InputError(f"{file} is not what was published: {problem}")
    return str(file), True


def check_is_val2017(settings: Settings) -> None:
    """Refuse to compare figures of other data with those of COCO val2017.

    Raises:
        ValueError: the number of images or the hash of the annotations is another.
    """
    for name in settings.datasets("test")[1]:
        metadata = MetadataCatalog.get(name)
        otherwise = "; --any-dataset measures on it all the same"
        for attribute in ("json_file", "panoptic_json"):
            file = metadata.get(attribute, None)
            if file is None:
                continue
            count = len(json.loads(Path(file).read_text()).get("images", []))
            if count != VAL2017_IMAGES:
                raise InputError(
                    f"data set {name!r} has {count} images in {file}, COCO val2017 has "
                    f"{VAL2017_IMAGES}{otherwise}"
                )
        file = metadata.get("json_file", None)
        digest = sha256(file) if file else ""
        if digest != VAL2017_SHA256:
            raise InputError(
                f"data set {name!r}: SHA-256 of {file} starts with {digest[:8]}, that of COCO's "
                f"instances_val2017.json with {VAL2017_SHA256[:8]}{otherwise}"
            )


def reproduce(names: Sequence[str], options: Options) -> list[Measurement]:
    """Measure models one after the other, and write the report after each.

    What ``options.output`` has from an earlier run, of the same checkpoint, data and settings, is
    not measured again. A model that cannot be measured does not keep the others from it.

    Args:
        names: as :func:`choose_models` returns them.
        options: how to measure.

    Raises:
        ValueError: the output is a file.
    """
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"--output must be a folder, and {options.output} is a file")
    options.output.mkdir(parents=True, exist_ok=True)
    done = _read(options.output / "results.json")
    measurements = []
    for name in names:
        measurement = Measurement(name)
        try:
            settings = _prepare(measurement, options)
            earlier = done.get(name)
            if earlier is not None and earlier.key == measurement.key and not earlier.problem:
                logger.info("%s was measured before", name)
                measurement.metrics = earlier.metrics
            else:
                measurement.metrics = _measure(name, settings, options)
        except (ValueError, OSError, ImportError) as error:
            logger.error("%s: %s", name, error)
            measurement.problem = str(error)
        except Exception as error:  # out of memory, say; what was measured before stays
            logger.exception("%s could not be measured", name)
            measurement.problem = f"{type(error).__name__}: {error}"
        measurements.append(measurement)
        if not measurement.problem or name not in done or done[name].problem:
            done[name] = measurement
        _write(list(done.values()), options)
    return measurements


def _prepare(measurement: Measurement, options: Options) -> Settings:
    """Make the config, and note what its figures depend on."""
    name = measurement.model
    settings = Settings.of(load_config(model_zoo.get_config_file(name), options.opts))
    check_datasets(settings, train=False)
    if not options.any_dataset:
        check_is_val2017(settings)
    checkpoint, measurement.is_published = find_checkpoint(name, options.weights_dir)
    measurement.checkpoint = checkpoint
    settings.weights, settings.output_dir = checkpoint, str(options.output / name)
    if not settings.is_lazy:
        settings.set("TEST.AUG.ENABLED", False)  # val2017's figures were published at one scale
    measurement.key = {
        "weights": sha256(checkpoint),
        "opts": list(options.opts),
        "data": [
            sha256(MetadataCatalog.get(data).json_file) for data in settings.datasets("test")[1]
        ],
    }
    return settings


def _measure(name: str, settings: Settings, options: Options) -> dict[str, float | None]:
    num_processes = choose_device(settings, options.num_gpus)
    result = options.output / name / "metrics.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    launch(_evaluate, num_processes, dist_url="auto", args=(settings, str(result), options))
    return json.loads(result.read_text())


def _evaluate(settings: Settings, result: str, options: Options) -> None:
    """Run in each process; the first writes the figures to a file."""
    for package in ("fvcore", "detectron2"):
        setup_logger(distributed_rank=comm.get_rank(), name=package)
    coco.choose_implementation(options.coco_eval)
    metrics = evaluate_model(settings, load_for_evaluation(settings))
    if comm.is_main_process():
        flat = {
            f"{task}/{metric}": None if math.isnan(value) else value
            for task, values in metrics.items()
            for metric, value in values.items()
        }
        write_text(Path(result), json.dumps(flat, indent=1) + "\n")


def _read(file: Path) -> dict[str, Measurement]:
    if not file.is_file():
        return {}
    try:
        entries = json.loads(file.read_text())["models"]
        return {
            entry["model"]: Measurement(**{k: v for k, v in entry.items() if k not in ("rows",)})
            for entry in entries
        }
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{file} is no report of an earlier run; remove it or choose another --output"
        ) from None


def _write(measurements: Sequence[Measurement], options: Options) -> None:
    models = [{**vars(m), "rows": m.rows(options.tolerance)} for m in measurements]
    report = {"tolerance": options.tolerance, "models": models}
    write_text(options.output / "results.json", json.dumps(report, indent=1) + "\n")
    text = f"# Published and measured\n\n{format_table(measurements, options.tolerance)}\n"
    write_text(options.output / "results.md", text)


def format_table(measurements: Sequence[Measurement], tolerance: float) -> str:
    """A Markdown table, one row for each metric of each model."""
    lines = [
        "| model | metric | published | measured | difference | within tolerance |",
        "|---|---|---|---|---|---|",
    ]
    for measurement in measurements:
        for row in measurement.rows(tolerance):
            measured, difference = row["measured"], row["difference"]
            cells = [
                measurement.model,
                row["metric"],
                f"{row['published']:.2f}",
                "not measured" if measured is None else f"{measured:.2f}",
                "" if difference is None else f"{difference:+.2f}",
                "yes" if row["within"] else "no",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"\nTolerance: {tolerance:g} points.")
    unverified = [m.model for m in measurements if m.metrics and not m.is_published]
    if unverified:
        lines.append(
            "Checkpoints that no hash shows to be the published ones: "
            + ", ".join(unverified)
            + "."
        )
    lines += [f"Not measured: {m.model}: {m.problem}" for m in measurements if m.problem]
    return "\n".join(lines)


def all_reproduced(measurements: Sequence[Measurement], tolerance: float) -> bool:
    """Whether every figure was measured and lies within the tolerance."""
    return all(row["within"] for m in measurements for row in m.rows(tolerance))


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Define and read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="NAME", help="names of the zoo, or all"
    )
    parser.add_argument(
        "--weights-dir",
        type=Path,
        metavar="DIR",
        help="folder of checkpoints, by their published names or NAME.pth (default: download)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/reproduce"),
        metavar="DIR",
        help="for results.json, results.md and predictions; another run goes on from there",
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="POINTS", help="default: %(default)s"
    )
    parser.add_argument(
        "--any-dataset", action="store_true", help="measure on data that are not val2017, too"
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N")
    coco.add_argument(parser)
    parser.add_argument(
        "--opts", default=[], nargs=argparse.REMAINDER, help="KEY VALUE pairs for every config"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if a figure is missing or outside, 2 if the arguments are wrong."""
    args = parse_args(arguments)
    with one_line_errors():
        names = choose_models(args.models)
        coco.choose_implementation(args.coco_eval)  # a wrong choice ends it here
        if args.weights_dir is not None and not args.weights_dir.is_dir():
            raise FileNotFoundError(f"--weights-dir: there is no folder {args.weights_dir}")
        if not args.tolerance >= 0:
            raise ValueError(f"--tolerance must be 0 or more, got {args.tolerance}")
        setup_logger(name="resnest_d2")
        measurements = reproduce(
            names,
            Options(
                args.output,
                args.weights_dir,
                args.tolerance,
                args.any_dataset,
                args.num_gpus,
                args.coco_eval,
                tuple(args.opts),
            ),
        )
    print(format_table(measurements, args.tolerance))
    return 0 if all_reproduced(measurements, args.tolerance) else 1
