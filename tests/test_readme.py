"""The README's snippets as they stand; even_and_odd.py is run in test_train_net.py."""

import re
from pathlib import Path

import detectron2.model_zoo
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import resnest_d2

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_five_lines_for_ones_own_project():
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    names: dict = {}
    exec(code, names)
    assert names["cfg"] == resnest_d2.model_zoo.get_config("cascade_resnest101")


def test_keys_for_an_existing_config():
    cfg = detectron2.model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    (text,) = blocks("yaml")
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(text)))
    cfg.MODEL.DEVICE = "meta"
    model = build_model(cfg)
    assert isinstance(model.backbone.bottom_up, resnest_d2.ResNeSt)


def test_every_file_that_is_named_exists():
    root = Path(__file__).parents[1]
    named = re.findall(r"\b((?:tools|tests|configs|docs|requirements)/[\w./-]+\.\w+)", README)
    assert len(named) > 10
    assert [name for name in named if not (root / name).exists()] == []
    for name in re.findall(r"\]\((\w+\.md)\)", README):
        assert (root / name).exists(), name
