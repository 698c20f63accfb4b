"""Writing the graph of a detector: torch.export once, then the format's own writer."""

import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import detectron2.data.transforms as T
import torch
from detectron2.data import Metadata as CatalogMetadata
from torch import nn

from ..config import InputError, import_extra
from ..files import check_writable, replacing, write_text
from ..optimize import optimize_for_inference
from . import standalone
from .check import Comparison, compare, expected_outputs, make_images
from .graph import DetectorGraph, last_predictor, least_side, stride_of
from .runtimes import ENTRY, ExportedModel, Format, Metadata, open_exported

logger = logging.getLogger(__name__)

# RoiAlign can be "aligned", as Detectron2's is, from 16 on; DeformConv is there from 19 on.
OPSET = 20
SCRIPT = "run_model.py"
# The tools warn in these words, by category; none is about the graph.
KNOWN_WARNINGS = (
    (DeprecationWarning, "`torch.jit"),
    (FutureWarning, "`create_unbacked_symint`"),
    (UserWarning, "torch.meshgrid"),
    (UserWarning, "Symbolic dimension"),
    (UserWarning, "No complete tensor found"),  # of views, whose storage is written whole
)


def export_model(
    model: nn.Module,
    target: Path,
    format: Format,
    *,
    names: CatalogMetadata,
    input_format: str,
    augmentation: T.Augmentation,
    images: Sequence[torch.Tensor] = (),
) -> list[Comparison]:
    """Write a detector to a file that runs without its code, and compare the two.

    Nothing is written, temporary files neither, before the file has been compared with the model.
    Beside an ONNX file stands ``run_model.py``, which runs it without PyTorch.

    Args:
        model: in evaluation mode, on the CPU.
        target: the file.
        format: its kind.
        names: of the classes, as Detectron2's catalog has them.
        input_format: as ``INPUT.FORMAT``.
        augmentation: the resizing of images at inference.
        images: to compare on, shape (3, H, W), by default noise; they are padded.

    Returns:
        a comparison for each image.

    Raises:
        InputError: the model or the format cannot be exported, or the file's outputs are not the
            model's.
        MissingPackageError: a package is not installed.
        FileError: the file cannot be written.
    """
    check_format(format, target)
    graph = DetectorGraph(model).eval()
    metadata = describe(graph, names, input_format, augmentation)
    logger.info("Exporting to %s, which takes a minute or more", format)
    content = _convert(optimize_for_inference(graph), format, metadata)
    logger.info("Comparing the file with the model")
    comparisons = _compare(graph, open_exported(content, target), images)
    with replacing(target) as temporary:
        temporary.write_bytes(content)
    if format == "onnx":
        write_text(target.with_name(SCRIPT), Path(standalone.__file__).read_text("utf-8"))
    return comparisons


def check_format(format: str, target: Path) -> None:
    """See that a format can be written here, before the minutes that it takes.

    Raises:
        InputError: there is no such format, the file's ending is another one, or a script of
            someone else is in the way.
        MissingPackageError: a package is not installed.
        FileError: the file cannot be written.
    """
    if format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}")
    if target.suffix != f".{format}":
        raise InputError(f"a file of the format {format} must end in .{format}, got {target.name}")
    check_writable(target)
    if format == "onnx":
        script = target.with_name(SCRIPT)
        text = script.read_text("utf-8", "replace") if script.is_file() else ""
        if text and "resnest-d2 export" not in text:
            raise InputError(f"{script} is not this package's and would be overwritten: move it")
        for name in ("onnx", "onnxscript", "onnxruntime"):
            import_extra(name, "export", "an ONNX file")


def describe(
    graph: DetectorGraph,
    names: CatalogMetadata,
    input_format: str,
    augmentation: T.Augmentation,
) -> Metadata:
    """Collect what the file of a graph says about itself; the arguments are export_model's."""
    model, last = graph.model, last_predictor(graph.model)
    steps = getattr(augmentation, "augs", [augmentation])
    resize = next((step for step in steps if isinstance(step, T.ResizeShortestEdge)), None)
    numbers = names.get("thing_dataset_id_to_contiguous_id", None) or {}
    return Metadata(
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
        score_threshold=last.test_score_thresh,
        nms_threshold=last.test_nms_thresh,
    )


@torch.no_grad()
def export_program(graph: DetectorGraph) -> torch.export.ExportedProgram:
    """Follow a graph for images of any height and width that are multiples of the stride."""
    stride, least = stride_of(graph.model), least_side(graph.model)
    example = torch.rand(len(graph.model.pixel_mean), 7 * stride, 8 * stride) * 255
    sides = [torch.export.Dim(name, min=least // stride) for name in ("rows", "columns")]
    shapes = {"image": {axis: stride * side for axis, side in enumerate(sides, start=1)}}
    return torch.export.export(graph, (example,), dynamic_shapes=shapes)


def _convert(graph: DetectorGraph, format: Format, metadata: Metadata) -> bytes:
    """The content of a graph's file."""
    with warnings.catch_warnings():
        for category, start in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", start, category)
        program = export_program(graph)
        if format == "pt2":
            stream = io.BytesIO()
            torch.export.save(program, stream, extra_files={f"{ENTRY}.json": metadata.to_json()})
            return stream.getvalue()
        exported = torch.onnx.export(
            program, opset_version=OPSET, output_names=list(graph.names), verbose=False
        )
        exported.model.metadata_props[ENTRY] = metadata.to_json()
        return exported.model_proto.SerializeToString()


def _compare(
    graph: DetectorGraph, exported: ExportedModel, images: Sequence[torch.Tensor]
) -> list[Comparison]:
    """Compare a file with the model that it was made from.

    Raises:
        InputError: they differ.
    """
    data, comparisons = exported.metadata, []
    for image in images or make_images(graph):
        sides = data.size_divisibility, data.min_side
        pixels = torch.from_numpy(standalone.pad(image.numpy(), data.pixel_mean, *sides))
        expected = expected_outputs(graph.model, pixels)
        comparisons.append(compare(tuple(pixels.shape[-2:]), expected, exported.run(pixels)))
        if comparisons[-1].problem:
            raise InputError(f"the exported file is wrong: {comparisons[-1].problem}")
    if not any(comparison.expected for comparison in comparisons):
        logger.warning(
            "The model finds nothing in the pictures of the check, which therefore shows little: "
            "name others with --check-images"
        )
    return comparisons
