"""The zoo: settings equal to the reference's, configs that travel with the package."""

import itertools
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.export import scripting_with_instances
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from resnest_d2 import model_zoo
from resnest_d2.config import RESNEST_DEFAULTS

ROOT = Path(__file__).parents[1]
# Per published model, each setting of the merged reference config that differs from Detectron2's
# defaults. Read off the reference, weights left out.
REFERENCE = json.loads((ROOT / "tests/data/zoo_settings.json").read_text())
PUBLISHED = [name for name in model_zoo.names() if name in REFERENCE]


def flatten(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.loads(json.dumps(value))


def test_expected_models_are_there():
    assert {
        "faster_resnest50",
        "mask_resnest50",
        "cascade_resnest50",
        "cascade_resnest101",
        "mask_resnest14_digits",
    } <= set(model_zoo.names())
    assert not any("base_" in name for name in model_zoo.names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_equal_the_reference(name):
    expected = dict(flatten(get_cfg())) | REFERENCE[name]
    for key, value in RESNEST_DEFAULTS.items():
        expected.setdefault(f"MODEL.RESNETS.{key}", value)
    actual = dict(flatten(model_zoo.get_config(name)))
    del expected["MODEL.WEIGHTS"], actual["MODEL.WEIGHTS"]
    assert actual == expected


def test_leaves_repeat_nothing_that_a_base_could_hold():
    def lines(path):
        return {line.strip() for line in path.read_text().splitlines() if ":" in line}

    leaves = {name: lines(Path(model_zoo.get_config_file(name))) for name in model_zoo.names()}
    for (a, lines_a), (b, lines_b) in itertools.combinations(leaves.items(), 2):
        shared = {s for s in lines_a & lines_b if not s.endswith(":") and "_BASE_" not in s}
        assert len(shared) < 3, f"{a} and {b} share {shared}"


@pytest.mark.parametrize("name", model_zoo.names())
def test_every_model_builds(name):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    model = build_model(cfg)
    assert model.backbone.bottom_up.res5 is not None


def test_get_builds_a_model_for_evaluation():
    model = model_zoo.get("mask_resnest14_digits", device="cpu")
    assert not model.training
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 128, 128)}])
    assert output["instances"].image_size == (128, 128)


@pytest.mark.filterwarnings("ignore")
def test_a_whole_detector_can_be_scripted():
    model = model_zoo.get("mask_resnest14_digits", device="cpu")
    fields = {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor, "pred_boxes": Boxes}
    fields |= {"scores": torch.Tensor, "pred_classes": torch.Tensor, "pred_masks": torch.Tensor}
    inputs = [{"image": 255 * torch.rand(3, 128, 128)}]
    with torch.no_grad():
        (expected,) = model.inference(inputs, do_postprocess=False)
        scripted = scripting_with_instances(model, fields)
        (actual,) = scripted.inference(inputs, do_postprocess=False)
    assert len(expected) > 0
    torch.testing.assert_close(actual.scores, expected.scores)
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


# Read off the reference's tables: box AP, mask AP, the hash in the checkpoint's name.
FACTS = {
    "faster_resnest50": (42.33, None, "ad123c0b"),
    "mask_resnest50": (42.81, 38.14, "f442d863"),
    "cascade_resnest50": (46.19, 39.55, "c58bd325"),
    "cascade_resnest101": (48.30, 41.56, "62448b9c"),
}


def test_published_figures_and_checkpoints():
    assert set(PUBLISHED) == set(FACTS)
    for name, (box, mask, digest) in FACTS.items():
        expected = {"bbox/AP": box} | ({"segm/AP": mask} if mask else {})
        assert model_zoo.published(name) == model_zoo.published(f"{name}.yaml") == expected
        assert model_zoo.get_checkpoint_url(name).endswith(f"-{digest}.pth")
        assert model_zoo.get_checkpoint_url(f"{name}.yaml") == model_zoo.get_checkpoint_url(name)
    assert model_zoo.published("mask_resnest14_digits") == {}
    with pytest.raises(ValueError, match="no checkpoint of 'mask_resnest14_digits'"):
        model_zoo.get_checkpoint_url("mask_resnest14_digits")
    with pytest.raises(ValueError, match="no checkpoint of 'mask_resnest14_digits'"):
        model_zoo.get("mask_resnest14_digits", trained=True, device="cpu")


@pytest.mark.parametrize(
    "verb",
    [
        model_zoo.get_config_file,
        model_zoo.get_config,
        model_zoo.get,
        model_zoo.get_checkpoint_url,
        model_zoo.published,
    ],
)
def test_an_unknown_name_lists_the_closest(verb):
    with pytest.raises(ValueError, match="no model 'cascade_resnet101'; did you mean .*cascade_r"):
        verb("cascade_resnet101")


def test_configs_travel_in_the_wheel(tmp_path):
    """Install the wheel elsewhere and ask for a config from another folder."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*pip, *build], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("resnest_d2-*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".yaml")}
    in_repo = {f"resnest_d2/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert packed == in_repo

    site = tmp_path / "site"
    install = ["install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([*pip, *install], check=True, cwd=tmp_path)
    code = (
        "from resnest_d2 import model_zoo as z; print(z.get_config_file('cascade_resnest101'));"
        "print(z.get_config('cascade_resnest101').MODEL.RESNETS.DEPTH)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    path, depth = result.stdout.splitlines()
    assert Path(path) == site / "resnest_d2/configs/cascade_resnest101.yaml"
    assert depth == "101"
