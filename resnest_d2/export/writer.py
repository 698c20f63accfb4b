"""Writing a detector to a file, once the file has been compared with the model."""

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN
from torch import nn
from torch.nn import functional as F

from ..config import InputError, import_extra
from ..files import check_writable, replacing, write_text
from ..optimize import optimize_for_inference
from . import standalone
from .graph import DetectorGraph, last_predictor, least_side, most_detections, stride_of
from .runtimes import ENTRY, Metadata, open_exported, require_format

if TYPE_CHECKING:
    import onnx

    from ..inference import Predictor

logger = logging.getLogger(__name__)

# RoiAlign can be "aligned", as Detectron2's is, from 16 on; DeformConv is there from 19 on.
OPSET = 20
SCRIPT = "run_model.py"
# Largest differences: of boxes in pixels, of scores and masks.
BOX_TOLERANCE, VALUE_TOLERANCE = 1e-3, 1e-4
SCALES = (1, 8, 32)  # pixels of the noise that is compared on

Outputs = Mapping[str, torch.Tensor]
Comparison = dict[str, Any]


def export_model(
    predictor: "Predictor", target: Path, images: Sequence[np.ndarray] = ()
) -> list[Comparison]:
    """Write a predictor's detector to a file that runs without its code, and compare the two.

    Nothing is written, temporary files neither, before the file has been compared with the model.
    Beside an ONNX file stands ``run_model.py``, which runs it without PyTorch.

    Args:
        predictor: on the CPU.
        target: the file, whose ending is its format: .onnx or .pt2.
        images: to compare on, as :meth:`Predictor.read` gives them, by default noise.

    Returns:
        what :func:`compare` gives, for each image.

    Raises:
        InputError: the model or its way to resize images cannot be exported, or the file's outputs
            are not the model's.
        MissingPackageError: a package is not installed.
        FileError: the file cannot be written.
    """
    check_target(target)
    if predictor.pixel_range:
        logger.warning("INPUT.PIXEL_RANGE: the file takes pictures of 8 bits; scale others before")
    runtime = "onnxruntime" if target.suffix == ".onnx" else "auto"
    content, comparisons = make_content(predictor, target, images, runtime)
    with replacing(target) as temporary:
        temporary.write_bytes(content)
    if target.suffix == ".onnx":
        write_text(target.with_name(SCRIPT), Path(standalone.__file__).read_text("utf-8"))
    return comparisons


def make_content(
    predictor: "Predictor", target: Path, images: Sequence[np.ndarray], runtime: str
) -> tuple[bytes, list[Comparison]]:
    """Export a predictor's detector; return the content of its file, compared with the model.

    Args:
        predictor, target, images: as of :func:`export_model`.
        runtime: runs the content for the comparison.

    Raises:
        InputError, MissingPackageError: as of :func:`export_model`.
    """
    graph = DetectorGraph(predictor.model)
    metadata = describe(predictor)
    logger.info("Exporting to %s, which takes a minute or more", target.suffix)
    content = _convert(optimize_for_inference(graph.eval()), target.suffix, metadata)
    logger.info("Comparing the file with the model")
    inputs = [predictor.prepare(image)["image"] for image in images] or make_images(graph.model)
    exported, comparisons = open_exported(content, target, runtime), []
    for image in map(exported.pad, inputs):
        expected = expected_outputs(graph.model, image)
        comparisons.append(compare(expected, exported.run(image), tuple(image.shape[-2:])))
    if not any(comparison["detections"] for comparison in comparisons):
        logger.warning(
            "The model finds nothing in the pictures of the check, which therefore shows little: "
            "name others with --check-images"
        )
    return content, comparisons


def check_target(target: Path) -> None:
    """See that a file can be written, before the minutes that it takes.

    Raises:
        InputError: the ending is none of a format, or a script of someone else is in the way.
        MissingPackageError: a package is not installed.
        FileError: the file cannot be written.
    """
    require_format(target)
    check_writable(target)
    if target.suffix == ".onnx":
        script = target.with_name(SCRIPT)
        if script.exists() and "resnest-d2 export" not in script.read_text("utf-8", "replace"):
            raise InputError(f"{script} is not this package's and would be overwritten: move it")
        for name in ("onnx", "onnxscript", "onnxruntime"):
            import_extra(name, "export", "an ONNX file")


def describe(predictor: "Predictor") -> Metadata:
    """Gather what a file tells about its model.

    Raises:
        InputError: images are resized in a way that a file cannot tell.
    """
    model, names, resize = predictor.model, predictor.metadata, predictor.augmentation
    if not isinstance(resize, T.ResizeShortestEdge) or len(set(resize.short_edge_length)) > 1:
        takes = "it takes a ResizeShortestEdge of one length"
        raise InputError(f"a file cannot tell to resize images by {resize}: {takes}")
    numbers = names.get("thing_dataset_id_to_contiguous_id", None) or {}
    return Metadata(
        classes=list(names.get("thing_classes", None) or []),
        category_ids=sorted(numbers, key=numbers.get),
        input_format=predictor.input_format,
        pixel_mean=model.pixel_mean.flatten().tolist(),
        size_divisibility=stride_of(model),
        min_side=least_side(model),
        min_size=resize.short_edge_length[0],
        max_size=resize.max_size,
        score_threshold=last_predictor(model).test_score_thresh,
    )


