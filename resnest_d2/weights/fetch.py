"""Weights by name: fetched, checked, converted and cached for Detectron2's PathManager."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import HTTPURLHandler, PathHandler, file_lock, get_cache_dir
from tqdm import tqdm

from ..config import InputError
from ..files import replacing, sha256, write_text
from . import catalog
from .catalog import HubFile, WebFile
from .convert import UnreadableError, describe_conversion
from .files import Checkpoint, describe_text, read_checkpoint, write_checkpoint
from .naming import network_of

logger = logging.getLogger(__name__)

Source = WebFile | HubFile | Path

# A folder, or the address of one, that is asked before all other sources.
MIRROR_VARIABLE = "RESNEST_D2_MIRROR"
# Seconds that a server may be silent.
TIMEOUT = 30.0
CHUNK = 1 << 20
# Version of the converted files; others in the cache are made anew.
CACHE_VERSION = 1


class FetchError(OSError):
    """No source provided the weights; the message lists each one's failure."""


class CacheError(FetchError):
    """The folder for weights cannot be written, whichever source they come from."""


class WeightsHandler(PathHandler):
    """Resolve a name of published weights to a local file that any Detectron2 trainer can load.

    Names are ``resnest://ImageNet/<variant>``, ``resnest://COCO/<zoo name>`` and
    ``timm://<model>.<tag>``. The addresses of the reference's bucket and of MMDetection's ResNeSt
    detectors stand for the weights that are, or were, there. The first source's file is checked
    against its hash, read as tensors only, converted to Detectron2's names and cached.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [catalog.RESNEST, catalog.TIMM, *catalog.NAMED_PLACES]

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return False  # then checkpointers ask for the local path

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            return bool(catalog.find(path))
        except InputError:
            return False

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            raise InputError(f"{path} is a name of published weights and cannot be written")
        return open(self._get_local_path(path), mode, buffering)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        entry = catalog.find(path)
        if entry is None:  # some other file at an address where weights are, too
            return HTTPURLHandler()._get_local_path(path, force=force, **kwargs)
        return str(local_path(entry, force))


def register_handlers() -> None:
    """Register the handler in Detectron2's PathManager; a second call does nothing."""
    PathManager.register_handler(WeightsHandler(), allow_override=True)


