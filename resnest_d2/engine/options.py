"""Options of the command line about a training, beside its config."""

import argparse
from dataclasses import dataclass, fields

from detectron2.config import CfgNode

from ..config import ConfigError, InputError, did_you_mean, require_int
from ..evaluation import tasks_of

_BOX = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
# Metrics of Detectron2's evaluators by task, which --keep-best may name; those of single classes
# begin like the ones in PER_CLASS.
METRICS: dict[str, tuple[str, ...]] = {
    "bbox": _BOX,
    "segm": _BOX,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
    "sem_seg": ("mIoU", "fwIoU", "mACC", "pACC", "IoU", "iIoU", "IoU_sup", "iIoU_sup"),
    "panoptic_seg": tuple(f"{q}{part}" for part in ("", "_th", "_st") for q in ("PQ", "SQ", "RQ")),
}
PER_CLASS = ("AP-", "IoU-", "ACC-")


@dataclass
class TrainingOptions:
    """How a training saves, ends and shows itself."""

    keep_best: str = ""
    """The metric whose best evaluation's weights stay in ``model_best.pth``, as ``bbox/AP``; with
    several test sets ``<data set>/bbox/AP``."""
    patience: int = 0
    """Evaluations without a gain after which training stops; 0 trains to the end."""
    keep_last: int = 0
    """Checkpoints that stay on the disk, beside the best and the final one; 0 keeps all."""
    skip_bad_images: bool = False
    """Whether others stand in for images that cannot be read."""
    progress: bool | None = None
    """Whether a progress bar is shown; None for where standard error is a terminal."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> "TrainingOptions":
        """Return those of a command line with :meth:`add_arguments`."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add an option for each field."""
        add = parser.add_argument_group("saving and stopping").add_argument
        text = "keep the weights of the best evaluation in model_best.pth, by bbox/AP or another"
        add("--keep-best", default="", metavar="METRIC", help=text)
        text = "stop after N evaluations without a gain of --keep-best's metric"
        add("--patience", type=int, default=0, metavar="N", help=text)
        add("--keep-last", type=int, default=0, metavar="K", help="keep the last K checkpoints")
        text = "let others stand in for images that cannot be read"
        add("--skip-bad-images", action="store_true", help=text)
        text = "show a progress bar (default: where standard error is a terminal)"
        add("--progress", action=argparse.BooleanOptionalAction, help=text)

    def check(self, cfg: CfgNode) -> None:
        """See that the options make sense for a config whose data sets are known.

        Raises:
            InputError: a number is below 0, a metric is none of the config's, there is nothing to
                evaluate on, or there is patience without a metric or without evaluations.
        """
        require_int("--patience", self.patience, 0)
        require_int("--keep-last", self.keep_last, 0)
        if self.patience and not self.keep_best:
            raise InputError("--patience needs --keep-best METRIC, which tells what a gain is")
        if self.keep_best:
            self._check_metric(cfg)
        if self.patience and cfg.TEST.EVAL_PERIOD <= 0:
            raise ConfigError("--patience needs evaluations during training: set TEST.EVAL_PERIOD")

    def _check_metric(self, cfg: CfgNode) -> None:
        said, names = f"--keep-best {self.keep_best}", list(cfg.DATASETS.TEST)
        if not names:
            raise ConfigError(f"{said} needs data to evaluate on, and DATASETS.TEST is empty")
        *above, task, metric = self.keep_best.split("/") if "/" in self.keep_best else ("", "", "")
        dataset = "/".join(above)
        expected = names if len(names) > 1 else [""]
        if task not in METRICS or dataset not in expected:
            start = f"{names[0]}/" if len(names) > 1 else ""
            raise InputError(
                f"{said}: with DATASETS.TEST {names} a metric is called {start}TASK/METRIC, "
                f"such as {start}bbox/AP; tasks are {', '.join(METRICS)}"
            )
        dataset = dataset or names[0]
        if task not in (has := tasks_of(dataset)):
            raise InputError(f"{said}: data set {dataset!r} has the tasks {', '.join(has)} alone")
        if metric not in METRICS[task] and not metric.startswith(PER_CLASS):
            hint = did_you_mean(metric, METRICS[task]) or f"; it has {', '.join(METRICS[task])}"
            raise InputError(f"{said}: task {task} has no metric {metric!r}{hint}")
        for key, learned in (("segm", "MASK_ON"), ("keypoints", "KEYPOINT_ON")):
            if task == key and not cfg.MODEL[learned]:
                raise ConfigError(f"{said}: the model learns none, for MODEL.{learned} is False")
