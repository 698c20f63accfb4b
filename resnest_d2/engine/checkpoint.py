"""Checkpoints of training, which keep the classes, images and config of the model."""

import logging
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from torch import nn

from ..config import InputError
from ..files import replacing, write_text
from ..weights import WeightsCheckpointer, open_weights
from ..weights.files import (
    CLASS_METADATA,
    CLASSES_KEY,
    CONFIG_KEY,
    INPUT_KEY,
    of_model,
    save_content,
)
from ..weights.loading import require_finite
from ..weights.stored_config import describe_changes

logger = logging.getLogger(__name__)

BEST, FINAL = "model_best", "model_final"
BEGUN = ".begun"  # a file whose time tells when the run of a folder began
# Keys from which an optimizer's rates, and its other settings, follow.
RATE_KEYS = {"SOLVER.BASE_LR", "SOLVER.BIAS_LR_FACTOR", "SOLVER.BACKBONE_MULTIPLIER"}
OPTIMIZER_KEYS = {f"SOLVER.WEIGHT_DECAY{part}" for part in ("", "_NORM", "_BIAS")}
OPTIMIZER_KEYS |= {"SOLVER.MOMENTUM", "SOLVER.NESTEROV"}
# Of a group, the rates between which PyTorch's schedulers move the rate.
SCHEDULED = ("initial_lr", "max_lr", "min_lr")


def class_metadata(datasets: Iterable[str]) -> dict[str, Any]:
    """Return the classes of data sets that are loaded; the first set that has a key decides."""
    found: dict[str, Any] = {}
    for metadata in map(MetadataCatalog.get, datasets):
        values = {key: metadata.get(key, None) for key in CLASS_METADATA}
        found = {key: value for key, value in values.items() if value} | found
    return found


def last_checkpoint(folder: str | Path) -> Path | None:
    """The last checkpoint of an output folder's run, None if there is none.

    Checkpoints are written whole. For disks that fail, the newest whole one of the same run stands
    in for one that is damaged.
    """
    folder = Path(folder)
    tag, begun = folder / "last_checkpoint", folder / BEGUN
    if not tag.is_file():
        return None
    tagged = folder / tag.read_text().strip()
    if _is_whole(tagged):
        return tagged
    start = begun.stat().st_mtime if begun.is_file() else 0
    others = [(file.stat().st_mtime, file) for file in folder.glob("model_[0-9]*.pth")]
    for time, file in sorted(others, reverse=True):
        if time >= start and _is_whole(file):
            logger.warning("%s is damaged or not there: taking %s", tagged, file)
            return file
    return tagged


