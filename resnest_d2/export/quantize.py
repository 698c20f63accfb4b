"""ONNX files in 8 bits, by onnxruntime's quantiser."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config import import_extra
from .metadata import ONNX, Metadata
from .standalone import pad

logger = logging.getLogger(__name__)


def quantize(file: Path, images: Sequence[torch.Tensor], metadata: Metadata) -> None:
    """Quantise convolutions and matrix products of an ONNX file to 8 bits, in place.

    Args:
        file: of a detector or a backbone; what it says about itself stays.
        images: to measure the range of activations on, shape (3, H, W), 0 to 255.
        metadata: of the file.

    Raises:
        ImportError: a package is not installed.
    """
    tools = import_extra("onnxruntime.quantization", *ONNX)
    sides = metadata.size_divisibility, metadata.min_side
    inputs = ({"image": pad(image.numpy(), metadata.pixel_mean, *sides)} for image in images)

    class Reader(tools.CalibrationDataReader):
        """Hands out the images, one at a time."""

        def get_next(self) -> dict | None:
            return next(inputs, None)

    logger.info("Measuring ranges on %d images", len(images))
    logging.disable(logging.WARNING)  # the quantiser advises a step that fails on these graphs
    try:
        tools.quantize_static(
            str(file),
            str(file),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
        )
    finally:
        logging.disable(logging.NOTSET)
