"""Loading weights: what fits is loaded, what does not is told."""

import gzip
import json
import logging
import pickle
from collections import deque
from pathlib import Path

import mmdet_golden
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, detection_checkpoint
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import _LOG_COUNTER
from helpers import image_shape, make_cfg
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.models import resnet50

import resnest_d2
from resnest_d2 import model_zoo
from resnest_d2.engine.checkpoint import TrainingCheckpointer
from resnest_d2.modeling.detector import build_detector
from resnest_d2.modeling.resnest import make_resnest
from resnest_d2.weights import (
    RecordingCheckpointer,
    UnreadableError,
    UntrainedParametersError,
    convert,
    load_detector,
    load_weights,
    loading,
    read_classes,
)
from resnest_d2.weights.catalog import input_format_of
from resnest_d2.weights.convert import describe_conversion
from resnest_d2.weights.files import Checkpoint
from resnest_d2.weights.loading import number_of_classes, read_config

OPTS = ["MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0]
NAMES = Path(__file__).parent / "data/mmdet_names.json.gz"


@pytest.fixture(scope="module")
def imagenet_file(imagenet, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "imagenet.pth"
    torch.save(imagenet, file)
    return str(file)


def small_backbone():
    return resnest_d2.build_resnest_backbone(make_cfg(*OPTS), image_shape())


def small_detector(*opts):
    cfg = model_zoo.get_config("mask_resnest14")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return build_detector(cfg)


def test_a_detector_gets_its_backbone(imagenet_file, imagenet):
    """From a file in MODEL.WEIGHTS as it was published."""
    model = small_detector()
    with pytest.raises(UntrainedParametersError) as error:
        load_weights(model, imagenet_file)
    weight = model.backbone.bottom_up.res5[0].conv2.fc2.weight
    assert torch.equal(weight, imagenet["layer4.0.conv2.fc2.weight"])
    for part in ("backbone.fpn_output2", "proposal_generator.rpn_head", "roi_heads.mask_head"):
        assert part in str(error.value)
    assert "bottom_up" not in str(error.value)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.bottom_up."])
def test_wrapped_files_in_model_weights(prefix, imagenet, tmp_path):
    file = tmp_path / "wrapped.pth"
    wrapped = {prefix + k: v for k, v in imagenet.items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"state": {}}}, file)
    assert load_weights(small_backbone(), str(file)) == []


def test_a_trainer_of_another_project_gets_it_too(imagenet, tmp_path):
    """Detectron2's own checkpointer loads what the names resolve to."""
    file = tmp_path / "converted.pth"
    torch.save(Checkpoint.of({}, describe_conversion(imagenet)).to_dict(), file)
    model = small_detector()
    DetectionCheckpointer(model).load(str(file))
    weight = model.backbone.bottom_up.res5[0].conv2.fc2.weight
    assert torch.equal(weight, imagenet["layer4.0.conv2.fc2.weight"])


def test_a_classifier_is_kept_for_models_that_classify(imagenet_file, imagenet, tmp_path):
    model = make_resnest(14, num_classes=1000)
    assert load_weights(model, imagenet_file) == []
    assert torch.equal(model.linear.weight, imagenet["fc.weight"])
    other = make_resnest(14, num_classes=10)
    with pytest.raises(UntrainedParametersError, match=r"linear.bias has shape \(1000,\)"):
        load_weights(other, imagenet_file)


def test_safetensors(imagenet, tmp_path):
    file = tmp_path / "model.safetensors"
    classes = {"thing_classes": ["a", "b"]}
    tensors = {k: v.contiguous() for k, v in imagenet.items()}
    save_file(tensors, file, {"format": "pt", "classes": json.dumps(classes)})
    model = small_backbone()
    assert load_weights(model, str(file)) == []
    assert torch.equal(model.stem.conv1_1.weight, imagenet["conv1.0.weight"])
    assert read_classes(str(file)) == classes


