"""Commands and Python code as a user runs them, in processes that need not import PyTorch first."""

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
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
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
    return _run_in_process([ROOT / "tools" / tool, *args], None, cwd, environment)


def run_example(
    example: str, *args: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Exit code and output of ``examples/<example>``."""
    return _run_in_process([ROOT / "examples" / example, *args], None, cwd, environment)


def run_command(
    command: str, *args: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Exit code and output of ``resnest-d2 <command>``."""
    code = "import sys, resnest_d2_cli; sys.exit(resnest_d2_cli.main())"
    return _run_in_process(["resnest-d2", command, *args], code, cwd, environment)


def run_python(
    code: str, *args: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Exit code and output of ``python -c <code>``, in which PyTorch is imported already."""
    return _run_in_process(["-c", *args], code, cwd, environment)


def _run_in_process(
    argv: list[object], code: str | None, cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [str(arg) for arg in argv]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        process = context.Process(
            target=_run, args=(command, code, str(cwd), {**os.environ, **environment}, files)
        )
        process.start()
        process.join()
        return subprocess.CompletedProcess(
            command, process.exitcode, *(file.read_text() for file in files)
        )


def _run(
    argv: list[str], code: str | None, cwd: str, environment: dict[str, str], files: list[Path]
) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = argv
    sys.path[0:0] = [str(ROOT / "tools")]
    try:
        if code is None:
            runpy.run_path(argv[0], run_name="__main__")
        else:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out; Detectron2 closes its log there
