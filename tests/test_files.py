"""Folders that one training holds, and files that are whole or not there."""

import multiprocessing
import os
import signal
import time

import pytest

from resnest_d2.config import FileError
from resnest_d2.files import check_writable, hold_folder, make_folder, replacing, write_text


def hold_and_fork(folder, ready):
    """Hold a folder, fork a process that lives on for a while, and wait to be killed."""
    stream = hold_folder(folder)
    if os.fork() == 0:
        time.sleep(1)
        os._exit(0)
    ready.set()
    time.sleep(60)
    stream.close()


def test_a_hold_ends_with_its_process(tmp_path):
    folder = tmp_path / "out" / "put"
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=hold_and_fork, args=(folder, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(FileError, match=f"^another training writes to {folder}$"):
        hold_folder(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    hold_folder(folder, wait=20).close()  # its loaders, too, have ended by then


def test_a_hold_stays_although_the_process_asks_again(tmp_path):
    """And closes the file of its second try, with which a POSIX lock would be gone."""
    with hold_folder(tmp_path):
        for _ in range(2):
            with pytest.raises(FileError, match="another training writes to"):
                hold_folder(tmp_path)
    hold_folder(tmp_path).close()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(KeyError, match="half"), replacing(target) as temporary:
        {}[temporary.write_text("half") and "half"]
    assert target.read_text() == "old"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for action in (check_writable, lambda target: write_text(target, "")):
        with pytest.raises(FileError, match=f"cannot write {tmp_path}/absent/x: "):
            action(tmp_path / "absent/x")
        with pytest.raises(FileError, match=f"cannot write {tmp_path}: "):
            action(tmp_path)
    with pytest.raises(FileError, match="cannot write .*xxx: File name too long"):
        write_text(tmp_path / ("x" * 300), "")
    for action in (make_folder, hold_folder):
        with pytest.raises(FileError, match=f"cannot make the folder {tmp_path}/file/x: Not a"):
            action(tmp_path / "file/x")
    check_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()
