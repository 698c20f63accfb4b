"""Small helpers for files."""

import errno
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


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
        OSError: the file cannot be written; the message names it.
    """
    temporary = _beside(target)
    with _naming(target):
        temporary.touch()
    try:
        yield temporary
        with _naming(target):
            _to_disk(temporary)
            os.replace(temporary, target)
            _to_disk(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold_folder(folder: Path, wait: float = 0) -> IO[str]:
    """Hold a folder for this process, so that no other one writes to it.

    The hold ends with the process, however that ends, or when the file that is returned is closed.
    Processes that are forked do not prolong it. File systems without locks hold nothing.

    Args:
        folder: made if it is not there.
        wait: seconds for a process that holds it to end.

    Raises:
        BlockingIOError: another process holds the folder; the message names both.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    stream = (folder / ".lock").open("a+")
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return stream  # a file system without locks
            if time.monotonic() < until:
                time.sleep(0.2)
                continue
            stream.seek(0)
            holder = stream.read() or "another process"
            stream.close()
            raise BlockingIOError(errno.EAGAIN, f"{holder} is working in it", str(folder)) from None
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}")
    stream.flush()
    return stream


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
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(target) as temporary, _naming(target):
        temporary.write_text(text, encoding="utf-8")
