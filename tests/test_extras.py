"""Without what comes as an extra: training needs none, and what needs one names it."""

import sys

import pytest
import torch
from commands import run_python
from safetensors.torch import save_file

from resnest_d2.config import MissingPackageError
from resnest_d2.weights import Checkpoint, read_checkpoint
from resnest_d2.weights.files import write_checkpoint

DIGITS = "configs/mask_resnest14_digits.yaml"
RUN = "import sys, resnest_d2_cli; sys.exit(resnest_d2_cli.main())"


def without(*packages: str) -> str:
    """Code after which a process cannot import these packages, whatever it imported before."""
    return f"""
import sys
for name in list(sys.modules):
    if name.partition(".")[0] in {packages}:
        del sys.modules[name]
sys.modules.update(dict.fromkeys({packages}))
"""


def test_a_step_of_training_needs_no_extra(tiny_digits, tmp_path):
    extras = ("cv2", "matplotlib", "supervision", "hotcoco", "huggingface_hub", "safetensors")
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"]
    result = run_python(
        *(without(*extras) + RUN, "train", "--config-file", DIGITS, "OUTPUT_DIR", tmp_path, *opts),
        DETECTRON2_DATASETS=str(tiny_digits),
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "model_final.pth").is_file()


def test_predict_names_the_extra_at_once(tmp_path):
    arguments = ["--output", tmp_path / "out", "--input", "docs/web.png", "--config-file", DIGITS]
    result = run_python(without("supervision") + RUN, "predict", *arguments, "--allow-untrained")
    assert result.returncode == 2
    text = "needs supervision, which is not installed: pip install 'resnest_d2[draw]'"
    assert result.stderr.splitlines()[-1] == f"error: drawing detections {text}"
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_safetensors_name_the_extra(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    save_file({"stem.conv1_1.weight": torch.zeros(1)}, file)
    for name in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    message = r"{} {} needs safetensors, which is not installed: pip install 'resnest_d2\[hub\]'"
    with pytest.raises(MissingPackageError, match=message.format("reading", file)):
        read_checkpoint(file)
    target = tmp_path / "y.safetensors"
    with pytest.raises(MissingPackageError, match=message.format("writing", target)):
        write_checkpoint(Checkpoint("x", {"a": torch.zeros(1)}), target)
    assert not target.exists()