@torch.no_grad()
def export_program(graph: DetectorGraph) -> torch.export.ExportedProgram:
    """Follow a graph for images of any height and width that are multiples of the stride."""
    stride, least = stride_of(graph.model), least_side(graph.model)
    example = torch.rand(3, 7 * stride, 8 * stride) * 255
    sides = [torch.export.Dim(name, min=least // stride) for name in ("rows", "columns")]
    shapes = {"image": {axis: stride * side for axis, side in enumerate(sides, start=1)}}
    return torch.export.export(graph, (example,), dynamic_shapes=shapes)


def _convert(graph: DetectorGraph, suffix: str, metadata: Metadata) -> bytes:
    """The content of a graph's file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the comparison tells what is wrong with a graph
        program = export_program(graph)
        if suffix == ".pt2":
            stream = io.BytesIO()
            torch.export.save(program, stream, extra_files={f"{ENTRY}.json": metadata.to_json()})
            return stream.getvalue()
        exported = torch.onnx.export(
            program, opset_version=OPSET, output_names=list(graph.names), verbose=False
        )
        exported.model.metadata_props[ENTRY] = metadata.to_json()
        model = exported.model_proto
        _limit_suppression(model, most_detections(graph.model))
        return model.SerializeToString()


def _limit_suppression(model: "onnx.ModelProto", rows: int) -> None:
    """Let the last NMS, that of detections, stop at the rows that are kept of it.

    It takes boxes by descending score, so that these are the same ones. PyTorch's translation asks
    for all boxes that are left, which takes seconds where thousands pass a low threshold.
    """
    onnx = import_extra("onnx", "export", "an ONNX file")
    limit = onnx.numpy_helper.from_array(np.array([rows], np.int64), "most_detections")
    model.graph.initializer.append(limit)
    last = [node for node in model.graph.node if node.op_type == "NonMaxSuppression"][-1]
    last.input[2] = limit.name


def make_images(model: nn.Module) -> list[torch.Tensor]:
    """Two images of noise at several scales, of other sizes than the export's example."""
    generator, images = torch.Generator().manual_seed(0), []
    for rows, columns in ((5, 10), (9, 6)):
        size = (rows * stride_of(model), columns * stride_of(model))
        image = torch.zeros(1, 3, *size)
        for scale in SCALES:
            noise = torch.rand(1, 3, *(side // scale for side in size), generator=generator)
            image += F.interpolate(noise, size, mode="bilinear") * 255 / len(SCALES)
        images.append(image[0])
    return images


@torch.no_grad()
def expected_outputs(model: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the outputs of the model itself, by Detectron2's own code.

    Args:
        model: the detector.
        image: shape (3, H, W), multiples of the stride.
    """
    if isinstance(model, GeneralizedRCNN):
        (found,) = model.inference([{"image": image}], do_postprocess=False)
    else:
        images = model.preprocess_image([{"image": image}])
        features = model.backbone(images.tensor)
        levels = [features[name] for name in model.head_in_features]
        (found,) = model.forward_inference(images, levels, model.head(levels))
    outputs = {"boxes": found.pred_boxes.tensor, "scores": found.scores}
    outputs["classes"] = found.pred_classes
    return outputs | ({"masks": found.pred_masks[:, 0]} if found.has("pred_masks") else {})


def compare(expected: Outputs, actual: Outputs, size: tuple[int, int]) -> Comparison:
    """Compare outputs; detections are matched by class and box, because equal scores have no order.

    Args:
        expected: of :func:`expected_outputs`.
        actual: of the file, rows with a negative score are empty.
        size: height and width of the image.

    Returns:
        the "image", the number of its "detections" and, if there are some, the largest difference
        of each output.

    Raises:
        InputError: the numbers of detections or their values differ.
    """
    image = "x".join(map(str, size))
    filled = actual["scores"] >= 0
    actual = {name: value[filled] for name, value in actual.items()}
    number, found = len(expected["scores"]), len(actual["scores"])
    if found != number:
        text = f"it finds {found} objects on an image of {image} pixels, the model {number}"
        raise InputError(f"the exported file is wrong: {text}")
    result: Comparison = {"image": image, "detections": number}
    if not number:
        return result
    distances = torch.cdist(expected["boxes"].double(), actual["boxes"].double(), p=torch.inf)
    distances[expected["classes"][:, None] != actual["classes"]] = 1e9
    order = []
    for row in distances:
        order.append(row.argmin().item())
        distances[:, order[-1]] = torch.inf  # each row of the file is taken once
    for name, value in expected.items():
        difference = (value - actual[name][order]).abs().max().item()
        limit = BOX_TOLERANCE if name == "boxes" else VALUE_TOLERANCE
        if not difference <= limit:  # NaN differs too
            text = f"{name} differ by {difference:.2g} on an image of {image} pixels"
            raise InputError(f"the exported file is wrong: {text}, and may by {limit:g}")
        result[name] = difference
    return result