def test_mmdetections_file_in_its_zoo_entry(tmp_path):
    shapes = json.loads(gzip.decompress(NAMES.read_bytes()))["faster_resnest50"]
    weights = mmdet_golden.draw_weights(shapes)
    file = tmp_path / "epoch_12.pth"
    torch.save({"meta": {"mmdet_version": "2.7.0"}, "state_dict": weights}, file)
    cfg = model_zoo.get_config("mmdet/faster_resnest50")
    cfg.MODEL.DEVICE = "cpu"
    model = build_detector(cfg)
    assert load_weights(model, str(file)) == []
    weight = model.roi_heads.box_predictor.bbox_pred.weight
    assert torch.equal(weight, weights["roi_head.bbox_head.fc_reg.weight"])


def test_every_zoo_config_names_weights_that_are_known():
    for name in model_zoo.names():
        weights = model_zoo.get_config(name).MODEL.WEIGHTS
        if name.startswith("baselines/"):
            assert weights.startswith("detectron2://ImageNetPretrained/MSRA/R-"), name
        else:
            assert weights == "" or PathManager.exists(weights), name
        assert PathManager.exists(f"resnest://COCO/{name}") == bool(model_zoo.published(name))


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

    with pytest.raises(UntrainedParametersError, match='MODEL.WEIGHTS is "" leaves 127 parameters'):
        load_weights(backbone, "")
    with pytest.raises(
        FileNotFoundError, match=f"MODEL.WEIGHTS: there is no file {tmp_path}/absent.pth"
    ):
        load_weights(backbone, str(tmp_path / "absent.pth"))


# By torch or safetensors, and so no pickles of arrays.
SAVED = ("truncated", "truncated legacy", "truncated safetensors", "module")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>403</html>", "is an HTML page: a server's answer saved"),
        (b"<?xml version='1.0'?><Error>", "is an XML page: a server's answer"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"words\n", "is a text, not weights"),
        (bytes(range(256)) * 9, "is no checkpoint, or a damaged one"),
        ("truncated", "is damaged or cut off; fetch it again"),
        ("truncated legacy", "is damaged or cut off; fetch it again"),
        ("truncated safetensors", "is damaged or cut off; fetch it again"),
        ("list", "is of type list, not a dict of tensors"),
        ("module", r"holds Python objects besides tensors \(torch.nn.modules.linear.Linear\)"),
        ("pickle", r"holds Python objects besides tensors \(collections.deque\)"),
    ],
)
@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_a_broken_file_is_named(tmp_path, content, reason, ending):
    backbone = small_backbone()
    file = tmp_path / f"broken{ending}"
    if content == "truncated safetensors":
        save_file(backbone.state_dict(), file)
    elif content == "list":
        torch.save([1], file) if ending == ".pth" else file.write_bytes(pickle.dumps([1]))
    elif content == "module":
        torch.save(torch.nn.Linear(1, 1), file)
    elif content == "pickle":
        file.write_bytes(pickle.dumps({"a": deque()}))
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(backbone.state_dict(), file, _use_new_zipfile_serialization="l" not in content)
    if isinstance(content, str) and "truncated" in content:
        file.write_bytes(file.read_bytes()[:-1000])
    if ending == ".pkl" and content in SAVED:
        # torch.save's files are no such pickles.
        reason = "is (no checkpoint, or a damaged one|of type int, not a dict of tensors)"
    with pytest.raises(ValueError, match=f"MODEL.WEIGHTS: {file} {reason}") as error:
        load_weights(backbone, str(file))
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


def test_detectron2s_pickles_are_read_as_arrays_only(tmp_path):
    """The ResNets of the baselines come as such files."""
    model = model_zoo.get_config("baselines/mask_resnet50")
    model.MODEL.DEVICE = "cpu"
    model = build_detector(model)
    arrays = {k: v.numpy() for k, v in model.backbone.bottom_up.state_dict().items()}
    arrays["res2.0.conv1.weight"] = arrays["res2.0.conv1.weight"] + 1
    file = tmp_path / "R-50.pkl"
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(UntrainedParametersError) as error:
        load_weights(model, str(file))
    assert "bottom_up" not in str(error.value)
    weight = model.backbone.bottom_up.res2[0].conv1.weight
    assert np.array_equal(weight.detach(), arrays["res2.0.conv1.weight"])


