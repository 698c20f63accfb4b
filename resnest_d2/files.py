"""Files that are whole or not there, and folders that one process works in."""

import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .config import FileError, InputError

try:
    from detectron2.utils.file_io import PathManager
except ModuleNotFoundError:  # Detectron2 0.2 has fvcore's
    from fvcore.common.file_io import PathManager  # noqa: F401


# Git leaves such a text in place of a large file that was not fetched.
LFS_POINTER = b"version https://git-lfs"
IS_POINTER = "a pointer of Git LFS in place of the file; `git lfs pull` fetches it"


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

    Whatever happens, to the machine too, ``target`` is the old file or the new one, never half of
    it. The temporary file is there, empty and with the permissions of any new file.

    Raises:
        FileError: the file cannot be written; the message names it.
    """
    # Not tempfile's, which only this user may read: caches are shared.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.touch()
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, target)
        _to_disk(target.parent)
    except InputError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is in its place, or could not be made
            temporary.unlink()


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(target: Path, text: str) -> None:
    """Write a text file in UTF-8, as :func:`replacing` does."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(target: Path) -> None:
    """See that a file can be written, before the work whose result it is to hold; it is not made.

    Raises:
        FileError: it cannot; the message names it.
    """
    if os.path.isdir(target):  # pathlib's raises where a name is too long
        raise FileError(f"cannot write {target}: it is a folder")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        is_there = os.path.isdir(target.parent)
        reason = "its folder cannot be written" if is_there else "there is no such folder"
        raise FileError(f"cannot write {target}: {reason}")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, if it is not there; a FileError says why it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {folder}: {error.strerror}") from error


def hold_folder(folder: Path, wait: float = 0) -> IO[str]:
    """Hold a folder, so that no other training writes to it, in this process neither.

    The hold ends when the file that is returned is closed, or with the process. File systems
    without locks hold nothing.

    Args:
        folder: made if it is not there.
        wait: seconds for another one to end.

    Raises:
        FileError: another one holds the folder, or it cannot be written.
    """
    make_folder(folder)
    try:
        stream = (folder / ".lock").open("a")
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror}") from error
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return stream
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return stream  # a file system without locks
            if time.monotonic() > until:
                stream.close()
                raise FileError(f"another training writes to {folder}") from None
            time.sleep(0.2)
