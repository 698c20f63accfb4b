"""Options of the command line about a training, beside its config."""

import argparse
from dataclasses import dataclass, fields

from detectron2.config import CfgNode

from ..config import ConfigError, did_you_mean, require_int
from ..evaluation import tasks_of

MAIN_METRICS = ("AP", "PQ", "mIoU")
_BOX = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
# Metrics of Detectron2's evaluators by task, which --keep-best may name.
METRICS: dict[str, tuple[str, ...]] = {
    "bbox": _BOX,
    "segm": _BOX,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
    "sem_seg": ("mIoU", "fwIoU", "mACC", "pACC", "IoU", "iIoU", "IoU_sup", "iIoU_sup"),
    "panoptic_seg": tuple(f"{q}{part}" for part in ("", "_th", "_st") for q in ("PQ", "SQ", "RQ")),
}


@dataclass
class TrainingOptions:
    """How a training saves, ends and shows itself; :meth:`add_arguments` describes each."""

    keep_best: str = ""
    patience: int = 0
    keep_last: int = 0
    skip_bad_images: bool = False
    progress: bool | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> "TrainingOptions":
        """Return those of a command line with :meth:`add_arguments`."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add an option for each field."""
        add = parser.add_argument_group("saving and stopping").add_argument
        text = "keep the weights of the best evaluation in model_best.pth, by bbox/AP or another "
        text += (
            "metric; with several test sets by NAME/bbox/AP (default: none; with --data the AP of "
        )
        text += "masks or boxes)"
        add("--keep-best", default="", metavar="METRIC", help=text)
        text = "stop after N evaluations without a gain of --keep-best's metric (default: never)"
        add("--patience", type=int, default=0, metavar="N", help=text)
        text = "keep the last K checkpoints of this run, beside the best and the final one "
        text += "(default: all; with --data 1)"
        add("--keep-last", type=int, default=0, metavar="K", help=text)
        text = "let others stand in for images that cannot be read"
        add("--skip-bad-images", action="store_true", help=text)
        text = "show a progress bar (default: where standard error is a terminal)"
        add("--progress", action=argparse.BooleanOptionalAction, help=text)

    def check(self, cfg: CfgNode) -> None:
        """See that the options make sense for a config whose data sets are registered.

        Raises:
            ConfigError: a number is below 0, no evaluation has the metric, or there is patience
                without a metric or without evaluations.
        """
        require_int("--patience", self.patience, 0)
        require_int("--keep-last", self.keep_last, 0)
        if self.patience and not (self.keep_best and cfg.TEST.EVAL_PERIOD > 0):
            raise ConfigError(
                "--patience needs --keep-best METRIC, which tells what a gain is, and evaluations "
                "during training (TEST.EVAL_PERIOD)"
            )
        if self.keep_best:
            self._check_metric(cfg)

    def _check_metric(self, cfg: CfgNode) -> None:
        said, names = f"--keep-best {self.keep_best}", list(cfg.DATASETS.TEST)
        if not names:
            raise ConfigError(f"{said} needs data to evaluate on, and DATASETS.TEST is empty")
        learned = {"segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
        known = [
            f"{name}/{task}/{metric}" if len(names) > 1 else f"{task}/{metric}"
            for name in names
            for task in tasks_of(name)
            for metric in METRICS[task]
            if learned.get(task, True)
        ]
        # Those of one class are bbox/AP-cat or sem_seg/ACC-cat, say.
        of_classes = tuple(f"{metric}-".replace("/mACC", "/ACC") for metric in known)
        if self.keep_best not in known and not self.keep_best.startswith(of_classes):
            main = [name for name in known if name.rpartition("/")[2] in MAIN_METRICS]
            main_ones = f"; there are {', '.join(main)} and others"
            hint = did_you_mean(self.keep_best, known) or main_ones
            raise ConfigError(f"{said}: no metric of this model on DATASETS.TEST {names}{hint}")
