"""Checkpoints of training: they hold the names of the classes, and say what they did not fill."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from torch import nn

from ..weights import (
    CLASS_METADATA,
    CLASSES_KEY,
    RecordingCheckpointer,
    checkpoint_errors,
    of_model,
    parts,
    require_file,
)

logger = logging.getLogger(__name__)


def class_metadata(datasets: Sequence[str]) -> dict[str, Any]:
    """The classes of data sets that are loaded; the first that says so decides."""
    found: dict[str, Any] = {}
    for name in datasets:
        metadata = MetadataCatalog.get(name)
        for key in CLASS_METADATA:
            value = metadata.get(key, None)
            if value:
                found.setdefault(key, value)
    return found


class _Classes:
    """What a checkpoint keeps of the data that it was trained on."""

    def __init__(self, metadata: dict[str, Any], folder: str) -> None:
        self.metadata = metadata
        self.folder = folder

    def state_dict(self) -> dict[str, Any]:
        return self.metadata

    def load_state_dict(self, state: dict[str, Any]) -> None:
        theirs, ours = state.get("thing_classes"), self.metadata.get("thing_classes")
        if theirs and ours and list(theirs) != list(ours):
            raise ValueError(
                f"the checkpoint in {self.folder} was trained on the classes {list(theirs)}, the "
                f"data have {list(ours)}; resume with the same data or in another folder"
            )


class _Input:
    """The images that a model is trained on, for those who load its weights later."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        found = of_model(getattr(self.model, "module", self.model))
        return {} if found is None else found.to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do: loading has compared it with the model."""


class TrainingCheckpointer(RecordingCheckpointer):
    """Detectron2's checkpointer for training.

    Args:
        model: the model.
        save_dir: where checkpoints are saved.
        classes: as :func:`class_metadata` returns it; saved in each checkpoint.
        checkpointables: what else is saved and resumed.
    """

    def __init__(
        self, model: nn.Module, save_dir: str, classes: dict[str, Any], **checkpointables: Any
    ) -> None:
        # Before the others: if the classes do not fit, nothing is resumed.
        kept = {CLASSES_KEY: _Classes(classes, save_dir), "input": _Input(model)}
        super().__init__(model, save_dir, **kept, **checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load as ``DetectionCheckpointer`` does, and tell in short what starts anew.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the checkpoint is damaged, is of another network or lacks parts of the
                backbone, or was trained on other classes and is resumed.
        """
        last = resume and self.has_checkpoint()
        file = self.get_checkpoint_file() if last else path
        if file:
            require_file(file)
        with checkpoint_errors(file):
            content = super().resume_or_load(path, resume=resume)
        if path and not last:
            self._require_backbone(path)
            self._log_new_parts(path)
        return content

    def _require_backbone(self, path: str) -> None:
        absent = self.untouched_backbone()
        if absent:
            raise ValueError(
                f"MODEL.WEIGHTS {path} leaves {len(absent)} parameters of the backbone at random "
                f"values, in {parts(absent)}: give weights of this backbone, or MODEL.WEIGHTS '' "
                "to train from scratch"
            )

    def _log_new_parts(self, path: str) -> None:
        resized = self.incompatible.incorrect_shapes
        if resized:
            listed = ", ".join(f"{name} {theirs} -> {ours}" for name, theirs, ours in resized)
            logger.warning(
                "%d parameters of %s have another shape here and start anew: %s",
                len(resized),
                path,
                listed,
            )
        names = {name for name, *_ in resized}
        absent = [name for name in self.untouched() if name not in names]
        if absent:
            logger.info("%s does not hold %s, which start anew", path, parts(absent))
