"""The tools as a user runs them, in processes that need not import PyTorch first."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A server with the slow imports forks a process for each command. detectron2.data is none of them:
# it reads DETECTRON2_DATASETS when it is imported, and so must every command by itself.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "torchvision",
        "fvcore.nn",
        "detectron2.layers",
        "matplotlib.pyplot",
        "pycocotools.mask",
    ]
)


def run_tool(
    tool: str, *args: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Exit code and output of ``tools/<tool>`` with these arguments and environment variables."""
    command = [str(ROOT / "tools" / tool), *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _context.Process(
            target=_run, args=(command, str(cwd), {**os.environ, **environment}, files)
        )
        process.start()
        process.join()
        return subprocess.CompletedProcess(
            command, process.exitcode, *(file.read_text() for file in files)
        )


def _run(command: list[str], cwd: str, environment: dict[str, str], files: list[Path]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = command
    sys.path[0:0] = [str(ROOT / "tools")]
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out; Detectron2 closes its log there
