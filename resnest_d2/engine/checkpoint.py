"""Checkpoints of training, which keep the classes and images that a model was trained on."""

import json
import logging
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from torch import nn

from ..config import InputError
from ..files import replacing, write_text
from ..weights import RecordingCheckpointer
from ..weights.files import CLASS_METADATA, CLASSES_KEY, CONFIG_KEY, INPUT_KEY
from ..weights.input_format import of_model
from ..weights.loading import parts, require_file
from ..weights.stored_config import describe_changes
from .loop import NonFiniteError

logger = logging.getLogger(__name__)

BEST = "model_best"
# The module zipfile raises these on archives in which any bit may be wrong.
DAMAGED = (OSError, ValueError, RuntimeError, EOFError, struct.error, zlib.error)
DAMAGED += (zipfile.BadZipFile,)
# Settings by which PyTorch's optimizers differ in kind.
OF_A_KIND = {"momentum", "betas", "alpha", "rho", "lr_decay", "lambd", "etas"}
# A scheduler counts these, beside its settings.
_PROGRESS = ("last_epoch", "_step_count", "_last_lr")


def class_metadata(datasets: Sequence[str]) -> dict[str, Any]:
    """Return the classes of data sets that are loaded; the first set that has a key decides."""
    found: dict[str, Any] = {}
    for metadata in map(MetadataCatalog.get, datasets):
        values = {key: metadata.get(key, None) for key in CLASS_METADATA}
        found = {key: value for key, value in values.items() if value} | found
    return found


class _Resumable:
    """A trainer, of whose optimizer and schedule the progress is resumed, not the settings."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return self.trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load momentum and iteration; rates, decays and schedule stay as they were built.

        Raises:
            InputError: more iterations are done than the run shall have, the optimizer is another
                one, or groups its parameters in another way.
        """
        done, asked = state["iteration"] + 1, getattr(self.trainer, "max_iter", math.inf)
        if done > asked:
            raise InputError(
                f"--resume: the checkpoint has done {done} iterations, and the config asks for "
                f"{asked} (SOLVER.MAX_ITER, train.max_iter of .py configs): raise that, or "
                "evaluate the checkpoint by --eval-only"
            )
        groups = self.trainer.optimizer.param_groups
        saved = state.get("_trainer", state)["optimizer"]["param_groups"]
        theirs, has = (OF_A_KIND & group.keys() for group in (saved[0], groups[0]))
        if theirs != has:
            raise InputError(
                f"--resume: the checkpoint's optimizer has {' and '.join(sorted(theirs))}, that of "
                f"the config has {' and '.join(sorted(has))}: take the optimizer of the run that "
                "is resumed, or start anew from its weights in another output folder"
            )
        if [len(group["params"]) for group in groups] != [len(g["params"]) for g in saved]:
            raise InputError(
                "--resume: the optimizer groups its parameters as it did not in the checkpoint. "
                "What is frozen and which parameters have a rate or a decay of their own "
                "(SOLVER.BIAS_LR_FACTOR, SOLVER.WEIGHT_DECAY_BIAS) cannot change; start anew from "
                "its weights in another output folder"
            )
        ours = [{key: group[key] for key in group.keys() - {"params"}} for group in groups]
        # A LazyConfig's schedule is built when training starts, from initial_lr.
        scheduler = getattr(self.trainer, "scheduler", None)
        schedule = {k: v for k, v in vars(scheduler or self).items() if k not in _PROGRESS}
        self.trainer.load_state_dict(state)
        groups = self.trainer.optimizer.param_groups  # PyTorch has made them anew
        for group, settings in zip(groups, ours, strict=True):
            group.update({"initial_lr": settings["lr"], **settings})
        if scheduler is not None:
            vars(scheduler).update(schedule)
            for group, rate in zip(groups, scheduler.get_lr(), strict=True):
                group["lr"] = rate


