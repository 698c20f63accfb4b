"""Writing the graph of a detector: torch.export once, then the format's own writer."""

import logging
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import detectron2.data.transforms as T
import torch
from detectron2.data import Metadata
from torch import nn

from ..config import InputError, import_extra
from ..files import check_writable, replacing
from ..optimize import optimize_for_inference
from . import standalone
from .check import Comparison, compare, expected_outputs, found_again, make_images
from .graph import BackboneGraph, DetectorGraph
from .metadata import ENTRY, ONNX, describe
from .metadata import Metadata as Facts
from .reader import load_exported

logger = logging.getLogger(__name__)

Format = Literal["onnx", "pt2", "aoti", "torchscript"]
# RoiAlign can be "aligned", as Detectron2's is, from 16 on; DeformConv is there from 19 on.
OPSET = 20
SCRIPT = "run_model.py"
# The tools warn in these words, by category; none is about the graph.
KNOWN_WARNINGS = (
    (DeprecationWarning, "`torch.jit"),
    (FutureWarning, "`torch.jit"),
    (FutureWarning, "`create_unbacked_symint`"),
    (UserWarning, "torch.meshgrid"),
    (UserWarning, "Symbolic dimension"),
    (torch.jit.TracerWarning, ""),
)


def export_model(
    model: nn.Module,
    target: Path,
    format: Format,
    *,
    names: Metadata,
    input_format: str,
    augmentation: T.Augmentation,
    backbone: bool = False,
    images: Sequence[torch.Tensor] = (),
    calibration: Sequence[torch.Tensor] = (),
) -> list[Comparison]:
    """Write a detector to a file that runs without its code, and compare the two.

    The file is there when all has gone well, and not before. Beside an ONNX file of a detector
    stands ``run_model.py``, which runs it without PyTorch.

    Args:
        model: in evaluation mode, on the CPU.
        target: the file.
        format: its kind.
        names: of the classes, as Detectron2's catalog has them.
        input_format: as ``INPUT.FORMAT``.
        augmentation: the resizing of images at inference.
        backbone: export the backbone and its pyramid alone.
        images: to compare on, shape (3, H, W), by default noise; they are padded.
        calibration: images of the same kind; with them the file is quantised to 8 bits, and differs
            as much as it does.

    Returns:
        a comparison for each image.

    Raises:
        InputError: the model or the format cannot be exported.
        ImportError: a package is not installed.
        OSError: the file cannot be written.
        ValueError: the file's outputs are not the model's.
    """
    graph = (BackboneGraph if backbone else DetectorGraph)(model).eval()
    check_format(format, target, bool(calibration), backbone)
    check_writable(target)
    metadata = describe(graph, model, format, names, input_format, augmentation)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        file = Path(folder) / target.name
        logger.info("Exporting to %s, which takes a minute or more", format)
        with warnings.catch_warnings():
            for category, start in KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", start, category)
            _write(optimize_for_inference(graph), file, metadata)
        if calibration:
            from .quantize import quantize

            quantize(file, calibration, metadata)
        logger.info("Comparing the file with the model")
        comparisons = _compare(graph, model, file, images, exact=not calibration)
        with replacing(target) as temporary:
            os.replace(file, temporary)
    if format == "onnx" and not backbone:
        shutil.copy(standalone.__file__, target.with_name(SCRIPT))
    return comparisons


def check_format(format: str, target: Path, is_int8: bool, backbone: bool = False) -> None:
    """See that a format can be written here, before the minutes that it takes.

    Raises:
        InputError: there is no such format, the file's ending or the compiler is another one, 8
            bits are asked for where there are none, or a script of someone else is in the way.
        ImportError: a package is not installed.
    """
    if format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}")
    if is_int8 and format != "onnx":
        raise InputError(f"8 bits are written to ONNX files alone, not to {format}")
    ending = {"onnx": ".onnx", "torchscript": ".ts"}.get(format, ".pt2")
    if target.suffix != ending:
        raise InputError(f"a file of the format {format} must end in {ending}, got {target.name}")
    if format == "onnx":
        script = target.with_name(SCRIPT)
        text = "" if backbone or not script.is_file() else script.read_text("utf-8", "replace")
        if text and "resnest-d2 export" not in text:
            raise InputError(f"{script} is not this package's and would be overwritten: move it")
        for name in ("onnx", "onnxscript", "onnxruntime"):
            import_extra(name, *ONNX)
    if format == "aoti" and not shutil.which(os.getenv("CXX", "g++")):
        raise InputError("aoti needs a C++ compiler, g++ or what CXX names: pt2 needs none")


@torch.no_grad()
def _write(graph: DetectorGraph | BackboneGraph, file: Path, metadata: Facts) -> None:
    channels, stride = len(metadata.pixel_mean), metadata.size_divisibility
    example = torch.rand(channels, 7 * stride, 8 * stride) * 255
    text = metadata.to_json()
    if metadata.format == "torchscript":
        traced = torch.jit.trace(graph, (example,), check_trace=False)
        torch.jit.save(traced, str(file), _extra_files={f"{ENTRY}.json": text})
        return
    least = metadata.min_side // stride
    sides = [torch.export.Dim(name, min=least) for name in ("rows", "columns")]
    shapes = {"image": {axis: stride * side for axis, side in enumerate(sides, start=1)}}
    program = torch.export.export(graph, (example,), dynamic_shapes=shapes)
    if metadata.format == "pt2":
        torch.export.save(program, file, extra_files={f"{ENTRY}.json": text})
    elif metadata.format == "onnx":
        names = list(graph.names)
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, output_names=names, verbose=False
        )
        exported.model.metadata_props[ENTRY] = text
        exported.save(file)
    else:
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))
        with zipfile.ZipFile(file, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/extra/{ENTRY}.json", text)


def _compare(
    graph: DetectorGraph | BackboneGraph,
    model: nn.Module,
    file: Path,
    images: Sequence[torch.Tensor],
    exact: bool,
) -> list[Comparison]:
    exported = load_exported(file)
    data, comparisons = exported.metadata, []
    for image in images or make_images(graph, model):
        sides = data.size_divisibility, data.min_side
        pixels = torch.from_numpy(standalone.pad(image.numpy(), data.pixel_mean, *sides))
        size = tuple(pixels.shape[-2:])
        expected, actual = expected_outputs(graph, model, pixels), exported.run(pixels)
        comparisons.append(compare(size, expected, actual))
        if "boxes" in expected and not exact:
            again, number = found_again(expected, actual), len(expected["boxes"])
            logger.info("8 bits find %d of %d objects again on %dx%d", again, number, *size)
    problem = next(filter(None, (comparison.problem for comparison in comparisons)), "")
    if exact and problem:
        raise ValueError(f"the exported file is wrong: {problem}")
    if not any(comparison.expected for comparison in comparisons):
        logger.warning(
            "The model finds nothing in the pictures of the check, which therefore shows little: "
            "name others with --check-images"
        )
    return comparisons
