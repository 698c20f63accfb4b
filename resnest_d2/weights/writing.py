"""Writing weights as files that hold nothing else: for PyTorch and as safetensors."""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..files import replacing
from .convert import Conversion

AUTHOR = "resnest_d2"
ENDINGS = (".pth", ".safetensors")
TENSORS = ("model", "classifier")


def detectron2_checkpoint(conversion: Conversion) -> dict[str, Any]:
    """What ``DetectionCheckpointer`` loads; a backbone's classifier is kept apart."""
    backbone = conversion.backbone
    if backbone is None:
        return {"model": conversion.weights, "__author__": AUTHOR}
    classifier = {k: v for k, v in backbone.items() if k.startswith("linear.")}
    model = {k: v for k, v in backbone.items() if k not in classifier}
    content = {"model": model, "matching_heuristics": True, "__author__": AUTHOR}
    return content | ({"classifier": classifier} if classifier else {})


def write_checkpoint(content: Mapping[str, Any], target: Path) -> None:
    """Write weights under "model" and plain values beside them, whole or not at all.

    In a safetensors file the values are JSON in the metadata, and a classifier is among the
    tensors.

    Raises:
        ImportError: safetensors is asked for and not installed.
        OSError: the file cannot be written.
    """
    if target.suffix == ".safetensors":
        write_safetensors(content, target)
    else:
        write_torch(content, target)


def write_torch(content: Mapping[str, Any], target: Path) -> None:
    """``torch.save``, whole or not at all, and without what the tensors share memory with.

    Raises:
        OSError: the file cannot be written.
    """
    copies = {
        key: {name: tensor.detach().clone() for name, tensor in value.items()}
        if key in TENSORS
        else value
        for key, value in content.items()
    }
    _require_space(target, content)
    with replacing(target) as temporary:
        try:
            torch.save(copies, temporary)
        except RuntimeError as error:  # its writer's way of telling of the disk
            raise _disk_error(target, error) from error


def write_safetensors(content: Mapping[str, Any], target: Path) -> None:
    """The same as a safetensors file.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise ImportError("writing safetensors needs them: pip install safetensors") from None
    named = {**content["model"], **content.get("classifier", {})}
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in named.items()}
    beside = {k: v for k, v in content.items() if k not in TENSORS}
    metadata = {key: json.dumps(value) for key, value in beside.items()}
    _require_space(target, content)
    with replacing(target) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, {"format": "pt", **metadata})
        except SafetensorError as error:
            raise _disk_error(target, error) from error
        os.chmod(temporary, mode)  # it makes its files private


def _require_space(target: Path, content: Mapping[str, Any]) -> None:
    size = sum(tensor.nbytes for key in TENSORS for tensor in content.get(key, {}).values())
    free = shutil.disk_usage(target.parent).free
    if size > free:
        message = f"cannot write {target}: it takes {size} bytes, and {free} are free on its disk"
        raise OSError(errno.ENOSPC, message)


def _disk_error(target: Path, error: Exception) -> OSError:
    reason = str(error).strip().partition("\n")[0]
    free = shutil.disk_usage(target.parent).free
    return OSError(errno.EIO, f"cannot write {target} ({free} bytes are free there): {reason}")