def _is_whole(file: Path) -> bool:
    """Whether an archive of PyTorch has all of its content; its end lists it."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # any bit of it may be wrong, and zipfile raises whatever that leads to
        return False


class TrainingCheckpointer(WeightsCheckpointer):
    """Detectron2's checkpointer for training.

    Args:
        model: the model.
        save_dir: where checkpoints are saved.
        classes: saved in each checkpoint; :func:`class_metadata` returns them.
        config: saved in each checkpoint; ``config_text`` returns it.
        checkpointables: other objects that are saved and resumed.

    Attributes:
        changes: the settings that a resumed run has changed, by their keys.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str,
        classes: dict[str, Any],
        config: str = "",
        **checkpointables: Any,
    ) -> None:
        images = of_model(getattr(model, "module", model))
        self._classes, self._config = classes, config
        self._facts = {
            CLASSES_KEY: classes,
            INPUT_KEY: {} if images is None else images.to_dict(),
            CONFIG_KEY: config,
        }
        self.changes: dict[str, str] = {}
        super().__init__(model, save_dir, **checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load as ``DetectionCheckpointer`` does.

        A run that is not resumed leaves no tag of an older one in its folder.

        Raises:
            InputError: as :meth:`load_to_train`; or the checkpoint that is resumed was trained on
                other classes or with batch norms at other places, or holds weights alone.
        """
        last = last_checkpoint(self.save_dir) if resume else None
        if last is None:
            self.load_to_train(path)
            if self.save_to_disk and self.save_dir:
                for stale in ("last_checkpoint", f"{BEST}.json"):
                    (Path(self.save_dir) / stale).unlink(missing_ok=True)
                Path(self.save_dir, BEGUN).touch()
            return {}
        logger.info("Resuming from %s", last)
        checkpoint = open_weights(last)
        if absent := self.checkpointables.keys() - checkpoint.rest.keys():
            raise InputError(
                f"--resume: {last} has no {', '.join(absent)} to go on from, only weights: train "
                f"with MODEL.WEIGHTS {last} in another folder"
            )
        theirs, ours = (side.get("thing_classes") for side in (checkpoint.classes, self._classes))
        if theirs and ours and list(theirs) != list(ours):
            raise InputError(
                f"the checkpoint in {self.save_dir} was trained on the classes {list(theirs)}, the "
                f"data have {list(ours)}; resume with the same data or in another folder"
            )
        self.changes = describe_changes(checkpoint.config, self._config)
        theirs, ours = (
            {name for name in names if name.endswith(".running_mean")}
            for names in (checkpoint.weights, self.model.state_dict())
        )
        if theirs ^ ours:
            norms = [f"{k} {change}" for k, change in self.changes.items() if k.endswith(".NORM")]
            raise InputError(
                f"--resume: batch norms of {last} and of the model are at other places "
                f"({', '.join(norms)}): train with MODEL.WEIGHTS in a new folder"
            )
        if self.changes:
            listed = "; ".join(f"{key} {change}" for key, change in self.changes.items())
            logger.warning("Resuming %s with other settings: %s", self.save_dir, listed)
        return self.load(checkpoint)

    def save(self, name: str, **kwargs: Any) -> None:
        """Save ``name.pth`` whole or not at all, and tag it as the last one unless it is the best.

        Raises:
            FileError: it cannot be written; the message names it, and the last one stays.
            UnreadableError: a weight is NaN or infinite.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        require_finite(self.model, f"{name}.pth is not saved")
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        file = Path(self.save_dir) / f"{name}.pth"
        logger.debug("Saving checkpoint to %s", file)
        content = {"model": self.model.state_dict(), **self._facts, **states, **kwargs}
        with replacing(file) as temporary:
            save_content(content, temporary)
        if name != BEST:
            self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write ``last_checkpoint`` whole or not at all."""
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)


def follow_changes(
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    groups: Sequence[dict[str, Any]],
    schedule: dict[str, Any],
    changed: Iterable[str],
) -> None:
    """Change in a resumed optimizer, and its schedule, what the config says differently now.

    Everything else stays as PyTorch has restored it.

    Args:
        optimizer: resumed.
        scheduler: resumed.
        groups: settings of the optimizer's groups as the config builds them.
        schedule: state of the scheduler as the config builds it.
        changed: keys of the config that differ.
    """
    changed = set(changed)
    for group, new in zip(optimizer.param_groups, groups, strict=True):
        rates = {key: new[key] for key in SCHEDULED if key in new}
        if changed & OPTIMIZER_KEYS:
            group.update({k: v for k, v in new.items() if k not in ("params", "lr", *rates)})
        if changed & RATE_KEYS:
            before = group["initial_lr"]
            group["lr"] = group["lr"] * new["initial_lr"] / before if before else new["lr"]
            group.update(rates)
    if changed & RATE_KEYS and "base_lrs" in schedule:  # a sequence of schedules has none
        scheduler.base_lrs = schedule["base_lrs"]
    if changed and type(scheduler).__module__.startswith("detectron2."):
        # Detectron2's schedules know no past: the rate follows from the iteration.
        scheduler.load_state_dict({**schedule, "last_epoch": scheduler.last_epoch})
        for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate
