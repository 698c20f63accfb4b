"""Weights by name: fetched, checked, converted and cached for Detectron2's PathManager."""

import logging
import os
import re
import socket
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from iopath.common.file_io import PathHandler, file_lock, get_cache_dir

from ..config import InputError
from ..files import PathManager, sha256
from . import catalog
from .catalog import HUB, Entry, file_name
from .convert import rename
from .files import Checkpoint, read_checkpoint, write_checkpoint
from .hub import FetchError, download, first_line

logger = logging.getLogger(__name__)

# A folder, or the address of one, that is asked before all other sources.
MIRROR_VARIABLE = "RESNEST_D2_MIRROR"
TIMEOUT = 30.0  # seconds that a server may be silent
# Part of the path of converted files; a new version makes them anew.
CACHE_VERSION = 2


class WeightsHandler(PathHandler):
    """Resolve a name of published weights to a local file that any Detectron2 trainer can load.

    Names are ``resnest://ImageNet/<variant>``, ``resnest://COCO/<zoo name>``,
    ``timm://<model>.<tag>`` and ``hf://<user>/<repository>[/<file>]``. Addresses of the reference's
    bucket, which is dead, stand for the weights that were there. A file is checked against its
    hash, read as tensors only, converted to Detectron2's names and cached.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [catalog.RESNEST, catalog.TIMM, HUB, catalog.BUCKET]

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return False  # then checkpointers ask for the local path

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            return path.startswith(HUB) or bool(catalog.find(path))
        except InputError:
            return False

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(download(path) if path.startswith(HUB) else local_path(path, force))


def register_handlers() -> None:
    """Register the handler in Detectron2's PathManager; a second call does nothing."""
    PathManager.register_handler(WeightsHandler(), allow_override=True)


def local_path(name: str, force: bool = False) -> Path:
    """Return the converted file of published weights; fetch it if it is not cached, or forced.

    Raises:
        InputError: there are no weights of that name.
        FetchError: no source has a file of a ResNeSt, or the cache cannot be written.
    """
    entry = catalog.find(name)
    file = Path("resnest_d2", f"v{CACHE_VERSION}", f"{entry.name.replace('://', '/')}.pth")
    wanted = Path(os.path.expanduser(os.getenv("FVCORE_CACHE", "~/.torch/iopath_cache")))
    if (wanted / file).is_file() and not force:  # also where it can only be read
        return wanted / file
    folder = Path(get_cache_dir())  # another one if the wanted one cannot be written
    target = folder / file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(target)):
            if force or not target.is_file():
                _fetch(entry, target, folder / "resnest_d2")
    except InputError:
        raise
    except OSError as error:
        raise FetchError(
            f"cannot write weights to {folder}: {error.strerror or error}; $FVCORE_CACHE names "
            "another folder for the cache"
        ) from error
    return target


def _fetch(entry: Entry, target: Path, folder: Path) -> None:
    """Convert the first of an entry's sources whose file can be fetched and is of use.

    The mirror in ``$RESNEST_D2_MIRROR`` comes first, then the sources in their order.
    """
    names = list(dict.fromkeys(map(file_name, entry.sources)))
    mirror = os.path.expanduser(os.getenv(MIRROR_VARIABLE, "")).rstrip("/")
    reasons = []
    for source in (*(f"{mirror}/{name}" for name in names if mirror), *entry.sources):
        try:
            with TemporaryDirectory(dir=folder, prefix="download-") as temporary:
                checkpoint = _read(source, entry, Path(temporary))
        except (OSError, HTTPException, InputError) as error:
            reasons.append(f"{source} ({first_line(error)})")
            continue
        write_checkpoint(checkpoint, target)
        tried = f", after {'; '.join(reasons)}" if reasons else ""
        logger.info("%s from %s is now %s%s", entry.name, source, target, tried)
        return
    raise FetchError(
        f"cannot get {' or '.join(names)}: {'; '.join(reasons)}. Fetch it by other means and put "
        f"it into a folder that ${MIRROR_VARIABLE} names"
    )


def _read(source: str, entry: Entry, folder: Path) -> Checkpoint:
    """Read a source's file, check it, and give its tensors Detectron2's names."""
    if source.startswith(HUB):
        file = download(source)
    else:
        file = _download(source, folder) if "://" in source else Path(source)
    if not os.path.isfile(file):
        raise FetchError("there is no such file")
    checkpoint, digest = read_checkpoint(file, "it"), sha256(file)
    # The hub's cache has files by their SHA-256, and links to them.
    promised = _promised_hash(file.name) or _promised_hash(file.resolve().name)
    if not digest.startswith(promised):
        raise FetchError(f"wrong hash: SHA-256 starts with {digest[:8]}, not {promised}")
    converted = rename(checkpoint)
    if not promised:
        message = "%s has no hash to check it against; it was read as tensors only"
        logger.warning(message, source)
    facts = {"source": source, "sha256": digest, "verified": bool(promised)}
    return replace(converted, input_format=entry.input_format, source=facts)


def _download(url: str, folder: Path) -> Path:
    file = folder / (file_name(url) or "weights")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub sets none
    try:
        torch.hub.download_url_to_file(url, str(file))
    except ValueError as error:  # an address, or the length in an answer, that makes no sense
        raise FetchError(str(error)) from error
    finally:
        socket.setdefaulttimeout(before)
    return file


def _promised_hash(name: str) -> str:
    """The start of SHA-256 that a file's name promises; "" if it promises none."""
    match = re.search(r"(?<=-)[0-9a-f]{8,64}(?=\.\w+$)|^[0-9a-f]{64}$", name)
    return match[0] if match else ""