def local_path(entry: catalog.Entry, force: bool = False) -> Path:
    """Return the converted file of published weights; fetch it if it is not cached, or forced.

    Raises:
        FetchError: no source has a file of a ResNeSt, or the cache cannot be written.
    """
    wanted = os.path.expanduser(os.getenv("FVCORE_CACHE", "~/.torch/iopath_cache"))
    for cache in (wanted, get_cache_dir()):  # another folder if the wanted one cannot be written
        folder = Path(cache) / "resnest_d2"
        target = folder / f"{entry.name.replace('://', '/')}.pth"
        # Without the lock, which a folder that is only to be read could not hold.
        if not force and _is_current(target):
            break
    else:
        with _writing_to(folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(str(target)):
                if force or not _is_current(target):
                    _fetch(entry, target, folder)
    note = read_note(target)
    if not note["verified"]:
        message = "%s came from %s without a hash to check it against; it was read as tensors only"
        logger.warning(message, entry.name, note["source"])
    return target


def fetch_address(address: str) -> str:
    """Return a local copy of the file of weights at an address, which is fetched as it stands.

    It is cached by the whole address, for with another host or query it may be another file.

    Raises:
        FetchError: the file cannot be fetched or is no file of weights, or the cache cannot be
            written.
    """
    name = Path(urlparse(address).path).name or "weights"
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    target = Path(get_cache_dir()) / "resnest_d2" / "addresses" / key / name
    if target.is_file():
        return str(target)
    with _writing_to(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(target)):
            if not target.is_file():
                _fetch_to(target, address)
    return str(target)


def _fetch_to(target: Path, address: str) -> None:
    with replacing(target) as temporary, temporary.open("wb", buffering=0) as file:
        try:
            _download(address, file)
        except CacheError:
            raise
        except (OSError, HTTPException) as error:
            raise FetchError(f"cannot get {address}: {_reason(error)}") from error
        if problem := hash_problem(temporary, ""):
            raise FetchError(f"cannot get {address}: {problem}")


def read_note(path: str | Path) -> dict[str, Any]:
    """Return what was noted of a cached file's source, sha256 and verified; {} if nothing was."""
    try:
        content = json.loads(Path(path).with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_current(target: Path) -> bool:
    note = read_note(target)
    made = (note.get("version"), note.get("bytes"))
    return target.is_file() and made == (CACHE_VERSION, target.stat().st_size)


def _convert(entry: catalog.Entry, target: Path, file: Path, source: dict[str, Any]) -> None:
    """Convert a file that was fetched, and note where it came from."""
    content = read_checkpoint(file, name="it")
    conversion = describe_conversion(content)
    if not source["verified"]:
        _check_network(entry.name, conversion.weights)
    checkpoint = Checkpoint.of(content, conversion)
    checkpoint = replace(checkpoint, input_format=entry.input_format, source=source)
    note = target.with_suffix(".json")
    with _writing_to(target.parent):
        note.unlink(missing_ok=True)
        write_checkpoint(checkpoint, target)
        text = {**source, "bytes": target.stat().st_size, "version": CACHE_VERSION}
        write_text(note, json.dumps(text, indent=1) + "\n")
    logger.info("%s from %s is now %s", entry.name, source["source"], target)


def _check_network(name: str, weights: Iterable[str]) -> None:
    """Refuse weights of another depth than their name says, for which no hash vouches."""
    said = re.search(r"(resnest|resnet)(\d+)", name.rpartition("://")[2])
    expected = f"{'ResNeSt' if said[1] == 'resnest' else 'ResNet'}-{said[2]}" if said else ""
    found = network_of(weights)
    if said and found and str(found) != expected:
        raise UnreadableError(f"it is of a {found}, not of a {expected}")


def _fetch(entry: catalog.Entry, target: Path, folder: Path) -> None:
    """Convert the first of an entry's sources whose file can be fetched and is of use.

    The mirror in ``$RESNEST_D2_MIRROR`` comes first, then a file that lies in ``folder``, then the
    sources in their order. Only errors of the web or the disk and an UnreadableError, that is a
    file of no use, lead to the next source; a defect in the conversion surfaces.

    Raises:
        FetchError: no source provides its file, or the cache cannot be written.
    """
    names = list(dict.fromkeys(source.mirrored for source in entry.sources))
    reasons = []
    for source in (*_mirrors(names, folder), *entry.sources):
        with NamedTemporaryFile(dir=folder, prefix="download-", buffering=0) as download:
            try:
                file = _file_of(source, download)
                _convert(entry, target, file, _check_hash(file, source))
            except CacheError:
                raise
            except (OSError, HTTPException, UnreadableError) as error:
                reasons.append(f"{source} ({_reason(error)})")
                continue
        if reasons:
            logger.info("%s was taken, after %s", source, "; ".join(reasons))
        return
    raise FetchError(
        f"cannot get {' or '.join(names)}: {'; '.join(reasons)}. Fetch it by other means and save "
        f"it as {folder / names[0]}, or put it into a folder that ${MIRROR_VARIABLE} names"
    )


def _mirrors(names: Iterable[str], folder: Path) -> Iterator[Source]:
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    if "://" in mirror:
        yield from (WebFile(f"{mirror.rstrip('/')}/{name}") for name in names)
    elif mirror:
        yield from (Path(os.path.expanduser(mirror)) / name for name in names)
    yield from (folder / name for name in names if (folder / name).is_file())


def _file_of(source: Source, download: IO[bytes]) -> Path:
    """Return a source's local file, which is ``download`` if it comes from the web."""
    if isinstance(source, WebFile):
        _download(source.url, download)
        return Path(download.name)
    if isinstance(source, HubFile):
        return _from_hub(source)
    if not source.is_file():
        raise FetchError("there is no such file")
    return source


def _download(url: str, file: IO[bytes]) -> None:
    folder = Path(file.name).parent
    try:
        response = urlopen(Request(url, headers={"User-Agent": "resnest_d2"}), timeout=TIMEOUT)
        length = int(response.headers.get("Content-Length") or 0)
    except ValueError as error:  # the address or the header makes no sense
        raise FetchError(_reason(error)) from error
    with response:
        free = shutil.disk_usage(folder).free
        if length > free:
            raise FetchError(
                f"it takes {length} bytes, and {free} are free in {folder}; $FVCORE_CACHE names "
                "another folder"
            )
        name = urlparse(url).path.rpartition("/")[2]
        with tqdm.wrapattr(response, "read", length or None, desc=name) as body:
            while chunk := body.read(CHUNK):
                with _writing_to(folder):
                    file.write(chunk)
    if length and file.tell() != length:
        raise FetchError(f"cut off after {file.tell()} of {length} bytes")


def _from_hub(source: HubFile) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise FetchError("needs huggingface_hub: pip install 'resnest_d2[hub]'") from None
    try:
        return Path(hf_hub_download(source.repository, source.filename))
    except Exception as error:  # its HTTP client and its accelerators raise types of their own
        raise FetchError(_reason(error)) from error


def _check_hash(file: Path, source: Source) -> dict[str, Any]:
    """Refuse a file with another hash than promised; return what is noted of it."""
    # The hub's cache keeps large files under their SHA-256.
    name = file.resolve().name if isinstance(source, HubFile) else str(source)
    actual = sha256(file)
    problem = hash_problem(file, name, actual)
    if problem:
        if isinstance(source, HubFile):
            file.resolve().unlink()  # else it stands in the way of a good one
        raise FetchError(problem)
    return {"source": str(source), "sha256": actual, "verified": bool(promised_hash(name))}


def promised_hash(name: str) -> str:
    """Return the start of SHA-256 that a file's name promises; "" if it promises none."""
    match = re.search(r"(?<=-)[0-9a-f]{8,64}(?=\.\w+$)|^[0-9a-f]{64}$", name)
    return match[0] if match else ""


def hash_problem(file: Path, name: str, actual: str = "") -> str | None:
    """Say why a file, whose SHA-256 may be known, is not what its published name promises."""
    with file.open("rb") as stream:
        text = describe_text(stream.read(512))
    if text:
        return f"it is {text}"
    if promised := promised_hash(name):
        actual = actual or sha256(file)
    is_right = actual.startswith(promised)
    return None if is_right else f"wrong hash: SHA-256 starts with {actual[:8]}, not {promised}"


def _reason(error: Exception) -> str:
    """Tell an error in a few words, without the address."""
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, URLError):
        return str(getattr(error.reason, "strerror", None) or error.reason)
    if isinstance(error, TimeoutError):
        return f"silent for {TIMEOUT:g} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into a CacheError that tells how to choose another folder."""
    try:
        yield
    except FetchError:
        raise
    except OSError as error:
        raise CacheError(
            f"cannot write weights to {folder}: {error.strerror or error}; $FVCORE_CACHE names "
            "another folder for the cache"
        ) from error
