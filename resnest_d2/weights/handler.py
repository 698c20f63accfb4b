"""``resnest://`` and ``timm://`` names, and addresses of old, for Detectron2's PathManager."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import HTTPURLHandler, PathHandler, file_lock, get_cache_dir

from ..files import replacing, write_text
from . import catalog
from .convert import Conversion, describe_conversion
from .download import Fetched, fetch, writing_to
from .reading import read_checkpoint

logger = logging.getLogger(__name__)

# Of the converted files; another one in the cache is made anew.
CACHE_VERSION = 1
AUTHOR = "resnest_d2"


class WeightsHandler(PathHandler):
    """Resolve a name of published weights to a local file that any Detectron2 trainer can load.

    The file is fetched from the first source that has it, checked against its hash, read as
    tensors only, converted to Detectron2's names and cached beside a note of its source's hash.
    A backbone's converted file asks ``DetectionCheckpointer`` to match names by their ends, so it
    fits a backbone with any prefix.

    Names are ``resnest://ImageNet/<variant>``, ``resnest://COCO/<zoo name>`` and
    ``timm://<model>.<tag>``. The addresses of the reference's bucket and of MMDetection's ResNeSt
    detectors stand for the weights that are, or were, there.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [catalog.RESNEST, catalog.TIMM, catalog.BUCKET, catalog.OPENMMLAB_DETECTORS]

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return False  # a name, not a file: makes checkpointers ask for the local path

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            return bool(self._entry(path))
        except ValueError:
            return False

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        entry = self._entry(path)
        if entry is None:  # some other file under an address that weights are at
            return HTTPURLHandler()._get_local_path(path, force=force, **kwargs)
        return str(local_path(entry, force))

    def _entry(self, path: str) -> catalog.Entry | None:
        if path.startswith((catalog.RESNEST, catalog.TIMM)):
            return catalog.find(path)
        return catalog.find_address(path)


def register_handlers() -> None:
    """Register the handler in Detectron2's PathManager; again does nothing."""
    PathManager.register_handler(WeightsHandler(), allow_override=True)


def local_path(entry: catalog.Entry, force: bool = False) -> Path:
    """The converted file of a cache entry, which is made if it is not there.

    Args:
        entry: what is wanted.
        force: fetch and convert it anew.

    Raises:
        FetchError: no source has it, or the cache cannot be written.
        ValueError: what came is no checkpoint of a ResNeSt.
    """
    root = Path(get_cache_dir()) / "resnest_d2"
    target = root / f"{entry.cached}.pth"
    note = target.with_suffix(".json")
    with writing_to(root):
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(target)):
            if force or not _is_current(target, note):
                fetched = fetch(entry.sources, root)
                try:
                    _convert(entry, fetched, target, note)
                finally:
                    if fetched.is_temporary:
                        fetched.path.unlink(missing_ok=True)
    return target


def read_note(name: str) -> dict[str, Any]:
    """What is noted of weights that were fetched by name: source, sha256, verified."""
    path = Path(get_cache_dir()) / "resnest_d2" / f"{catalog.find(name).cached}.json"
    return json.loads(path.read_text())


def _is_current(target: Path, note: Path) -> bool:
    try:
        content = json.loads(note.read_text())
        size = target.stat().st_size
    except (OSError, ValueError):
        return False
    return content.get("version") == CACHE_VERSION and content.get("bytes") == size


def _convert(entry: catalog.Entry, fetched: Fetched, target: Path, note: Path) -> None:
    try:
        conversion = describe_conversion(read_checkpoint(fetched.path))
    except ValueError as error:
        reason = str(error).replace(str(fetched.path), "the file")
        raise ValueError(
            f"{entry.name}: what {fetched.source} gives is no use: {reason}"
        ) from error
    if not fetched.is_verified:
        logger.warning(
            "%s came from %s without a hash to check it against; it was read as tensors only",
            entry.name,
            fetched.source,
        )
    source = {
        "source": fetched.source,
        "sha256": fetched.sha256,
        "verified": fetched.is_verified,
    }
    content = detectron2_checkpoint(conversion)
    content |= {"input": entry.input_format.to_dict(), "source": source}
    note.unlink(missing_ok=True)
    with replacing(target) as temporary:
        torch.save(content, temporary)
    size = target.stat().st_size
    text = json.dumps({**source, "bytes": size, "version": CACHE_VERSION}, indent=1)
    write_text(note, text + "\n")
    logger.info("%s from %s is now %s", entry.name, fetched.source, target)


def detectron2_checkpoint(conversion: Conversion) -> dict[str, Any]:
    """What ``DetectionCheckpointer`` loads; a backbone's classifier is kept apart."""
    if not conversion.is_backbone:
        return {"model": conversion.weights, "__author__": AUTHOR}
    classifier = {k: v for k, v in conversion.weights.items() if k.startswith("linear.")}
    model = {k: v for k, v in conversion.weights.items() if k not in classifier}
    content = {"model": model, "matching_heuristics": True, "__author__": AUTHOR}
    return content | ({"classifier": classifier} if classifier else {})
