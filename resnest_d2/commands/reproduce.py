"""Measuring published models again, and comparing what comes out with what was published."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import launch
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from .. import model_zoo
from ..config.load import choose_device, load_config
from ..engine.evaluate import evaluate_model, load_for_evaluation
from ..evaluation.evaluators import check_datasets, dataset_names
from ..files import sha256, write_text
from ..model_zoo.published import PUBLICATIONS, Publication
from ..weights import hash_problem, promised_hash, read_note

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
            raise ValueError("'all' stands alone; it holds every model")
        file = model_zoo.get_config_file(name)
        name = name.removesuffix(".yaml").removesuffix(".py")
        publication = PUBLICATIONS.get(name.removeprefix(model_zoo.LAZY))
        if publication is None:
            raise ValueError(f"nothing is published about {name!r} that {file} could reproduce")
        if publication.dataset != "coco_2017_val":
            raise ValueError(
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
        return PathManager.get_local_path(weights), read_note(weights)["verified"]
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
        raise ValueError(f"{file} is not what was published: {problem}")
    return str(file), True


def check_is_val2017(cfg: CfgNode | DictConfig) -> None:
    """Refuse to compare figures of other data with those of COCO val2017.

    Raises:
        ValueError: the number of images or the hash of the annotations is another.
    """
    for name in dataset_names(cfg, "test")[1]:
        metadata = MetadataCatalog.get(name)
        otherwise = "; --any-dataset measures on it all the same"
        for attribute in ("json_file", "panoptic_json"):
            file = metadata.get(attribute, None)
            if file is None:
                continue
            count = len(json.loads(Path(file).read_text()).get("images", []))
            if count != VAL2017_IMAGES:
                raise ValueError(
                    f"data set {name!r} has {count} images in {file}, COCO val2017 has "
                    f"{VAL2017_IMAGES}{otherwise}"
                )
        file = metadata.get("json_file", None)
        digest = sha256(file) if file else ""
        if digest != VAL2017_SHA256:
            raise ValueError(
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
        raise ValueError(f"--output must be a folder, and {options.output} is a file")
    options.output.mkdir(parents=True, exist_ok=True)
    done = _read(options.output / "results.json")
    measurements = []
    for name in names:
        measurement = Measurement(name)
        try:
            cfg = _prepare(measurement, options)
            earlier = done.get(name)
            if earlier is not None and earlier.key == measurement.key and not earlier.problem:
                logger.info("%s was measured before", name)
                measurement.metrics = earlier.metrics
            else:
                measurement.metrics = _measure(name, cfg, options)
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


def _prepare(measurement: Measurement, options: Options) -> CfgNode | DictConfig:
    """Make the config, and note what its figures depend on."""
    name = measurement.model
    cfg = load_config(model_zoo.get_config_file(name), list(options.opts))
    check_datasets(cfg, train=False)
    if not options.any_dataset:
        check_is_val2017(cfg)
    checkpoint, measurement.is_published = find_checkpoint(name, options.weights_dir)
    measurement.checkpoint = checkpoint
    output = str(options.output / name)
    if isinstance(cfg, CfgNode):
        cfg.merge_from_list(["MODEL.WEIGHTS", checkpoint, "OUTPUT_DIR", output])
        cfg.TEST.AUG.ENABLED = False  # what was published on val2017 is of one scale
    else:
        cfg.train.init_checkpoint, cfg.train.output_dir = checkpoint, output
    measurement.key = {
        "weights": sha256(checkpoint),
        "opts": list(options.opts),
        "data": [
            sha256(MetadataCatalog.get(data).json_file) for data in dataset_names(cfg, "test")[1]
        ],
    }
    return cfg


def _measure(name: str, cfg: CfgNode | DictConfig, options: Options) -> dict[str, float | None]:
    num_processes = choose_device(cfg, options.num_gpus)
    result = options.output / name / "metrics.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    launch(_evaluate, num_processes, dist_url="auto", args=(cfg, str(result)))
    return json.loads(result.read_text())


def _evaluate(cfg: CfgNode | DictConfig, result: str) -> None:
    """Run in each process; the first writes the figures to a file."""
    for package in ("fvcore", "detectron2"):
        setup_logger(distributed_rank=comm.get_rank(), name=package)
    metrics = evaluate_model(cfg, load_for_evaluation(cfg))
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
        raise ValueError(
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
