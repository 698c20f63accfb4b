"""``resnest://`` names for Detectron2's PathManager."""

import difflib
import logging
import re
from pathlib import Path

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, file_lock, get_cache_dir

from ..files import replacing, sha256
from . import catalog
from .convert import convert

logger = logging.getLogger(__name__)

PREFIX = "resnest://"


class ResNeStHandler(PathHandler):
    """Resolve ``resnest://ImageNet/<variant>`` to a local file in Detectron2's naming.

    The file is downloaded to iopath's cache from the first source that has it, checked against the
    hash in its name, read as tensors only, and converted. A backbone's converted file asks
    ``DetectionCheckpointer`` to match names by their ends, so it fits a backbone with any prefix.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _isfile(self, path: str, **kwargs) -> bool:
        return False  # a name, not a file: makes checkpointers ask for the local path

    def _exists(self, path: str, **kwargs) -> bool:
        try:
            return bool(_imagenet_file(path))
        except ValueError:
            return False

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        filename = _imagenet_file(path)
        folder = Path(get_cache_dir()) / "resnest_d2"
        folder.mkdir(parents=True, exist_ok=True)
        converted = folder / filename.replace(".pth", ".detectron2.pth")
        with file_lock(str(converted)):
            if force or not converted.is_file():
                source = _fetch(filename, catalog.IMAGENET_SOURCES, folder)
                _write_converted(source, converted)
        return str(converted)


def register_handlers() -> None:
    """Register the handlers in Detectron2's PathManager; again does nothing."""
    PathManager.register_handler(ResNeStHandler(), allow_override=True)


def _imagenet_file(path: str) -> str:
    kind, _, variant = path.removeprefix(PREFIX).partition("/")
    if kind != "ImageNet" or variant not in catalog.IMAGENET:
        known = [f"{PREFIX}ImageNet/{name}" for name in catalog.IMAGENET]
        close = difflib.get_close_matches(path, known, n=3, cutoff=0.3) or known
        raise ValueError(f"unknown weights {path!r}; did you mean {' or '.join(close)}?")
    return catalog.IMAGENET[variant]


def _fetch(filename: str, sources: tuple[str, ...], folder: Path) -> Path:
    by_hand = folder / filename
    places = [str(by_hand)] if by_hand.exists() else []
    reasons = []
    for url in places + [source + filename for source in sources]:
        try:
            local = Path(PathManager.get_local_path(url))
            problem = hash_problem(local, filename)
        except OSError as error:  # urllib's errors are OSErrors
            reasons.append(f"{url} ({error})")
            continue
        if problem is None:
            return local
        reasons.append(f"{url} ({problem})")
        if "://" in url:  # the cache's copy, which would stand in the way of a good one
            local.unlink()
    raise OSError(
        f"cannot download {filename}: {'; '.join(reasons)}. Fetch the file by other means and save "
        f"it as {by_hand}"
    )


def hash_problem(file: Path, filename: str) -> str | None:
    """Why the file is not the one that the hash in ``filename`` promises, or None."""
    expected = re.search(r"-([0-9a-f]{8,64})\.pth$", filename).group(1)
    actual = sha256(file)
    if actual.startswith(expected):
        return None
    return f"wrong hash: SHA-256 starts with {actual[:8]}, not {expected}"


def _write_converted(source: Path, target: Path) -> None:
    state_dict = convert(torch.load(source, map_location="cpu", weights_only=True))
    content = {
        "model": {k: v for k, v in state_dict.items() if not k.startswith("linear.")},
        "matching_heuristics": True,
        "__author__": "resnest_d2",
    }
    with replacing(target) as temporary:
        torch.save(content, temporary)
    logger.info("Converted %s to Detectron2's names in %s", source.name, target)
