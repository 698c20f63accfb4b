"""``resnest://`` and ``timm://`` names, and addresses of old, for Detectron2's PathManager."""

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import HTTPURLHandler, PathHandler, file_lock, get_cache_dir

from ..files import write_text
from . import catalog
from .convert import describe_conversion
from .fetch import Fetched, fetch, writing_to
from .network import network_of
from .reading import UnreadableError, read_checkpoint
from .writing import detectron2_checkpoint, write_torch

logger = logging.getLogger(__name__)

# Of the converted files; another one in the cache is made anew.
CACHE_VERSION = 1


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
        if set(mode) & set("wax+"):
            raise ValueError(f"{path} is a name of published weights and cannot be written")
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
        FetchError: no source has a file of a ResNeSt, or the cache cannot be written.
    """
    for root in (_wanted_root(), Path(get_cache_dir()) / "resnest_d2"):
        target = root / f"{entry.cached}.pth"
        note = target.with_suffix(".json")
        # Without a lock, which a folder that is only to be read could not hold.
        if not force and _is_current(target, note):
            return target
    with writing_to(root):
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(target)):
            if force or not _is_current(target, note):
                fetch(entry.sources, root, lambda file: _convert(entry, file, target, note))
    return target


def _wanted_root() -> Path:
    """The folder that the user named; ``get_cache_dir`` gives another if it cannot be written."""
    folder = os.getenv("FVCORE_CACHE", "~/.torch/iopath_cache")
    return Path(os.path.expanduser(folder)) / "resnest_d2"


def read_note(name: str) -> dict[str, Any]:
    """What is noted of weights that were fetched by name: source, sha256, verified."""
    return _read_note(local_path(catalog.find(name)).with_suffix(".json"))


def _read_note(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_current(target: Path, note: Path) -> bool:
    content = _read_note(note)
    keys = ("source", "sha256", "verified")
    if not target.is_file() or not all(key in content for key in keys):
        return False
    size = target.stat().st_size
    is_current = (content.get("version"), content.get("bytes")) == (CACHE_VERSION, size)
    if is_current and not content["verified"]:
        _tell_unverified(target.stem, content["source"])
    return is_current


def _tell_unverified(name: str, source: str) -> None:
    logger.warning(
        "%s came from %s without a hash to check it against; it was read as tensors only",
        name,
        source,
    )


def _check_network(entry: catalog.Entry, weights: Iterable[str]) -> None:
    """Refuse weights of another depth than their name says, where no hash vouches for them."""
    said = re.search(r"(resnest|resnet)(\d+)", entry.name.rpartition("://")[2])
    found = network_of(weights)
    if said and found:
        expected = f"{'ResNeSt' if said[1] == 'resnest' else 'ResNet'}-{said[2]}"
        if str(found) != expected:
            raise ValueError(f"it is of a {found}, not of a {expected}")


def _convert(entry: catalog.Entry, fetched: Fetched, target: Path, note: Path) -> None:
    try:
        conversion = describe_conversion(read_checkpoint(fetched.path))
    except UnreadableError as error:
        raise ValueError(str(error).replace(str(fetched.path), "it")) from error
    if not fetched.is_verified:
        _check_network(entry, conversion.weights)
        _tell_unverified(entry.name, fetched.source)
    source = {
        "source": fetched.source,
        "sha256": fetched.sha256,
        "verified": fetched.is_verified,
    }
    content = detectron2_checkpoint(conversion)
    content |= {"input": entry.input_format.to_dict(), "source": source}
    with writing_to(target.parent):
        note.unlink(missing_ok=True)
        write_torch(content, target)
        size = target.stat().st_size
        text = json.dumps({**source, "bytes": size, "version": CACHE_VERSION}, indent=1)
        write_text(note, text + "\n")
    logger.info("%s from %s is now %s", entry.name, fetched.source, target)