@pytest.mark.parametrize("wrap", [lambda arrays: arrays, lambda arrays: {"blobs": arrays}])
def test_files_in_caffe2s_names(wrap, tmp_path):
    """Detectron's backbones are bare dicts, its detectors lie under "blobs"."""
    cfg = model_zoo.get_config("baselines/mask_resnet50")
    cfg.MODEL.DEVICE = "cpu"
    model = build_detector(cfg).backbone.bottom_up
    weight = np.random.rand(64, 3, 7, 7).astype("float32")
    arrays = {"conv1_w": weight, "conv1_w_momentum": weight + 1, "conv1_bn_s": np.ones(64)}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(wrap(arrays)))
    checkpointer = RecordingCheckpointer(model)
    checkpointer.load(str(tmp_path / "R-50.pkl"))
    assert np.array_equal(model.stem.conv1.weight.detach(), weight)
    assert "stem.conv1.weight" not in checkpointer.untouched()


@pytest.mark.parametrize("ending", [".pkl", ".pyth"])
def test_pickles_never_reach_pickle_load(ending, imagenet, tmp_path, monkeypatch):
    """Not even after they have been looked at: a file can be two things at once."""
    file = tmp_path / f"weights{ending}"
    arrays = {key: value.numpy() for key, value in imagenet.items()}
    file.write_bytes(pickle.dumps({"model_state": arrays} if ending == ".pyth" else arrays))
    monkeypatch.setattr(detection_checkpoint.pickle, "load", lambda *a, **k: 1 / 0)
    model = small_backbone()
    assert load_weights(model, str(file)) == []
    assert torch.equal(model.stem.conv1_1.weight, imagenet["conv1.0.weight"])

    # Safetensors by its ninth byte, a pickle by its name: it is read as the pickle.
    tensors = file.with_name("tensors.safetensors")
    save_file(model.state_dict(), tensors)
    tensors.rename(file)
    with pytest.raises(
        ValueError, match=f"MODEL.WEIGHTS: {file} is no checkpoint, or a damaged one"
    ):
        load_weights(model, str(file))


def state_dict_of(depth, **kwargs):
    with torch.device("meta"):
        names = make_resnest(depth, **kwargs).state_dict()
    return {key: torch.zeros(1) for key in names}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: resnet50().state_dict(), "it is of a ResNet-50, the model has a ResNeSt-14"),
        (lambda: state_dict_of(101), "it is of a ResNeSt-101, the model has a ResNeSt-14"),
        (lambda: state_dict_of(26), "it is of a ResNeSt-26, the model has a ResNeSt-14"),
        (lambda: state_dict_of(14, radix=0), "it is of a ResNet with .*, the model has a ResNeSt"),
    ],
)
@pytest.mark.parametrize("loader", [load_weights, lambda model, path: train_from(model, path, "")])
def test_another_network_is_refused(tmp_path, weights, message, loader):
    """Also a deeper one, in which Detectron2 finds every parameter that the model has."""
    file = tmp_path / "other.pth"
    torch.save(weights(), file)
    model = small_backbone()
    with pytest.raises(ValueError, match=f"MODEL.WEIGHTS {file}: {message}"):
        loader(model, str(file))


def test_a_model_may_end_earlier_than_its_file(imagenet_file):
    backbone = resnest_d2.build_resnest_backbone(
        make_cfg(*OPTS, "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"]), image_shape()
    )
    assert load_weights(backbone, imagenet_file) == []


def train_from(model, path, folder, **kwargs):
    return TrainingCheckpointer(model, str(folder), {}, **kwargs).resume_or_load(
        str(path), resume=False
    )


