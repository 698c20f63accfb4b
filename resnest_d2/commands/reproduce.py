"""Evaluate published models on COCO val2017, and compare with the published figures."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from .. import model_zoo
from ..config import InputError
from ..config.load import choose_device, load_config
from ..config.settings import Settings
from ..engine.evaluate import evaluate_model, load_for_evaluation
from ..engine.launch import add_process_arguments
from ..evaluation import check_datasets, coco
from ..files import sha256, write_text
from ..model_zoo.published import PUBLICATIONS
from ..processes import join_processes, start_processes
from ..weights import hash_problem, promised_hash, read_note
from . import one_line_errors, warnings_again, write_metrics

logger = logging.getLogger(__name__)

# instances_val2017.json in COCO's annotations_trainval2017.zip, 19,987,840 bytes.
VAL2017_SHA256 = "e8c7f7908f1d7278341fae127d0da654f102f11bd7b21d8aeefa635b8c810b6f"
VAL2017_IMAGES = 5000
# Figures are published with two decimals; other hardware and libraries move the rest.
TOLERANCE = 0.1


@dataclass
class Measurement:
    """The figures of one model, or the reason why there are none."""

    model: str
    checkpoint: str = ""
    is_published: bool = False
    """Whether the checkpoint is the published one, by the hash in its name."""
    key: dict[str, Any] = field(default_factory=dict)
    """The weights, data and options measured; another run with the same need not measure again."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    problem: str = ""
    """Why there is no figure."""

    def rows(self, tolerance: float) -> list[dict[str, Any]]:
        """Published and measured figures, one row a metric."""
        rows = []
        for metric, published in model_zoo.published(self.model).items():
            row = {"metric": metric, "published": published, "measured": self.metrics.get(metric)}
            row |= {"difference": None, "within": False}
            if row["measured"] is not None:
                row["difference"] = row["measured"] - published
                row["within"] = abs(row["difference"]) <= tolerance + 1e-9
            rows.append(row)
        return rows


def choose_models(names: Sequence[str]) -> list[str]:
    """Names of models that can be measured, "all" standing for each of them.

    Raises:
        InputError: an unknown name, or a model without a figure that can be compared.
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
        InputError: the file of the published name has another hash.
    """
    if weights_dir is None:
        path = PathManager.get_local_path(f"resnest://COCO/{name}")
        return path, read_note(path)["verified"]
    file = weights_dir / PUBLICATIONS[name.removeprefix(model_zoo.LAZY)].checkpoint
    own = weights_dir / f"{name}.pth"
    if not file.is_file():
        if own.is_file():
            return str(own), False
        raise FileNotFoundError(f"--weights-dir: there is neither {file} nor {own}")
    if problem := hash_problem(file, file.name):
        raise InputError(f"{file} is not what was published: {problem}")
    return str(file), bool(promised_hash(file.name))


def check_is_val2017(settings: Settings) -> None:
    """Refuse to compare figures of other data with those of COCO val2017.

    Raises:
        InputError: the number of images or the hash of the annotations is another.
    """
    otherwise = "; --any-dataset measures on it all the same"
    for name in settings.datasets("test")[1]:
        metadata = MetadataCatalog.get(name)
        file = metadata.get("json_file", None)
        for counted in filter(None, (file, metadata.get("panoptic_json", None))):
            count = len(json.loads(Path(counted).read_text()).get("images", []))
            if count != VAL2017_IMAGES:
                raise InputError(
                    f"data set {name!r} has {count} images in {counted}, COCO val2017 has "
                    f"{VAL2017_IMAGES}{otherwise}"
                )
        digest = sha256(file) if file else ""
        if digest != VAL2017_SHA256:
            raise InputError(
                f"data set {name!r}: SHA-256 of {file} starts with {digest[:8]}, that of COCO's "
                f"instances_val2017.json with {VAL2017_SHA256[:8]}{otherwise}"
            )


def reproduce(names: Sequence[str], args: argparse.Namespace) -> list[Measurement]:
    """Measure models one after the other, and write the report after each.

    What ``args.output`` has from an earlier run, of the same checkpoint, data and settings, is not
    measured again. A model that cannot be measured does not keep the others from it.

    Args:
        names: as :func:`choose_models` returns them.
        args: the options of :func:`main`.

    Raises:
        InputError: the output is a file.
    """
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"--output must be a folder, and {args.output} is a file")
    args.output.mkdir(parents=True, exist_ok=True)
    done = _read(args.output / "results.json")
    measurements = []
    for name in names:
        measurement, earlier = Measurement(name), done.get(name)
        try:
            settings = _prepare(measurement, args)
            if earlier and not earlier.problem and earlier.key == measurement.key:
                logger.info("%s was measured before", name)
                measurement.metrics = earlier.metrics
            else:
                measurement.metrics = _measure(settings, args)
        except Exception as error:  # also out of memory, say: the other models are still measured
            is_answer = isinstance(error, ValueError | OSError | ImportError)
            logger.error("%s: %s", name, error, exc_info=not is_answer)
            measurement.problem = str(error) if is_answer else f"{type(error).__name__}: {error}"
        measurements.append(measurement)
        if not measurement.problem or not earlier or earlier.problem:
            done[name] = measurement
        _write(list(done.values()), args)
    return measurements