class TrainingCheckpointer(RecordingCheckpointer):
    """Detectron2's checkpointer for training.

    Args:
        model: the model.
        save_dir: where checkpoints are saved.
        classes: saved in each checkpoint; :func:`class_metadata` returns them.
        config: saved in each checkpoint; ``config_text`` returns it.
        checkpointables: other objects that are saved and resumed.
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
        self._facts = {
            CLASSES_KEY: classes,
            INPUT_KEY: {} if images is None else images.to_dict(),
            CONFIG_KEY: config,
        }
        if "trainer" in checkpointables:
            checkpointables["trainer"] = _Resumable(checkpointables["trainer"])
        super().__init__(model, save_dir, **checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load as ``DetectionCheckpointer`` does, and tell in short what starts anew.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: the checkpoint is damaged, is of another network or lacks parts of the
                backbone, or was trained on other classes and is resumed.
        """
        if resume and self.has_checkpoint():
            last = self.get_checkpoint_file()
            require_file(last)
            content = self.load(last)
            self._compare(content)
            return content
        require_file(path)
        content = self.load(path, checkpointables=[])
        if path:
            self._check_new_parts(path)
        return content

    def _compare(self, content: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes, and log what else the config says now."""
        theirs, ours = (
            side.get(CLASSES_KEY, {}).get("thing_classes") for side in (content, self._facts)
        )
        if theirs and ours and list(theirs) != list(ours):
            raise InputError(
                f"the checkpoint in {self.save_dir} was trained on the classes {list(theirs)}, the "
                f"data have {list(ours)}; resume with the same data or in another folder"
            )
        if changes := describe_changes(content.get(CONFIG_KEY, ""), self._facts[CONFIG_KEY]):
            message = "Resuming %s with other settings, which hold from now on: %s"
            logger.info(message, self.save_dir, "; ".join(changes))

    def _check_new_parts(self, path: str) -> None:
        """Refuse a backbone that starts anew, and log what else does."""
        if absent := self.untouched_backbone():
            raise InputError(
                f"MODEL.WEIGHTS {path} leaves {len(absent)} parameters of the backbone at random "
                f"values, in {parts(absent)}: give weights of this backbone, or MODEL.WEIGHTS '' "
                "to train from scratch"
            )
        resized = self.incompatible.incorrect_shapes
        if resized:
            listed = ", ".join(f"{name} {theirs} -> {ours}" for name, theirs, ours in resized)
            message = "%d parameters of %s have another shape here and start anew: %s"
            logger.warning(message, len(resized), path, listed)
        names = {name for name, *_ in resized}
        if absent := [name for name in self.untouched() if name not in names]:
            logger.info("%s does not hold %s, which start anew", path, parts(absent))

    def save(self, name: str, **kwargs: Any) -> None:
        """Save ``name.pth`` whole or not at all, and tag it as the last one unless it is the best.

        Raises:
            OSError: it cannot be written; the message names it, and the last one stays.
            NonFiniteError: a weight is NaN or infinite.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        weights = self.model.state_dict()
        if wrong := next((k for k, v in weights.items() if not v.isfinite().all()), None):
            raise NonFiniteError(f"{name}.pth is not saved: {wrong} has NaN or infinite values")
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        file = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", file)
        with replacing(file) as temporary:
            try:
                torch.save({"model": weights, **self._facts, **states, **kwargs}, temporary)
            except (OSError, RuntimeError) as error:  # PyTorch's own, if the disk is full
                raise OSError(f"cannot write {file}: {error}") from error
        if name != BEST:
            self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write ``last_checkpoint`` whole or not at all."""
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """Return the file that is tagged as the last or, if that is damaged, the last whole one."""
        tagged = Path(super().get_checkpoint_file())
        try:
            names = json.loads((Path(self.save_dir) / "results.json").read_text())["checkpoints"]
        except (OSError, ValueError, KeyError, TypeError):
            names = []
        others = [Path(self.save_dir) / name for name in reversed(names)]
        whole = next((file for file in (tagged, *others) if _is_whole(file)), tagged)
        if whole != tagged:
            logger.warning("%s is damaged or not there: taking %s", tagged, whole)
        return str(whole)


def _is_whole(file: Path) -> bool:
    """Whether an archive of PyTorch has all of its content; its end lists it."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except DAMAGED:
        return False
