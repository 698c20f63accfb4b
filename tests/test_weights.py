"""Published names: conversion, the resnest:// handler against local files, and honest loading."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from helpers import image_shape, make_cfg, randomize
from resnest.torch.models.resnet import Bottleneck
from resnest.torch.models.resnet import ResNet as ImageNetResNeSt

import resnest_d2
from resnest_d2 import model_zoo
from resnest_d2.weights import UntrainedParametersError, catalog, convert, load_weights

OPTS = ["MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0]
BLOCK = {"radix": 2, "deep_stem": True, "stem_width": 32, "avg_down": True, "avd": True}


@pytest.fixture(scope="module")
def imagenet():
    """State dict of a ResNeSt-14 in the names of the ImageNet files."""
    model = ImageNetResNeSt(Bottleneck, [1, 1, 1, 1], **BLOCK)
    randomize(model)
    return model.state_dict()


def small_backbone():
    return resnest_d2.build_resnest_backbone(make_cfg(*OPTS), image_shape())


def test_convert_maps_whole_keys(imagenet):
    ours = small_backbone().state_dict()
    converted = convert(imagenet)
    assert set(converted) == set(ours) | {"linear.weight", "linear.bias"}
    # The pair that renaming by substring confuses.
    assert torch.equal(converted["res2.0.conv2.bn1.weight"], imagenet["layer1.0.conv2.bn1.weight"])
    assert torch.equal(converted["res2.0.conv1.norm.weight"], imagenet["layer1.0.bn1.weight"])
    assert torch.equal(converted["stem.conv1_3.norm.bias"], imagenet["bn1.bias"])


def test_convert_old_shapes_and_names(imagenet):
    old = {k.replace("conv2.bn0.", "conv2.bn."): v for k, v in imagenet.items()}
    old = {k: v.flatten(1) if ".conv2.fc" in k and v.ndim == 4 else v for k, v in old.items()}
    expected = convert(imagenet)
    actual = convert(old)
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}
    assert all(torch.equal(actual[k], expected[k]) for k in expected)


def test_convert_leaves_detectron2_names_alone():
    state_dict = {f"backbone.bottom_up.{k}": v for k, v in small_backbone().state_dict().items()}
    assert convert(state_dict) == state_dict


@pytest.mark.parametrize("extra", ["layer5.0.conv1.weight", "layer1.0.conv1.weight2", "module.x"])
def test_convert_refuses_what_it_does_not_know(imagenet, extra):
    with pytest.raises(ValueError, match=f"1 of {len(imagenet) + 1} keys .*{extra}"):
        convert({**imagenet, extra: torch.zeros(1)})
    with pytest.raises(ValueError, match="file is empty"):
        convert({})


@pytest.fixture
def source(tmp_path, monkeypatch, imagenet):
    """A folder in place of the servers, with ResNeSt-14 as ``tiny``, and an empty cache."""
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save(imagenet, folder / "file")
    digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()
    name = f"tiny-{digest[:8]}.pth"
    (folder / "file").rename(folder / name)
    monkeypatch.setitem(catalog.IMAGENET, "tiny", name)
    monkeypatch.setattr(catalog, "IMAGENET_SOURCES", (f"{tmp_path}/dead/", f"{folder}/"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return folder / name


def test_a_name_resolves_to_converted_weights(source, imagenet, monkeypatch):
    path = PathManager.get_local_path("resnest://ImageNet/tiny")
    backbone = small_backbone()
    load_weights(backbone, "resnest://ImageNet/tiny")
    expected = convert(imagenet)
    assert all(torch.equal(v, expected[k]) for k, v in backbone.state_dict().items())
    monkeypatch.setattr(catalog, "IMAGENET_SOURCES", ())  # from now on the cache must do
    assert PathManager.get_local_path("resnest://ImageNet/tiny") == path


def test_a_detector_gets_its_backbone(source, imagenet):
    cfg = model_zoo.get_config("mask_resnest14_digits")
    full_width = ["MODEL.RESNETS.WIDTH_PER_GROUP", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *full_width])
    model = build_model(cfg)
    DetectionCheckpointer(model).load("resnest://ImageNet/tiny")
    weight = model.backbone.bottom_up.res5[0].conv2.fc2.weight
    assert torch.equal(weight, imagenet["layer4.0.conv2.fc2.weight"])
    with pytest.raises(UntrainedParametersError) as error:
        load_weights(model, "resnest://ImageNet/tiny")
    for part in ("backbone.fpn_output2", "proposal_generator.rpn_head", "roi_heads.mask_head"):
        assert part in str(error.value)
    assert "bottom_up" not in str(error.value)


def test_a_file_with_a_wrong_hash_is_refused(source):
    source.write_bytes(source.read_bytes() + b"x")
    with pytest.raises(OSError, match=r"tiny-.*wrong hash: SHA-256 starts with"):
        PathManager.get_local_path("resnest://ImageNet/tiny")


def test_a_dead_link_names_every_source(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    dead = ("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/")
    monkeypatch.setattr(catalog, "IMAGENET_SOURCES", dead)
    with pytest.raises(OSError, match="cannot download resnest50-528c19ca.pth") as error:
        PathManager.get_local_path("resnest://ImageNet/resnest50")
    assert all(url in str(error.value) for url in dead)
    assert f"save it as {tmp_path}/resnest_d2/resnest50-528c19ca.pth" in str(error.value)


def test_a_file_that_was_fetched_by_hand_is_taken(source, monkeypatch):
    monkeypatch.setattr(catalog, "IMAGENET_SOURCES", ("http://127.0.0.1:9/",))
    with pytest.raises(OSError, match="save it as") as error:
        PathManager.get_local_path("resnest://ImageNet/tiny")
    place = Path(re.search(r"save it as (\S+\.pth)", str(error.value)).group(1))
    place.write_bytes(source.read_bytes())
    assert load_weights(small_backbone(), "resnest://ImageNet/tiny") == []


@pytest.mark.parametrize("name", ["resnest://ImageNet/resnet50", "resnest://coco/resnest50"])
def test_an_unknown_name_lists_the_closest(name):
    with pytest.raises(ValueError, match="unknown weights .*resnest://ImageNet/resnest50"):
        PathManager.get_local_path(name)


def test_every_zoo_config_names_weights_that_are_known():
    for name in model_zoo.names():
        weights = model_zoo.get_config(name).MODEL.WEIGHTS
        if name.startswith("baselines/"):
            assert weights.startswith("detectron2://ImageNetPretrained/MSRA/R-"), name
        else:
            assert weights == "" or PathManager.exists(weights), name


def test_loading_reports_what_it_left(tmp_path, caplog):
    backbone = small_backbone()
    state_dict = backbone.state_dict()
    complete = tmp_path / "complete.pth"
    torch.save({"model": state_dict}, complete)
    assert load_weights(backbone, str(complete)) == []

    del state_dict["res5.0.conv1.weight"]
    state_dict["res4.0.conv1.weight"] = torch.zeros(3)
    partial = tmp_path / "partial.pth"
    torch.save({"model": state_dict}, partial)
    with pytest.raises(UntrainedParametersError, match="leaves 2 parameters .* in res4.0, res5.0"):
        load_weights(backbone, str(partial))
    untouched = load_weights(backbone, str(partial), allow_untrained=True)
    assert untouched == ["res4.0.conv1.weight", "res5.0.conv1.weight"]
    assert "at random values" in caplog.text

    with pytest.raises(UntrainedParametersError, match='MODEL.WEIGHTS is ""'):
        load_weights(backbone, "")
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS: there is no file"):
        load_weights(backbone, str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("content", [b"", b"<html>403</html>", b"words\n", "truncated"])
def test_a_broken_checkpoint_is_named(tmp_path, content):
    backbone = small_backbone()
    file = tmp_path / "broken.pth"
    torch.save(backbone.state_dict(), file)
    file.write_bytes(file.read_bytes()[:-1000] if content == "truncated" else content)
    with pytest.raises(ValueError, match=f"MODEL.WEIGHTS {file} is no readable checkpoint"):
        load_weights(backbone, str(file))


# Read off the names of the authors' release.
HASHES = {
    "resnest50": "528c19ca",
    "resnest101": "22405ba7",
    "resnest200": "75117900",
    "resnest269": "0cc87c48",
    "resnest50_fast_1s1x64d": "d8fbf808",
    "resnest50_fast_2s1x64d": "44938639",
    "resnest50_fast_4s1x64d": "f74f3fc3",
    "resnest50_fast_1s2x40d": "32830b84",
    "resnest50_fast_2s2x40d": "9d126481",
    "resnest50_fast_4s2x40d": "41d14ed0",
    "resnest50_fast_1s4x24d": "d4a4f76f",
}


# GluonCV's, as timm converted them.
GLUON = {"resnest14": "gluon_resnest14-9c8fe254.pth", "resnest26": "gluon_resnest26-50eb607c.pth"}


def test_catalog_is_that_of_the_releases():
    released = {name: f"{name}-{digest}.pth" for name, digest in HASHES.items()}
    assert released | GLUON == catalog.IMAGENET


def test_names_that_exist_are_those_that_resolve():
    assert PathManager.exists("resnest://ImageNet/resnest50")
    for wrong in (
        "resnest://resnest50",
        "resnest://ImageNet/resnest51",
        "resnest://COCO/resnest50",
    ):
        assert not PathManager.exists(wrong)
