"""Fetching published files: from a mirror, the web and the Hugging Face hub, whole and checked."""

import errno
import hashlib
import logging
import os
import re
import shutil
import ssl
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
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


class FetchError(OSError):
    """Weights cannot be had; the message says all there is to say."""


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


def fetch(sources: Sequence[WebFile | HubFile], folder: Path) -> Fetched:
    """The first of several files that can be had.

    What ``$RESNEST_D2_MIRROR`` names comes first, then a file that lies in ``folder``, then the
    sources in their order.

    Args:
        sources: where the same weights are.
        folder: an existing folder for downloads.

    Raises:
        FetchError: no source gives its file, with a reason for each; or the folder cannot be
            written.
    """
    reasons = []
    for attempt in _attempts(sources, folder):
        try:
            fetched = attempt()
        except SourceError as error:
            reasons.append(str(error))
            continue
        if reasons:
            logger.info("%s was taken, after %s", fetched.source, "; ".join(reasons))
        return fetched
    names = " or ".join(dict.fromkeys(source.mirrored for source in sources))
    raise FetchError(
        f"cannot get {names}: {'; '.join(reasons)}. Fetch it by other means and save it as "
        f"{folder / sources[0].mirrored}, or put it into a folder that ${MIRROR_VARIABLE} names"
    )


def _attempts(sources: Sequence[WebFile | HubFile], folder: Path) -> Iterator:
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    places = {source.mirrored: promised_hash(source.mirrored) for source in sources}
    for place, promised in places.items():
        if "://" in mirror:
            url = f"{mirror.rstrip('/')}/{place}"
            yield lambda url=url, promised=promised: _download(url, folder, promised)
        elif mirror:
            path = Path(mirror).expanduser() / place
            yield lambda path=path, promised=promised: _local(path, promised)
    for place, promised in places.items():
        if (folder / place).is_file():
            path = folder / place
            yield lambda path=path, promised=promised: _local(path, promised)
    for source in sources:
        if isinstance(source, HubFile):
            yield lambda source=source: _from_hub(source)
        else:
            promised = promised_hash(source.mirrored)
            yield lambda url=source.url, promised=promised: _download(url, folder, promised)


def _local(path: Path, promised: str) -> Fetched:
    if not path.is_file():
        raise SourceError(f"{path} (there is no such file)")
    try:
        actual = sha256(path)
        problem = _problem(path, actual, promised)
    except OSError as error:
        raise SourceError(f"{path} ({error.strerror or error})") from error
    if problem:
        raise SourceError(f"{path} ({problem})")
    return Fetched(path, str(path), actual, bool(promised), is_temporary=False)


def _download(url: str, folder: Path, promised: str) -> Fetched:
    """Download into the folder; a file that is not whole or not the promised one leaves nothing."""
    target = folder / f"download-{uuid.uuid4().hex}"
    digest = hashlib.sha256()
    with writing_to(folder), _reading_from(url):
        request = Request(url, headers={"User-Agent": "resnest_d2"})
        with urlopen(request, timeout=TIMEOUT) as response, replacing(target) as temporary:
            length = int(response.headers.get("Content-Length") or 0)
            if length > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, it takes {length} bytes")
            received = 0
            name = url.rpartition("/")[2]
            with (
                temporary.open("wb") as stream,
                tqdm(desc=name, total=length or None, unit="B", unit_scale=True) as bar,
            ):
                while chunk := response.read(CHUNK):
                    stream.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
            if length and received != length:
                raise SourceError(f"cut off after {received} of {length} bytes")
            problem = _problem(temporary, digest.hexdigest(), promised)
            if problem:
                raise SourceError(problem)
    return Fetched(target, url, digest.hexdigest(), bool(promised), is_temporary=True)


def _from_hub(file: HubFile) -> Fetched:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise SourceError(
            f"{file} (needs huggingface_hub: pip install huggingface_hub safetensors)"
        ) from None
    try:
        path = Path(hf_hub_download(file.repository, file.filename))
    except Exception as error:  # its own kinds, those of its HTTP library, and its disk's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"{file} ({reason})") from error
    # The hub's cache keeps large files under the SHA-256 that the hub has for them.
    promised = path.resolve().name
    promised = promised if re.fullmatch(r"[0-9a-f]{64}", promised) else ""
    actual = sha256(path)
    problem = _problem(path, actual, promised)
    if problem:
        path.resolve().unlink()  # else it stands in the way of a good one
        raise SourceError(f"{file} ({problem})")
    return Fetched(path, str(file), actual, bool(promised), is_temporary=False)


@contextmanager
def _reading_from(url: str) -> Iterator[None]:
    """Errors of a server or the way to it as a SourceError that names the address."""
    try:
        yield
    except SourceError as error:
        raise SourceError(f"{url} ({error})" if url not in str(error) else str(error)) from error
    except HTTPError as error:
        raise SourceError(f"{url} (HTTP {error.code} {error.reason})") from error
    except URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise SourceError(f"{url} ({reason})") from error
    except TimeoutError as error:
        raise SourceError(f"{url} (silent for {TIMEOUT:g} seconds)") from error
    except (HTTPException, ConnectionError, ssl.SSLError) as error:
        raise SourceError(f"{url} ({error or type(error).__name__})") from error


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Errors of the disk as a FetchError that names the folder and how to choose another."""
    try:
        yield
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(
            f"cannot write weights to {folder}: {error.strerror or error}; $FVCORE_CACHE names "
            "another folder for the cache"
        ) from error
