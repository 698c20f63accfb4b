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


def run_in_openvino(predictor: "Predictor", cfg: CfgNode | None, half: bool) -> ExportedModel:
    """Export a predictor's model, compared with it as any export is, and open it in OpenVINO.

    The file is kept in the cache of Detectron2's PathManager, by weights, config and versions.

    Args:
        predictor: on the CPU.
        cfg: that its model was built of; None, for a model that somebody instantiated, keeps
            nothing.
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
    name = _key(predictor.model, cfg) if cfg else "model"
    file = Path(get_cache_dir(), "resnest_d2", "openvino", f"{name}.onnx")
    if cfg and file.is_file():
        return open_exported(file.read_bytes(), file, "openvino", half)
    content, _ = make_content(predictor, file, (), "openvino")
    if cfg:
        make_folder(file.parent)
        with replacing(file) as temporary:
            temporary.write_bytes(content)
        logger.info("Kept as %s", file)
    return open_exported(content, file, "openvino", half)


def _key(model: torch.nn.Module, cfg: CfgNode) -> str:
    """The config's text, every weight and the versions, as one hash."""
    digest = hashlib.sha256()
    for text in (__version__, torch.__version__, cfg.dump()):
        digest.update(text.encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().numpy())
    return digest.hexdigest()
