"""Fetching published files: from a mirror, the web and the Hugging Face hub, whole and checked."""

import hashlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from ..files import replacing, sha256
from .catalog import HubFile, WebFile
from .reading import what_text_is_it

logger = logging.getLogger(__name__)

# A folder, or the address of one, that is asked before all other sources.
MIRROR_VARIABLE = "RESNEST_D2_MIRROR"
# Seconds that a server may be silent.
TIMEOUT = 30.0
CHUNK = 1 << 20

Result = TypeVar("Result")


class FetchError(OSError):
    """Weights cannot be had; the message says all there is to say."""


class CacheError(FetchError):
    """The folder for weights cannot be written, whatever they come from."""


class SourceError(FetchError):
    """A source does not give a file; the next one may."""


@dataclass(frozen=True)
class Fetched:
    """A file that came from somewhere."""

    path: Path
    source: str
    """Address or path that it came from."""
    sha256: str
    is_verified: bool
    """Whether the hash is one that its name or the hub promises."""
    is_temporary: bool
    """Whether it was downloaded into the folder for weights, not found in somebody's."""


def promised_hash(name: str) -> str:
    """The start of SHA-256 that a file's name promises; "" if it promises none."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return match.group(1) if match else ""


def hash_problem(file: Path, name: str) -> str | None:
    """Why a file is not the one that the hash in ``name`` promises, or None."""
    return _problem(file, sha256(file), promised_hash(name))


def _problem(file: Path, actual: str, promised: str) -> str | None:
    with file.open("rb") as stream:
        text = what_text_is_it(stream.read(512))
    if text:
        return f"it is {text}"
    if not actual.startswith(promised):
        return f"wrong hash: SHA-256 starts with {actual[:8]}, not {promised}"
    return None


def fetch(
    sources: Sequence[WebFile | HubFile], folder: Path, use: Callable[[Fetched], Result]
) -> Result:
    """Use the first of several files that can be had and used.

    What ``$RESNEST_D2_MIRROR`` names comes first, then a file that lies in ``folder``, then the
    sources in their order.

    Args:
        sources: where the same weights are.
        folder: an existing folder for downloads.
        use: what to do with the file; a ValueError of it means that the file is no use.

    Returns:
        what ``use`` returns.

    Raises:
        FetchError: no source gives its file, with a reason for each; or the folder cannot be
            written.
    """
    reasons = []
    for label, attempt in _attempts(sources, folder):
        try:
            fetched = attempt()
            try:
                result = use(fetched)
            finally:
                if fetched.is_temporary:
                    fetched.path.unlink(missing_ok=True)
        except CacheError:
            raise
        except Exception as error:  # of servers, disks, mirrors and files there is no end of kinds
            reasons.append(f"{label} ({_reason(error)})")
            continue
        if reasons:
            logger.info("%s was taken, after %s", fetched.source, "; ".join(reasons))
        return result
    names = " or ".join(dict.fromkeys(source.mirrored for source in sources))
    raise FetchError(
        f"cannot get {names}: {'; '.join(reasons)}. Fetch it by other means and save it as "
        f"{folder / sources[0].mirrored}, or put it into a folder that ${MIRROR_VARIABLE} names"
    )


Attempt = tuple[str, Callable[[], Fetched]]


def _attempts(sources: Sequence[WebFile | HubFile], folder: Path) -> Iterator[Attempt]:
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    places = {source.mirrored: promised_hash(source.mirrored) for source in sources}
    for place, promised in places.items():
        if "://" in mirror:
            url = f"{mirror.rstrip('/')}/{place}"
            yield url, partial(_download, url, folder, promised)
        elif mirror:
            path = Path(os.path.expanduser(mirror)) / place
            yield str(path), partial(_local, path, promised)
    for place, promised in places.items():
        path = folder / place
        if path.is_file():
            yield str(path), partial(_local, path, promised)
    for source in sources:
        if isinstance(source, HubFile):
            yield str(source), partial(_from_hub, source)
        else:
            promised = promised_hash(source.mirrored)
            yield source.url, partial(_download, source.url, folder, promised)


def _reason(error: Exception) -> str:
    """In a few words, without the address."""
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, URLError):
        return str(getattr(error.reason, "strerror", None) or error.reason)
    if isinstance(error, TimeoutError):
        return f"silent for {TIMEOUT:g} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _local(path: Path, promised: str) -> Fetched:
    if not path.is_file():
        raise SourceError("there is no such file")
    actual = sha256(path)
    _require(path, actual, promised)
    return Fetched(path, str(path), actual, bool(promised), is_temporary=False)


def _require(path: Path, actual: str, promised: str) -> None:
    problem = _problem(path, actual, promised)
    if problem:
        raise SourceError(problem)


def _download(url: str, folder: Path, promised: str) -> Fetched:
    """Download into the folder; a file that is not whole or not the promised one leaves nothing."""
    target = folder / f"download-{uuid.uuid4().hex}"
    digest = hashlib.sha256()
    request = Request(url, headers={"User-Agent": "resnest_d2"})
    with urlopen(request, timeout=TIMEOUT) as response, replacing(target) as temporary:
        length = int(response.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(folder).free
        if length > free:
            raise SourceError(
                f"it takes {length} bytes, and {free} are free in {folder}; $FVCORE_CACHE names "
                "another folder"
            )
        received = 0
        with (
            temporary.open("wb", buffering=0) as stream,
            tqdm(
                desc=url.rpartition("/")[2], total=length or None, unit="B", unit_scale=True
            ) as bar,
        ):
            while chunk := response.read(CHUNK):
                with writing_to(folder):
                    stream.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        if length and received != length:
            raise SourceError(f"cut off after {received} of {length} bytes")
        _require(temporary, digest.hexdigest(), promised)
    return Fetched(target, url, digest.hexdigest(), bool(promised), is_temporary=True)


def _from_hub(file: HubFile) -> Fetched:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise SourceError(
            "needs huggingface_hub: pip install huggingface_hub safetensors"
        ) from None
    path = Path(hf_hub_download(file.repository, file.filename))
    # The hub's cache keeps large files under the SHA-256 that the hub has for them.
    promised = path.resolve().name
    promised = promised if re.fullmatch(r"[0-9a-f]{64}", promised) else ""
    actual = sha256(path)
    problem = _problem(path, actual, promised)
    if problem:
        path.resolve().unlink()  # else it stands in the way of a good one
        raise SourceError(problem)
    return Fetched(path, str(file), actual, bool(promised), is_temporary=False)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Errors of the disk as a CacheError that names the folder and how to choose another."""
    try:
        yield
    except FetchError:
        raise
    except OSError as error:
        raise CacheError(
            f"cannot write weights to {folder}: {error.strerror or error}; $FVCORE_CACHE names "
            "another folder for the cache"
        ) from error
