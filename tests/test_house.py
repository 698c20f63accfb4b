"""The package's structure: which part may import which, and what importing it takes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import resnest_d2
import resnest_d2_cli

PACKAGE = Path(resnest_d2.__file__).parent
# Each floor may import those below it.
FLOORS = [
    {"commands"},
    {"engine", "inference"},
    {"export"},
    {"evaluation", "optimize", "weights", "data"},
    {"model_zoo"},
    {"modeling"},
    {"files"},
    {"config"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(file: Path) -> set[str]:
    """The parts of the package that a module imports while it is imported itself."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level] if node.level else ()
            module = [*base, *(node.module or "").split(".")]
            names = [alias.name for alias in node.names] if module[-1] == "" else []
            paths = [[*module[:-1], name] for name in names] or [module]
            found |= {path[1] for path in paths if path[0] == "resnest_d2" and len(path) > 1}
    return found - {"__version__"}


@pytest.mark.parametrize("part", sorted(FLOOR))
def test_imports_run_down(part):
    files = list((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]
    for file in files:
        above = {n for n in imports(file) if FLOOR[n] <= FLOOR[part]} - {part}
        # Parts of one floor may know each other one way.
        assert above <= {"evaluation": {"data"}}.get(part, set()), file


def run_afresh(code: str) -> subprocess.CompletedProcess:
    """In a process that has imported nothing yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cv2", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
BUILD = """
import torch, detectron2.modeling
before = set(sys.modules)  # torchvision itself loads a part of Inductor
import resnest_d2
added = set(sys.modules) - before
assert not [m for m in added if m.startswith(("cv2", "matplotlib", "torch._inductor"))]
model = resnest_d2.make_resnest(14, out_features=["res5"]).eval()
assert model(torch.rand(1, 3, 64, 64))["res5"].shape == (1, 2048, 2, 2)
print("built")
"""


def test_importing_and_building_need_no_extra():
    result = run_afresh(BLOCK + BUILD)
    assert result.stdout.strip() == "built", result.stderr


def test_a_detectron2_that_is_broken_is_not_called_missing(tmp_path):
    (tmp_path / "detectron2.py").write_text("import no_such_package_at_all\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import resnest_d2"
    last = run_afresh(code).stderr.strip().splitlines()[-1]
    assert last == "ModuleNotFoundError: No module named 'no_such_package_at_all'"


def test_public_names_are_there_and_nothing_else():
    for name in resnest_d2.__all__:
        assert getattr(resnest_d2, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        resnest_d2.Predicter  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "reproduce"),
        ([], 2, "usage: resnest-d2"),
        (["tran"], 2, "no command 'tran'; did you mean train?"),
        (["train", "--help"], 0, "usage: resnest-d2 train"),
    ],
)
def test_the_console_script(arguments, code, text, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["resnest-d2"])
    try:
        result = resnest_d2_cli.main(arguments)
    except SystemExit as end:  # argparse's
        result = end.code
    assert result == code
    assert text in "".join(capsys.readouterr())


def test_help_waits_for_nothing():
    code = "import sys, resnest_d2_cli; resnest_d2_cli.main(['--help']); print(*sys.modules)"
    loaded = run_afresh(code).stdout.split()
    assert "resnest_d2_cli" in loaded
    assert not {"torch", "detectron2", "numpy", "resnest_d2"} & set(loaded)


def test_every_command_has_a_module():
    modules = {path.stem for path in (PACKAGE / "commands").glob("[a-z]*.py")}
    assert {name.replace("-", "_") for name in resnest_d2_cli.COMMANDS} == modules
