"""Small helpers for files."""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``target`` when the block ends without an error.

    Whatever happens, ``target`` is the old file or the new one, never half of it. The temporary
    file is there, empty and with the permissions of any new file.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    temporary = _beside(target)
    with _naming(target):
        temporary.touch()
    try:
        yield temporary
        with _naming(target):
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(target: Path) -> None:
    """See that a file can be written, before the work whose result it is to hold; it is not made.

    Raises:
        OSError: it cannot; the message names it.
    """
    with _naming(target):
        if target.is_dir():
            raise OSError(errno.EISDIR, "it is a folder")
        temporary = _beside(target)
        temporary.touch()
        temporary.unlink()


def _beside(target: Path) -> Path:
    # Not tempfile's, which only this user may read: caches are shared.
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Errors name the file that is wanted, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write {target}: {error.strerror}") from error


def write_text(target: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(target) as temporary:
        temporary.write_text(text)
