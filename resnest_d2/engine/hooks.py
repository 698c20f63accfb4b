"""The hooks of a training, the same for both kinds of config."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
from detectron2.engine import hooks
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from torch import nn

from ..config.settings import Config, Settings
from ..data.loader import refit, report_skipped
from ..data.sampler import ResumableSampler, Run
from ..files import write_text
from .checkpoint import TrainingCheckpointer, class_metadata
from .options import TrainingOptions
from .precise_bn import build_precise_bn
from .saving import KeepBest, Record, SaveCheckpoints
from .stopping import RandomStates, StopOnSignal
from .watch import DrawCurves, DrawPredictions, ProgressBar


class _Order:
    """The images that a run and the runs before it have trained on, for checkpoints."""

    def __init__(self, sampler: ResumableSampler, settings: Settings, trainer: Any) -> None:
        self._sampler, self._settings, self._trainer = sampler, settings, trainer

    def state_dict(self) -> dict[str, Any]:
        world = comm.get_world_size()
        iterations = self._trainer.iter + 1 - self._trainer.start_iter
        run = Run(
            iterations, world, self._settings.images_per_batch // world, self._settings.num_workers
        )
        return self._sampler.state_dict(run)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state)


class Writers(hooks.PeriodicWriter):
    """Detectron2's hook with writers that are built when it is known where training starts."""

    def __init__(self, build: Callable[[], Sequence[EventWriter]], period: int) -> None:
        super().__init__([], period)
        self._build = build

    def before_train(self) -> None:
        self._writers = self._build()


class ReportSkipped(hooks.HookBase):
    """Tells at the end of training which images were left out, since it began anew."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def before_train(self) -> None:
        if not self.trainer.start_iter:
            self._file.unlink(missing_ok=True)

    def after_train(self) -> None:
        report_skipped(self._file)


def skipped_images(settings: Settings, options: TrainingOptions) -> Path | None:
    """The file of an output folder that lists images which were left out, if they may be."""
    return Path(settings.output_dir) / "skipped_images.txt" if options.skip_bad_images else None


def build_saver(
    settings: Settings,
    options: TrainingOptions,
    model: nn.Module,
    loader: Iterable,
    trainer: Any,
    text: str,
) -> tuple[TrainingCheckpointer, SaveCheckpoints]:
    """Fit the loader, and make what saves and resumes a training.

    Args:
        settings: of the config that is trained.
        options: of the command line.
        model: the model.
        loader: Detectron2's loader of training, changed in place.
        trainer: has the iteration, and what else is saved.
        text: of the config as the user gave it.
    """
    names = settings.datasets("train")[1]
    seed = max(settings.seed, 0) if options.deterministic else None
    sampler = refit(loader, names, seed=seed, skipped=skipped_images(settings, options))
    states = RandomStates(model)
    parts = {"trainer": trainer, "random": states}
    if sampler is not None:
        parts["sampler"] = _Order(sampler, settings, trainer)
    checkpointer = TrainingCheckpointer(
        model, settings.output_dir, class_metadata(names), text, **parts
    )
    record = Record(settings.output_dir, options.keep_best)
    keep = options.keep_last or settings.get("train.checkpointer.max_to_keep") or 0
    options = replace(options, keep_last=keep)
    return checkpointer, SaveCheckpoints(
        checkpointer, settings.checkpoint_period, record, states, options
    )


def build_hooks(
    settings: Settings,
    options: TrainingOptions,
    saver: SaveCheckpoints,
    model: nn.Module,
    build_loader: Callable[[Config], Iterable],
    *,
    schedule: hooks.LRScheduler,
    evaluations: Sequence[hooks.HookBase],
    writers: Callable[[], Sequence[EventWriter]],
    log_period: int,
) -> list[hooks.HookBase]:
    """The hooks of ``DefaultTrainer``, in its order, and those of saving, stopping, watching."""
    skipped = skipped_images(settings, options)
    precise_bn = build_precise_bn(settings, model, build_loader, skipped)
    stop = StopOnSignal(saver.save_stopped, precise_bn.undo if precise_bn else lambda: None)
    made = [hooks.IterationTimer(), schedule, stop, precise_bn, saver, *evaluations]
    period = settings.evaluation_period
    if comm.is_main_process():
        made.insert(0, ProgressBar(options.progress))
        if options.tensorboard_images:
            made.append(DrawPredictions(settings, options.tensorboard_images))
        made.append(DrawCurves(period, settings.output_dir))
    if options.keep_best:
        made.append(KeepBest(period, saver, options.keep_best, options.patience))
    if comm.is_main_process():
        made.append(Writers(writers, log_period))
        if skipped:
            made.append(ReportSkipped(skipped))
    return [hook for hook in made if hook is not None]


def build_writers(output_dir: str, start_iter: int, max_iter: int) -> list[EventWriter]:
    """Detectron2's writers; what they have written of iterations that come again is forgotten.

    The evaluation behind the last iteration of a run that is extended bears the number of the
    iteration that comes next; in ``metrics.json`` it gets the number of the one before. A run that
    begins anew leaves the ``metrics.json`` of another one as ``metrics.previous.json``.
    """
    metrics = Path(output_dir) / "metrics.json"
    metrics.parent.mkdir(parents=True, exist_ok=True)
    folder = metrics.parent
    if not start_iter and metrics.is_file():
        metrics.replace(folder / "metrics.previous.json")
    if start_iter and metrics.is_file():
        lines = metrics.read_text().splitlines()
        kept = [line for old in lines if (line := _before(old, start_iter))]
        if kept != lines:
            write_text(metrics, "".join(f"{line}\n" for line in kept))
    events = list(folder.glob("events.out.tfevents.*"))
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(str(metrics)),
        TensorboardXWriter(output_dir, purge_step=start_iter if events else None),
    ]


def _before(line: str, iteration: int) -> str | None:
    """A line of ``metrics.json`` if it is of an earlier iteration."""
    try:
        entry = json.loads(line)
        if entry["iteration"] == iteration and "total_loss" not in entry:  # behind the last one
            return json.dumps({**entry, "iteration": iteration - 1}, sort_keys=True)
        return line if entry["iteration"] < iteration else None
    except (ValueError, KeyError, TypeError):  # cut off where a machine died
        return None