def test_training_needs_the_whole_backbone(imagenet, imagenet_file, tmp_path, caplog):
    model = small_detector()
    with caplog.at_level(logging.INFO):
        train_from(model, imagenet_file, tmp_path)
    lines = [r.getMessage() for r in caplog.records if "does not hold" in r.getMessage()]
    (line,) = lines  # one short line names what starts anew
    assert "backbone.fpn_lateral2" in line
    assert "roi_heads.mask_head" in line
    assert len(line) < 600

    partial = {k: v for k, v in imagenet.items() if not k.startswith("layer3.0.conv2.")}
    torch.save(partial, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"leaves 13 parameters of the backbone at random values"):
        train_from(model, tmp_path / "partial.pth", tmp_path)
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"of the backbone .* MODEL.WEIGHTS '' to train"):
        train_from(model, tmp_path / "other.pth", tmp_path)
    narrow = small_detector("MODEL.RESNETS.WIDTH_PER_GROUP", 32)
    with pytest.raises(
        ValueError, match="imagenet.pth leaves 67 parameters of the backbone at random values"
    ):
        train_from(narrow, imagenet_file, tmp_path)
    # Offsets of deformable convolutions are new to every file for ImageNet.
    deformable = small_detector("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True])
    train_from(deformable, imagenet_file, tmp_path)


def test_a_failed_load_leaves_the_checkpointer_usable(imagenet_file, tmp_path):
    (tmp_path / "bad.pth").write_text("<html>")
    checkpointer = RecordingCheckpointer(small_backbone())
    with pytest.raises(
        ValueError, match=f"MODEL.WEIGHTS: {tmp_path}/bad.pth is an HTML page: a server's answer"
    ):
        checkpointer.load(str(tmp_path / "bad.pth"))
    checkpointer.load(imagenet_file)
    assert checkpointer.untouched() == []


@pytest.fixture
def warnings_anew():
    """Each is logged once in a process."""
    _LOG_COUNTER.clear()


RGB = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.68, 116.779, 103.939]]
RGB += ["MODEL.PIXEL_STD", [58.393, 57.12, 57.375]]
IMAGENET = [
    "MODEL.PIXEL_MEAN",
    [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD",
    [58.395, 57.12, 57.375],
]


@pytest.mark.usefixtures("warnings_anew")
@pytest.mark.parametrize(
    ("weights", "opts", "warned"),
    [
        ("resnest://ImageNet/resnest50", RGB, ""),
        ("resnest://ImageNet/resnest50", [*RGB, *IMAGENET], ""),
        ("resnest://COCO/cascade_resnest101", [*RGB, *IMAGENET], ""),
        ("timm://resnest50d.in1k", RGB, ""),
        ("", [], ""),
        ("output/model_final.pth", [], ""),
        ("resnest://ImageNet/resnest50", [], "BGR with mean 103.53 116.28 123.675 and std 1 1 1"),
        ("resnest://ImageNet/resnest50", [*RGB, "INPUT.FORMAT", "BGR"], "BGR with mean 123.68"),
        ("/data/resnest50-528c19ca.pth", [*RGB, "MODEL.PIXEL_STD", [1.0] * 3], "std 1 1 1"),
        ("timm://resnest50d.in1k", [*RGB, "MODEL.PIXEL_MEAN", [0.0] * 3], "RGB with mean 0 0 0"),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", RGB, "RGB with mean 123.68"),
        ("resnest://COCO/baselines/mask_resnet50", RGB, "RGB with mean 123.68"),
    ],
)
def test_colours_that_the_weights_are_not_for(weights, opts, warned, caplog):
    """Said by the builder, which every project calls."""
    cfg = make_cfg(*OPTS, "MODEL.WEIGHTS", weights, *opts)
    for _ in range(2):
        resnest_d2.build_resnest_backbone(cfg, image_shape())
    lines = [r.getMessage() for r in caplog.records if "made for" in r.getMessage()]
    if not warned:
        assert lines == []
        return
    (line,) = lines
    assert line.startswith(f"MODEL.WEIGHTS {weights} was made for ")
    assert warned in line
    assert (
        "BGR" if weights.startswith(("det", "resnest://COCO")) else "RGB with mean 123.675"
    ) in line


@pytest.mark.usefixtures("warnings_anew")
def test_a_trained_model_remembers_its_colours(tmp_path, caplog):
    rgb = small_detector(*RGB)
    TrainingCheckpointer(rgb, str(tmp_path), {}).save("model_final")
    file = str(tmp_path / "model_final.pth")
    load_weights(small_detector(*RGB), file)
    assert "made for" not in caplog.text
    load_weights(small_detector(*RGB, "INPUT.FORMAT", "BGR"), file)
    assert f"MODEL.WEIGHTS {file} was made for RGB with mean 123.68" in caplog.text
    assert "are those of BGR with mean 123.68" in caplog.text


def test_what_is_known_of_colours_is_what_the_files_were_trained_with():
    """Torchvision's constants, and those in the published configs."""
    mean, std = (
        [255 * v for v in values] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    for name in ("resnest://ImageNet/resnest50", "timm://resnest14d.gluon_in1k"):
        assert input_format_of(name).mean == pytest.approx(mean)
        assert input_format_of(name).std == pytest.approx(std)
    for name in model_zoo.names():
        if model_zoo.published(name):
            cfg = model_zoo.get_config(name)
            known = input_format_of(f"resnest://COCO/{name}")
            assert known.channels == cfg.INPUT.FORMAT
            assert list(known.mean) == cfg.MODEL.PIXEL_MEAN
            assert list(known.std) == cfg.MODEL.PIXEL_STD


@pytest.mark.parametrize("place", ["backbone.", "bottom_up.", "backbone.bottom_up."])
def test_a_backbone_from_any_place(place, imagenet, tmp_path):
    """In Detectron2's names it fits a detector and a bare backbone alike."""
    backbone = {k: v for k, v in convert(imagenet).items() if not k.startswith("linear.")}
    file = tmp_path / "backbone.pth"
    torch.save({"model": {place + key: value for key, value in backbone.items()}}, file)
    assert load_weights(small_backbone(), str(file)) == []
    train_from(small_detector(), file, tmp_path)


def test_a_plain_resnet_needs_its_convolutions(tmp_path):
    cfg = model_zoo.get_config("baselines/faster_resnet50")
    cfg.MODEL.DEVICE = "cpu"
    model = build_detector(cfg)
    weights = model.backbone.state_dict()
    folded = {"backbone." + k: v for k, v in weights.items() if "running" not in k}
    torch.save({"model": folded}, tmp_path / "folded.pth")
    train_from(model, tmp_path / "folded.pth", tmp_path)
    for name, broken in {
        "partial": {k: v for k, v in folded.items() if ".conv3." not in k},
        "elsewhere": {f"x.{k}": v for k, v in folded.items()},
    }.items():
        torch.save({"model": broken}, tmp_path / f"{name}.pth")
        message = f"{name}.pth leaves .* parameters of the backbone at random values"
        with pytest.raises(ValueError, match=message):
            train_from(model, tmp_path / f"{name}.pth", tmp_path)


ODD = {
    "an integer key": lambda im: {**im, 7: torch.zeros(1)},
    "texts": lambda im: {**im, "names": np.array(["a"])},
    "no meta": lambda im: {"state_dict": im, "meta": {"CLASSES": 5}},
    "no classifier": lambda im: {"model": im, "classifier": [1, 2]},
    "no weights in the classifier": lambda im: {"model": im, "classifier": {"linear.weight": 3}},
    "sparse": lambda im: {**im, "bn1.bias": torch.zeros(3).to_sparse()},
    "meta": lambda im: {**im, "bn1.bias": torch.zeros(3, device="meta")},
}
REFUSED = {
    "an integer key": r"not the weights of a known ResNeSt: 1 of 153 keys do not fit .*\(7\)",
    "sparse": r"bn1.bias is a tensor of an unsupported kind \(cpu, torch.sparse_coo, ",
    "meta": r"bn1.bias is a tensor of an unsupported kind \(meta, ",
}
CLASSES = (5, ["a"], "abc", None, {"thing_classes": 3}, {"thing_classes": "person"}, {"name": "x"})


@pytest.mark.parametrize("kind", ODD)
def test_odd_content_is_no_crash(kind, imagenet, tmp_path):
    file = tmp_path / ("odd.pkl" if kind == "texts" else "odd.pth")
    content = ODD[kind](imagenet)
    if kind == "texts":
        content = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in content.items()}
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    if kind in REFUSED:
        with pytest.raises(ValueError, match=f"MODEL.WEIGHTS {file}: {REFUSED[kind]}"):
            load_weights(small_backbone(), str(file))
    else:
        assert load_weights(small_backbone(), str(file)) == []


@pytest.mark.parametrize("kind", [TypeError, KeyError, AttributeError, RuntimeError])
def test_defects_surface(kind, imagenet_file, monkeypatch):
    """They are not taken for files without classes, nor for files that cannot be read."""

    def broken(*args, **kwargs):
        raise kind("a defect")

    for step in ("classes_in", "read_checkpoint"):
        with monkeypatch.context() as patch:
            patch.setattr(loading, step, broken)
            with pytest.raises(kind, match="a defect"):
                read_classes(imagenet_file)
    for step in ("read_checkpoint", "unwrap", "rename", "network_of"):
        with monkeypatch.context() as patch:
            patch.setattr(loading, step, broken)
            with pytest.raises(kind, match="a defect") as error:
                load_weights(small_backbone(), imagenet_file)
        assert type(error.value) is kind


@pytest.mark.parametrize("length", [1, 4, 60, 300, 1000, 10000, 40000, -2000, -20, -1])
def test_checkpoints_cut_off_anywhere(imagenet_file, tmp_path, length):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(Path(imagenet_file).read_bytes()[:length])
    with pytest.raises(
        UnreadableError, match="cut.pth is (damaged or cut off|a text, not weights)"
    ):
        load_weights(small_backbone(), str(cut))


def test_classes_of_unreadable_files(imagenet_file, tmp_path, monkeypatch):
    """Loading them will tell why they are unreadable."""
    assert read_classes(str(tmp_path / "absent.pth")) == {}
    cut = tmp_path / "cut.pth"
    for content in (b"", b"<html>", bytes(range(256)), Path(imagenet_file).read_bytes()[:-1000]):
        cut.write_bytes(content)
        assert read_classes(str(cut)) == {}
    torch.save(torch.nn.Linear(1, 1), cut)
    assert read_classes(str(cut)) == {}
    save_file({"a": torch.zeros(1)}, cut)
    cut.write_bytes(cut.read_bytes()[:20])
    assert read_classes(str(cut)) == {}

    def refuse(*args, **kwargs):
        raise PermissionError("no permission")

    monkeypatch.setattr(loading, "read_checkpoint", refuse)
    assert read_classes(imagenet_file) == {}


@pytest.mark.parametrize("classes", CLASSES)
def test_classes_that_are_none(classes, imagenet, tmp_path):
    file = tmp_path / "odd.pth"
    torch.save({"model": imagenet, "classes": classes}, file)
    assert read_classes(str(file)) == {}
    assert load_detector(small_backbone(), str(file)) == {}


def test_classes_of_files_of_old(imagenet, tmp_path):
    """torch.save before 1.6 wrote files that cannot be mapped into memory."""
    file = tmp_path / "old.pth"
    content = {"model": imagenet, "classes": {"thing_classes": ["a"]}}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    assert read_classes(str(file)) == {"thing_classes": ["a"]}


def test_files_that_are_not_there(tmp_path):
    for path in ("absent.pth", "absent.pth?matching_heuristics=True"):
        for loader in (load_weights, lambda model, file: train_from(model, file, tmp_path)):
            with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS: there is no file absent"):
                loader(small_backbone(), path)


def test_queries(imagenet_file, tmp_path):
    assert load_weights(small_backbone(), f"{imagenet_file}?matching_heuristics=True") == []
    with pytest.raises(ValueError, match="after '\\?' only matching_heuristics=True is known"):
        load_weights(small_backbone(), f"{imagenet_file}?x=1")


def test_old_detectron2_checkpoints(imagenet, tmp_path):
    """Of the reference's wrapper: its names, the attention as matrices, and a whole training."""
    model = small_detector()
    old = {
        key: value.flatten(1) if ".conv2.fc" in key and value.ndim == 4 else value
        for key, value in model.state_dict().items()
    }
    file = tmp_path / "old.pth"
    torch.save({"model": old, "optimizer": {"state": {}}, "iteration": 90000}, file)
    other = small_detector()
    assert load_weights(other, str(file)) == []
    content = RecordingCheckpointer(other).load(str(file))
    assert content["iteration"] == 90000
    assert convert(old).keys() == model.state_dict().keys()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Files of models that were compiled or exported, by the words that name them."""
    folder = tmp_path_factory.mktemp("programs")
    network, image = torch.nn.Conv2d(3, 4, 3), (torch.rand(1, 3, 8, 8),)
    torch.jit.save(torch.jit.trace(network, image), folder / "script.pth")
    torch.export.save(torch.export.export(network, image), folder / "exported.pt2")
    # ir_version 8, producer_name "pytorch", as ONNX begins.
    (folder / "model.onnx").write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x10" + bytes(99))
    return {
        "a TorchScript program": folder / "script.pth",
        "a program of torch.export": folder / "exported.pt2",
        "an ONNX model": folder / "model.onnx",
    }


@pytest.mark.parametrize(
    "words", ["a TorchScript program", "a program of torch.export", "an ONNX model"]
)
def test_programs_are_named(programs, words):
    file = programs[words]
    with pytest.raises(UnreadableError, match=f"^MODEL.WEIGHTS: {file} is {words}, not a file of"):
        load_weights(small_backbone(), str(file))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(imagenet, tmp_path, value):
    weights = {key: tensor.clone() for key, tensor in imagenet.items()}
    weights["layer2.0.conv1.weight"].view(-1)[3] = value
    torch.save(weights, tmp_path / "diverged.pth")
    with pytest.raises(
        UnreadableError,
        match=r"^MODEL.WEIGHTS .*diverged.pth: layer2.0.conv1.weight has values that are NaN",
    ):
        load_weights(small_backbone(), str(tmp_path / "diverged.pth"))


class Wrapped(nn.Module):
    """A model whose names are those of other projects' files, or of their wrappers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        block = nn.ModuleDict({"conv2": nn.Conv2d(3, 3, 3), "conv1": nn.Conv2d(3, 3, 1)})
        inner = nn.ModuleDict({"layer1": nn.ModuleList([block]), "other": nn.Conv2d(3, 4, 1)})
        inner["conv1"] = nn.Conv2d(3, 3, 3)
        self.add_module(name, inner)


@pytest.mark.parametrize("name", ["backbone", "model", "net"])
def test_a_models_own_names_are_taken_as_they_are(tmp_path, name):
    model, other = Wrapped(name), Wrapped(name)
    TrainingCheckpointer(model, str(tmp_path), {}).save("model_final")
    assert load_weights(other, str(tmp_path / "model_final.pth")) == []
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    resumed = TrainingCheckpointer(Wrapped(name), str(tmp_path), {})
    resumed.resume_or_load("", resume=True)
    assert resumed.untouched() == []


def test_a_models_own_names_are_not_taken_for_caffe2s(tmp_path):
    model, other = small_backbone(), small_backbone()
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    (tmp_path / "own.pkl").write_bytes(pickle.dumps(arrays))
    assert load_weights(other, str(tmp_path / "own.pkl")) == []
    assert torch.equal(other.stem.conv1_1.weight, model.stem.conv1_1.weight)


def test_a_query_hides_no_classes(tmp_path):
    classes = {"thing_classes": ["cat", "dog"]}
    content = {"model": {"x.cls_score.weight": torch.zeros(3, 8)}, "classes": classes}
    torch.save({**content, "config": "MODEL: {}\n"}, tmp_path / "w.pth")
    path = f"{tmp_path}/w.pth?matching_heuristics=True"
    assert read_classes(path) == classes
    assert read_config(path) == "MODEL: {}\n"
    assert number_of_classes(path) == 2
    assert read_classes(f"{path}&other=1") == {}
