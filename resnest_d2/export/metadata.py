"""Facts that an exported file holds about itself, as JSON."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import detectron2.data.transforms as T
from detectron2.data import Metadata as CatalogMetadata
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import nn

from .. import __version__
from ..config import InputError, import_extra
from .graph import BackboneGraph, DetectorGraph, least_side, stride_of

# The name of the JSON: a property of ONNX, with the ending .json an extra file of the others.
ENTRY = "resnest_d2"
# The words of import_extra about the packages that ONNX files need.
ONNX = ("ONNX files need {}, which", "export")


@dataclass(frozen=True)
class Metadata:
    """Facts about an exported model, which its file holds."""

    format: str
    """``onnx``, ``pt2``, ``aoti`` or ``torchscript``."""
    outputs: Sequence[str]
    """Boxes, scores, classes and masks, or the names of a backbone's features."""
    classes: Sequence[str]
    category_ids: Sequence[int]
    """Ids of the classes in the annotations that the model was trained on, if they are known."""
    input_format: str
    """The order of the image's colours, as ``INPUT.FORMAT``."""
    pixel_mean: Sequence[float]
    """Part of the graph; an image is padded with it."""
    pixel_std: Sequence[float]
    size_divisibility: int
    """Height and width of the image are multiples of it."""
    min_side: int
    """The least height and width; in smaller images a level of the pyramid has a single row."""
    min_size: int
    """The shorter side that images are resized to, 0 if they are not."""
    max_size: int
    """The limit of the longer side."""
    score_threshold: float | None
    nms_threshold: float | None
    version: str = __version__
    """The version of this package."""

    def to_json(self) -> str:
        """The JSON that a file holds."""
        return json.dumps(asdict(self))


def describe(
    graph: DetectorGraph | BackboneGraph,
    model: nn.Module,
    format: str,
    names: CatalogMetadata,
    input_format: str,
    augmentation: T.Augmentation,
) -> Metadata:
    """Collect what the file of a graph says.

    Args:
        graph: of the model.
        model: the detector.
        format: of the file.
        names: of the classes, in Detectron2's form.
        input_format: as ``INPUT.FORMAT``.
        augmentation: the resizing at inference.
    """
    steps = getattr(augmentation, "augs", [augmentation])
    resize = next((step for step in steps if isinstance(step, T.ResizeShortestEdge)), None)
    numbers = names.get("thing_dataset_id_to_contiguous_id", None) or {}
    score = nms = None
    if isinstance(graph, DetectorGraph):
        head = model
        if not isinstance(model, RetinaNet):
            heads = model.roi_heads.box_predictor
            head = heads[-1] if isinstance(heads, nn.ModuleList) else heads
        score, nms = head.test_score_thresh, head.test_nms_thresh
    return Metadata(
        format=format,
        outputs=list(graph.names),
        classes=list(names.get("thing_classes", None) or []),
        category_ids=sorted(numbers, key=numbers.get),
        input_format=input_format,
        pixel_mean=model.pixel_mean.flatten().tolist(),
        pixel_std=model.pixel_std.flatten().tolist(),
        size_divisibility=stride_of(model),
        min_side=least_side(model),
        min_size=min(resize.short_edge_length) if resize else 0,
        max_size=int(resize.max_size) if resize else 0,
        score_threshold=score,
        nms_threshold=nms,
    )


def read_metadata(
    file: Path,
) -> tuple[Metadata, "onnxruntime.InferenceSession | None"]:  # noqa: F821
    """Read the facts that a file holds about itself.

    Returns:
        them, and the session of an ONNX file, which has to be opened for that.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it was not exported by this package, or by another version of it.
        ImportError: it is an ONNX file, and onnxruntime is not installed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    session = None if zipfile.is_zipfile(file) else _open_session(file)
    text = session.get_modelmeta().custom_metadata_map.get(ENTRY) if session else _of_archive(file)
    if text is None:
        raise InputError(f"{file} was not written by `resnest-d2 export`: it holds no metadata")
    try:
        return Metadata(**json.loads(text)), session
    except TypeError as error:  # other fields
        raise InputError(
            f"{file} was written by another version of resnest_d2 than this one, {__version__}: "
            "export it again"
        ) from error


def _of_archive(file: Path) -> str | None:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if Path(name).name == f"{ENTRY}.json"]
        return archive.read(names[0]).decode() if names else None


def _open_session(file: Path) -> "onnxruntime.InferenceSession":  # noqa: F821
    onnxruntime = import_extra("onnxruntime", *ONNX)
    try:
        return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base below it
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} cannot be read as an exported model: {reason}") from error
