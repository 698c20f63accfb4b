"""Options of the command line about a training, beside its config."""

import argparse
from dataclasses import dataclass, fields

from ..config import ConfigError, InputError, did_you_mean
from ..config.settings import Settings

TASKS = ("bbox", "segm", "keypoints", "sem_seg", "panoptic_seg")


@dataclass
class TrainingOptions:
    """How a training saves, ends and goes on."""

    keep_best: str = ""
    """The metric whose best evaluation's weights stay in ``model_best.pth``, as ``bbox/AP``."""
    patience: int = 0
    """Evaluations without a gain after which training stops; 0 trains to the end."""
    keep_last: int = 0
    """Checkpoints that stay on the disk, beside the best and the final one; 0 keeps all."""
    on_save_error: str = "stop"
    """"stop" or "continue" where a checkpoint cannot be written."""
    skip_bad_batches: int = 0
    """Batches without a finite loss that are left out before training stops."""
    skip_bad_images: bool = False
    """Whether images that cannot be read are left out."""
    deterministic: bool = False
    """Whether the same seed, data and machine give the same losses, also over a stop."""
    progress: bool | None = None
    """Whether a progress bar is shown; None for where standard error is a terminal."""
    tensorboard_images: int = 0
    """Images whose predictions TensorBoard shows after each evaluation."""
    scaled_to: int = 0
    """The number of processes that batch, rate and length are fitted to; 0 for those there are."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> "TrainingOptions":
        """Return those of a command line; other parsers need not have :meth:`add_arguments`."""
        given = {field.name for field in fields(cls)} & vars(args).keys()
        return cls(**{name: getattr(args, name) for name in given})

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add an option for each field."""
        add = parser.add_argument_group("saving, stopping and going on").add_argument
        text = "keep the weights of the best evaluation in model_best.pth, by bbox/AP or another"
        add("--keep-best", default="", metavar="METRIC", help=text)
        text = "stop after N evaluations without a gain of --keep-best's metric"
        add("--patience", type=int, default=0, metavar="N", help=text)
        add("--keep-last", type=int, default=0, metavar="K", help="keep the last K checkpoints")
        text = "what to do where a checkpoint cannot be written (default: stop)"
        add("--on-save-error", choices=("stop", "continue"), default="stop", help=text)
        text = "leave out up to N batches whose loss is not finite"
        add("--skip-bad-batches", type=int, default=0, metavar="N", help=text)
        text = "leave out images that cannot be read, and count them"
        add("--skip-bad-images", action="store_true", help=text)
        text = "equal losses for equal seeds, also if the run is stopped and resumed"
        add("--deterministic", action="store_true", help=text)
        add = parser.add_argument_group("watching").add_argument
        text = "show a progress bar (default: where standard error is a terminal)"
        add("--progress", action=argparse.BooleanOptionalAction, help=text)
        text = "show predictions on the first N test images in TensorBoard at each evaluation"
        add("--tensorboard-images", type=int, default=0, metavar="N", help=text)

    def check(self, settings: Settings) -> None:
        """See that the options make sense for a config.

        Raises:
            InputError: a number below 0, patience without a metric or with one evaluation only.
            ConfigError: there is no data set to evaluate on.
        """
        for name in ("patience", "keep_last", "skip_bad_batches", "tensorboard_images"):
            if getattr(self, name) < 0:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} must be 0 or more, got {getattr(self, name)}")
        if self.patience and not self.keep_best:
            raise InputError("--patience needs --keep-best METRIC, which tells what a gain is")
        key, names = settings.datasets("test")
        if self.tensorboard_images and not names:
            raise ConfigError(f"--tensorboard-images needs data to predict on, and {key} is empty")
        if not self.keep_best:
            return
        task, _, metric = self.keep_best.partition("/")
        if task not in TASKS or not metric:
            hint = did_you_mean(task, TASKS) or ", such as bbox/AP or segm/AP50"
            raise InputError(f"--keep-best {self.keep_best!r} is no TASK/METRIC{hint}")
        if not names:
            raise ConfigError(f"--keep-best needs data to evaluate on, and {key} is empty")
        if self.patience and settings.evaluation_period <= 0:
            key = settings.key("evaluation_period")
            raise ConfigError(f"--patience needs evaluations during training: set {key}")
