"""The wheel in an environment of its own: its files, and its dependencies without this one's."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from commands import ROOT

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
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    result = call(*pip, *options, folder / "source", cwd=folder)
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("resnest_d2-*.whl")
    return built


def test_configs_travel_in_the_wheel(wheel, tmp_path):
    """Unpack the wheel elsewhere and ask for a config from another folder."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {n for n in archive.namelist() if n.startswith("resnest_d2/configs/")}
        archive.extractall(tmp_path)
    files = (p for p in (ROOT / "configs").rglob("*") if p.suffix in (".yaml", ".py"))
    assert packed == {f"resnest_d2/{p.relative_to(ROOT)}" for p in files}
    code = (
        "from resnest_d2 import model_zoo as z; print(z.get_config_file('cascade_resnest101'));"
        "print(z.get_config('baselines/mask_resnet101').MODEL.RESNETS.DEPTH);"
        "print(z.get_config('lazy/cascade_resnest101').model.backbone.bottom_up.depth)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = call(sys.executable, "-c", code, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    path, *depths = result.stdout.splitlines()
    assert Path(path) == tmp_path / "resnest_d2/configs/cascade_resnest101.yaml"
    assert depths == ["101", "101"]


@pytest.fixture
def empty(tmp_path):
    """A virtual environment with nothing but pip, which is removed: with PyTorch it is large."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    yield folder
    shutil.rmtree(folder)


def lines_for_detectron2(environment: Path) -> list[str]:
    """What ``make setup`` would do for Detectron2's Python, without what Detectron2 asks for."""
    result = call("make", "--dry-run", f"VENV={environment}", "DETECTRON2=", "setup", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.replace("\\\n", " ").splitlines()
    found = [line for line in lines if "--require-hashes" in line or "detectron2/_C" in line]
    assert len(found) == 2, result.stdout
    return found


def test_the_declared_dependencies_are_enough(wheel, empty, tiny_digits, tmp_path):
    """The wheel and Detectron2's Python, and nothing else: the command helps and trains."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"DETECTRON2_DATASETS": str(tiny_digits), "PIP_RETRIES": "1"}
    options = {"cwd": tmp_path, "env": environment}
    for line in lines_for_detectron2(empty):  # first, since it tells soon if there is no index
        result = call("sh", "-c", line, cwd=ROOT, env=environment)
        if result.returncode:
            pytest.skip(f"no package index: {result.stderr.strip().splitlines()[-1]}")
    pip = [empty / "bin/python", "-m", "pip", "install", "--quiet", "--constraint"]
    result = call(*pip, ROOT / "requirements/constraints.txt", wheel, **options)
    assert result.returncode == 0, result.stderr

    command = empty / "bin/resnest-d2"
    result = call(command, "--help", **options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: resnest-d2 COMMAND")
    configs = empty / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu"]
    result = call(
        *(command, "train", "--config-file"),
        *(configs / "resnest_d2/configs/mask_resnest14_digits.yaml", "OUTPUT_DIR", "out", *opts),
        **options,
    )
    assert result.returncode == 0, result.stderr
    assert "Evaluation results for digits_val in csv format" in result.stdout
    assert (tmp_path / "out/model_final.pth").is_file()
