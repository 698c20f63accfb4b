"""The wheel in an environment of its own: its files, and its dependencies without this one's."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

import pytest
from commands import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow


def call(*command: object, **options) -> subprocess.CompletedProcess:
    """Run a command to its end, whatever that is."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools would put what an earlier build left in build/ into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("resnest_d2", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("setup.py", "pyproject.toml", "resnest_d2_cli.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    result = call(*pip, *options, folder / "source", cwd=folder)
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("resnest_d2-*.whl")
    return built


def test_configs_travel_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.*") if p.suffix != ".pyc"}
    assert {name for name in packed if name.startswith("resnest_d2/configs/")} == {
        f"resnest_d2/{file}" for file in files
    }
    package = (p for p in (ROOT / "resnest_d2").rglob("*") if p.is_file() and p.suffix != ".pyc")
    assert {str(p.relative_to(ROOT)) for p in package} <= packed


def declared(requirement: str, found: dict[str, Distribution]) -> None:
    """Collect the installed distribution of a requirement, and of all that it asks for."""
    wanted = Requirement(requirement)
    if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
        return
    name = canonicalize_name(wanted.name)
    if name in found:
        return
    found[name] = distribution(name)
    assert found[name].version in wanted.specifier or name == "numpy", requirement
    for needed in found[name].requires or ():
        declared(needed, found)


@pytest.fixture
def alone(wheel, tmp_path) -> Path:
    """A virtual environment of the wheel, Detectron2's Python and what the wheel declares.

    All but the wheel are links to what is installed here: PyTorch's copy would take 6 GB.
    """
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    result = call(*pip, "--python", folder, "install", "--no-deps", "--no-index", wheel)
    assert result.returncode == 0, result.stderr

    found: dict[str, Distribution] = {}
    (package,) = site.glob("resnest_d2-*.dist-info")
    for needed in Distribution.at(package).requires:
        declared(needed, found)
    (detectron2,) = set(packages_distributions()["detectron2"])
    found["detectron2"] = distribution(detectron2)
    for files in (one.files for one in found.values()):
        for name in {path.parts[0] for path in files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(files[0].locate().parents[len(files[0].parts) - 1] / name)
    return folder


def test_the_declared_dependencies_are_enough(alone, tiny_digits, tmp_path):
    """The wheel and Detectron2's Python, and nothing else: the command helps and trains."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"DETECTRON2_DATASETS": str(tiny_digits)}
    options = {"cwd": tmp_path, "env": environment}
    command = alone / "bin/resnest-d2"
    result = call(command, "--help", **options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: resnest-d2 COMMAND")
    (config,) = alone.glob("lib/*/site-packages/resnest_d2/configs/mask_resnest14_digits.yaml")
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu"]
    result = call(command, "train", "--config-file", config, "OUTPUT_DIR", "out", *opts, **options)
    assert result.returncode == 0, result.stderr
    assert "iter 1  box " in result.stdout
    assert (tmp_path / "out/model_final.pth").is_file()
    # Else the environment would prove nothing: timm comes with nobody.
    result = call(alone / "bin/python", "-I", "-c", "import resnest_d2; import timm", **options)
    assert result.stderr.endswith("ModuleNotFoundError: No module named 'timm'\n"), result.stderr
