"""Running exported files as Detectron2 runs its models."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  (its operators are in the graphs)
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ..config import InputError
from .metadata import Metadata, read_metadata
from .standalone import pad

Function = Callable[[torch.Tensor], Sequence[torch.Tensor]]


class ExportedModel:
    """A file's model, called like a model of Detectron2 in evaluation.

    Args:
        function: maps an image that is padded to outputs in the order of ``metadata.outputs``.
        metadata: what the file says about itself.
    """

    def __init__(self, function: Function, metadata: Metadata) -> None:
        self.metadata = metadata
        self._function = function

    @torch.no_grad()
    def run(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs as the file gives them, by name.

        Args:
            image: shape (3, H, W), 0 to 255, in the colours of ``metadata.input_format``.
        """
        data = self.metadata
        sides = data.size_divisibility, data.min_side
        padded = pad(image.cpu().numpy(), data.pixel_mean, *sides)
        return dict(zip(data.outputs, self._function(torch.from_numpy(padded)), strict=True))

    def __call__(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        """Detect.

        Args:
            batched_inputs: one for each image, in Detectron2's format: "image" is resized already,
                as :meth:`run` takes it, and "height" and "width" are those of the result.

        Returns:
            for each image ``{"instances": Instances}``, with boxes, scores, classes and, if the
            model has them, masks of that height and width.

        Raises:
            InputError: the file holds a backbone.
        """
        if "boxes" not in self.metadata.outputs:
            raise InputError("the file holds a backbone, which finds no objects: call run(image)")
        return [{"instances": self._instances(one)} for one in batched_inputs]

    def _instances(self, given: Mapping[str, Any]) -> Instances:
        outputs = self.run(given["image"])
        size = tuple(given["image"].shape[-2:])
        filled = outputs["scores"] >= 0
        found = Instances(size)
        found.pred_boxes = Boxes(outputs["boxes"][filled])
        found.scores = outputs["scores"][filled]
        found.pred_classes = outputs["classes"][filled]
        if "masks" in outputs:
            found.pred_masks = outputs["masks"][filled][:, None]
        height, width = given.get("height", size[0]), given.get("width", size[1])
        return detector_postprocess(found, height, width)


def load_exported(path: str | Path) -> ExportedModel:
    """Open a file of ``resnest-d2 export``.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is not one of this package's, or is damaged.
        ImportError: the file's format needs a package that is not installed.
    """
    path = Path(path)
    metadata, session = read_metadata(path)
    try:
        function = _onnx(session) if session else _LOADERS[metadata.format](path)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as an exported model: {reason}") from error
    return ExportedModel(function, metadata)


def _onnx(session: "onnxruntime.InferenceSession") -> Function:  # noqa: F821
    def run(image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(value) for value in session.run(None, {"image": image.numpy()})]

    return run


def _torchscript(path: Path) -> Function:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
        return torch.jit.load(path, map_location="cpu")


_LOADERS = {
    "pt2": lambda path: torch.export.load(path).module(),
    "aoti": lambda path: torch._inductor.aoti_load_package(str(path)),
    "torchscript": _torchscript,
}
