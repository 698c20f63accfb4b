"""Folders that one process holds, and text files."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from resnest_d2.files import hold_folder


def hold_and_fork(folder, ready):
    """Hold a folder, fork a process that lives on, and wait to be killed."""
    stream = hold_folder(folder)
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    ready.set()
    time.sleep(60)
    stream.close()


def test_a_hold_dies_with_its_process(tmp_path):
    folder = tmp_path / "out" / "put"
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=hold_and_fork, args=(folder, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(
        BlockingIOError, match=rf"process {process.pid} on .* is working in it.*put"
    ):
        hold_folder(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with hold_folder(folder):  # although the process that was forked lives
        pass
    hold_folder(folder).close()


def test_text_is_utf_8_in_every_locale(tmp_path):
    code = "from resnest_d2.files import write_text as w, Path; w(Path('a.html'), '\\u732b')"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, **locale})
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "\u732b"