def _prepare(measurement: Measurement, args: argparse.Namespace) -> Settings:
    """Make the config, and note what its figures depend on."""
    name = measurement.model
    settings = Settings.of(load_config(model_zoo.get_config_file(name), args.opts))
    check_datasets(settings, train=False)
    if not args.any_dataset:
        check_is_val2017(settings)
    checkpoint, measurement.is_published = find_checkpoint(name, args.weights_dir)
    measurement.checkpoint = checkpoint
    settings.weights, settings.output_dir = checkpoint, str(args.output / name)
    if not settings.is_lazy:
        settings.set("TEST.AUG.ENABLED", False)  # val2017's figures were published at one scale
    data = [MetadataCatalog.get(data).json_file for data in settings.datasets("test")[1]]
    measurement.key = {"weights": sha256(checkpoint), "opts": args.opts}
    measurement.key["data"] = [sha256(file) for file in data]
    return settings


def _measure(settings: Settings, args: argparse.Namespace) -> dict[str, float | None]:
    num_processes = choose_device(settings, args.num_gpus, args.num_processes)
    join_processes(settings.device)
    result = Path(settings.output_dir) / "metrics.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    if comm.is_main_process():
        result.unlink(missing_ok=True)
    start_processes(_evaluate, (settings, result, args.coco_eval), settings.device, num_processes)
    return json.loads(result.read_text())


def _evaluate(settings: Settings, result: Path, coco_eval: str | None) -> None:
    """Run in each process; the first writes the figures to a file."""
    for package in ("fvcore", "detectron2"):
        setup_logger(distributed_rank=comm.get_rank(), name=package)
    coco.choose_implementation(coco_eval)
    metrics = evaluate_model(settings, load_for_evaluation(settings))
    if comm.is_main_process():
        write_metrics(result, metrics)
    comm.synchronize()


def _read(file: Path) -> dict[str, Measurement]:
    if not file.is_file():
        return {}
    try:
        entries = json.loads(file.read_text())["models"]
        for entry in entries:
            entry.pop("rows", None)
        return {entry["model"]: Measurement(**entry) for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{file} is no report of an earlier run; remove it or choose another --output"
        ) from None


def _write(measurements: Sequence[Measurement], args: argparse.Namespace) -> None:
    if not comm.is_main_process():
        return
    models = [{**vars(m), "rows": m.rows(args.tolerance)} for m in measurements]
    report = {"tolerance": args.tolerance, "models": models}
    write_text(args.output / "results.json", json.dumps(report, indent=1) + "\n")
    text = f"# Published and measured\n\n{format_table(measurements, args.tolerance)}\n"
    write_text(args.output / "results.md", text)


def format_table(measurements: Sequence[Measurement], tolerance: float) -> str:
    """A Markdown table with one row for each metric of each model, and remarks below it."""
    lines = [
        "| model | metric | published | measured | difference | within tolerance |",
        "|---|---|---|---|---|---|",
    ]
    for measurement in measurements:
        for row in measurement.rows(tolerance):
            cells = [measurement.model, row["metric"], f"{row['published']:.2f}"]
            if row["measured"] is None:
                cells += ["not measured", ""]
            else:
                cells += [f"{row['measured']:.2f}", f"{row['difference']:+.2f}"]
            lines.append(f"| {' | '.join(cells)} | {'yes' if row['within'] else 'no'} |")
    lines.append(f"\nTolerance: {tolerance:g} points.")
    unverified = ", ".join(m.model for m in measurements if m.metrics and not m.is_published)
    if unverified:
        lines.append(f"Checkpoints that no hash shows to be the published ones: {unverified}.")
    lines += [f"Not measured: {m.model}: {m.problem}" for m in measurements if m.problem]
    return "\n".join(lines)


@warnings_again()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if a figure is missing or outside, 2 if the arguments are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="NAME", help="names of the zoo, or all")
    add(
        "--weights-dir",
        type=Path,
        metavar="DIR",
        help="folder of checkpoints, by their published names or NAME.pth (default: download)",
    )
    add(
        "--output",
        type=Path,
        default=Path("output/reproduce"),
        metavar="DIR",
        help="for results.json, results.md and predictions; another run goes on from there",
    )
    add("--tolerance", type=float, default=TOLERANCE, metavar="POINTS", help="default: %(default)s")
    add("--any-dataset", action="store_true", help="measure on data that are not val2017, too")
    add("--num-gpus", type=int, default=1, metavar="N")
    add_process_arguments(parser)
    coco.add_argument(parser)
    add("--opts", default=[], nargs=argparse.REMAINDER, help="KEY VALUE pairs for every config")
    args = parser.parse_args(arguments)
    with one_line_errors():
        names = choose_models(args.models)
        coco.choose_implementation(args.coco_eval)  # a wrong choice ends it here
        if args.weights_dir is not None and not args.weights_dir.is_dir():
            raise FileNotFoundError(f"--weights-dir: there is no folder {args.weights_dir}")
        if not args.tolerance >= 0:
            raise ValueError(f"--tolerance must be 0 or more, got {args.tolerance}")
        setup_logger(name="resnest_d2")
        measurements = reproduce(names, args)
    if comm.is_main_process():
        print(format_table(measurements, args.tolerance))
    rows = [row for measurement in measurements for row in measurement.rows(args.tolerance)]
    return 0 if all(row["within"] for row in rows) else 1
