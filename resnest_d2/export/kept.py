"""A predictor's model in OpenVINO, exported once for each config and its weights."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from detectron2.config import CfgNode
from iopath.common.file_io import get_cache_dir

from .. import __version__
from ..config import InputError, import_extra
from ..files import make_folder, replacing
from .runtimes import ExportedModel, open_exported
from .writer import make_content

if TYPE_CHECKING:
    from ..inference import Predictor

logger = logging.getLogger(__name__)


def run_in_openvino(predictor: "Predictor", cfg: CfgNode, half: bool) -> ExportedModel:
    """Open a predictor's model in OpenVINO; export it, compared with the model, at the first time.

    Files are kept in the cache of Detectron2's PathManager, by weights, config and versions.

    Args:
        predictor: on the CPU.
        cfg: that its model was built of.
        half: compute in bfloat16.

    Raises:
        InputError: the model is not on the CPU, or as :func:`~.writer.export_model`.
        MissingPackageError: a package is not installed.
        FileError: the file cannot be written.
    """
    for name, extra in (("openvino", "openvino"), ("onnxscript", "export")):
        import_extra(name, extra, 'optimize="openvino"')
    if any(parameter.device.type != "cpu" for parameter in predictor.model.parameters()):
        raise InputError('optimize="openvino" is for the CPU: take device="cpu"')
    folder = Path(get_cache_dir(), "resnest_d2", "openvino")
    file = folder / f"{_key(predictor.model, cfg)}.onnx"
    if file.is_file():
        content = file.read_bytes()
    else:
        content, _ = make_content(predictor, file, (), "openvino")
        make_folder(folder)
        with replacing(file) as temporary:
            temporary.write_bytes(content)
        logger.info("Kept as %s", file)
    return open_exported(content, file, "openvino", half)


def _key(model: torch.nn.Module, cfg: CfgNode) -> str:
    digest = hashlib.sha256()
    for text in (__version__, torch.__version__, cfg.dump()):
        digest.update(text.encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().numpy())
    return digest.hexdigest()
