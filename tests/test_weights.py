"""Loading weights: what fits is loaded, what does not is told."""

import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils.file_io import PathHandler, PathManager
from detectron2.utils.logger import _LOG_COUNTER
from helpers import SMALL, image_shape, make_cfg, small_backbone
from timm import create_model
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.models import resnet50

import resnest_d2
from resnest_d2 import model_zoo
from resnest_d2.commands.convert import main as convert_command
from resnest_d2.modeling.detector import build_detector
from resnest_d2.modeling.resnest import make_resnest
from resnest_d2.weights import (
    FetchError,
    UnreadableError,
    UntrainedParametersError,
    WeightsCheckpointer,
    catalog,
    convert,
    load_weights,
    open_weights,
)
from resnest_d2.weights.loading import require_finite


@pytest.fixture(scope="module")
def imagenet_file(imagenet, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "imagenet.pth"
    torch.save(imagenet, file)
    return str(file)


def zoo_model(name, *opts):
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return build_detector(cfg)


def small_detector(*opts):
    return zoo_model("mask_resnest14", *opts)


def load_to_train(model, path):
    WeightsCheckpointer(model).load_to_train(str(path))


def save(file, content):
    torch.save(content, file)
    return str(file)


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


def test_a_backbone_from_another_place(imagenet, tmp_path):
    """In Detectron2's names it fits a detector and a bare backbone alike."""
    backbone = {k: v for k, v in convert(imagenet).items() if not k.startswith("linear.")}
    file = save(tmp_path / "x.pth", {"model": {f"backbone.{k}": v for k, v in backbone.items()}})
    assert load_weights(small_backbone(), file) == []
    load_to_train(small_detector(), file)


def test_a_backbone_with_a_key_of_another_head(imagenet, tmp_path, caplog):
    """As self-supervised training leaves it; Detectron2 warns of such keys, and loads."""
    weights = {**convert(imagenet), "projector.0.weight": torch.zeros(8, 8)}
    model = small_detector()
    load_to_train(model, save(tmp_path / "pretrained.pth", weights))
    weight = model.backbone.bottom_up.res5[0].conv2.fc2.weight
    assert torch.equal(weight, imagenet["layer4.0.conv2.fc2.weight"])
    assert "1 keys have no known name" in caplog.text
    assert "projector.0.weight" in caplog.text


def test_a_classifier_is_kept_for_models_that_classify(imagenet_file, imagenet):
    model = make_resnest(14, num_classes=1000)
    assert load_weights(model, imagenet_file) == []
    assert torch.equal(model.linear.weight, imagenet["fc.weight"])
    other = make_resnest(14, num_classes=10)
    with pytest.raises(UntrainedParametersError, match=r"linear.\w+ has shape \(1000,"):
        load_weights(other, imagenet_file)


def test_a_checkpoint_that_was_opened_loads_many_times(imagenet_file):
    """It is a value: loading it into one model takes nothing away from it."""
    checkpoint = open_weights(imagenet_file)
    load_weights(make_resnest(14, width_per_group=32), checkpoint, allow_untrained=True)
    load_weights(make_resnest(14, in_channels=4), checkpoint)
    assert load_weights(small_backbone(), checkpoint) == []
    assert checkpoint.weights["conv1.0.weight"].shape[1] == 3


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
    assert load_weights(backbone, save(tmp_path / "complete.pth", {"model": state_dict})) == []

    del state_dict["res5.0.conv1.weight"]
    state_dict["res4.0.conv1.weight"] = torch.zeros(3)
    partial = save(tmp_path / "partial.pth", {"model": state_dict})
    message = r"leaves 2 parameters .* in res4.0, res5.0 \(res4.0.conv1.weight has shape \(3,\) in"
    with pytest.raises(UntrainedParametersError, match=message):
        load_weights(backbone, partial)
    untouched = load_weights(backbone, partial, allow_untrained=True)
    assert untouched == ["res4.0.conv1.weight", "res5.0.conv1.weight"]
    assert "at random values" in caplog.text
    message = "MODEL.WEIGHTS is empty and leaves 127 parameters"
    with pytest.raises(UntrainedParametersError, match=message):
        load_weights(backbone, "")


def test_detectron2s_pickles(tmp_path):
    """The ResNets of the baselines come as such files."""
    model = zoo_model("baselines/mask_resnet50")
    arrays = {k: v.numpy() for k, v in model.backbone.bottom_up.state_dict().items()}
    arrays["res2.0.conv1.weight"] = arrays["res2.0.conv1.weight"] + 1
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UntrainedParametersError) as error:
        load_weights(model, str(tmp_path / "R-50.pkl"))
    assert "bottom_up" not in str(error.value)
    weight = model.backbone.bottom_up.res2[0].conv1.weight
    assert np.array_equal(weight.detach(), arrays["res2.0.conv1.weight"])


def test_files_in_caffe2s_names(tmp_path):
    """Detectron's backbones are bare dicts."""
    model = zoo_model("baselines/mask_resnet50").backbone.bottom_up
    weight = np.random.rand(64, 3, 7, 7).astype("float32")
    arrays = {"conv1_w": weight, "conv1_w_momentum": weight + 1, "conv1_bn_s": np.ones(64)}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(arrays))
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(str(tmp_path / "R-50.pkl"))
    assert np.array_equal(model.stem.conv1.weight.detach(), weight)
    assert "stem.conv1.weight" not in checkpointer.untouched()


def state_dict_of(depth, **kwargs):
    with torch.device("meta"):
        names = make_resnest(depth, **kwargs).state_dict()
    return {key: torch.zeros(1) for key in names}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: resnet50().state_dict(), "is of a ResNet-50, the model has a ResNeSt-14"),
        (lambda: state_dict_of(101), "is of a ResNeSt-101, the model has a ResNeSt-14"),
        (lambda: state_dict_of(14, radix=0), "is of a ResNet with .*, the model has a ResNeSt"),
    ],
)
def test_another_network_is_refused(tmp_path, weights, message):
    """Also a deeper one, in which Detectron2 finds every parameter that the model has."""
    file = save(tmp_path / "other.pth", weights())
    with pytest.raises(UnreadableError, match=f"^{file} {message}"):
        load_weights(small_backbone(), file)


def test_a_model_may_end_earlier_than_its_file(imagenet_file):
    backbone = small_backbone(3, "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"])
    assert load_weights(backbone, imagenet_file) == []


def test_training_needs_the_whole_backbone(imagenet, imagenet_file, tmp_path, caplog):
    model = small_detector()
    with caplog.at_level(logging.INFO):
        load_to_train(model, imagenet_file)
    (line,) = [m for m in caplog.messages if "does not hold" in m]
    assert "backbone.fpn_lateral2" in line
    assert "roi_heads.mask_head" in line
    assert len(line) < 600

    partial = {k: v for k, v in imagenet.items() if not k.startswith("layer3.0.conv2.")}
    message = r"leaves 13 parameters of the backbone at random .* MODEL.WEIGHTS '' to train"
    with pytest.raises(ValueError, match=message):
        load_to_train(model, save(tmp_path / "partial.pth", partial))
    narrow = small_detector("MODEL.RESNETS.WIDTH_PER_GROUP", 32)
    with pytest.raises(ValueError, match="imagenet.pth leaves 67 parameters of the backbone"):
        load_to_train(narrow, imagenet_file)
    # Offsets of deformable convolutions are new to every file for ImageNet.
    deformable = small_detector("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True])
    load_to_train(deformable, imagenet_file)


def test_a_plain_resnet_needs_its_convolutions(tmp_path):
    model = zoo_model("baselines/faster_resnet50")
    weights = model.backbone.state_dict()
    folded = {"backbone." + k: v for k, v in weights.items() if "running" not in k}
    load_to_train(model, save(tmp_path / "folded.pth", {"model": folded}))
    broken = {k: v for k, v in folded.items() if ".conv3." not in k}
    with pytest.raises(ValueError, match="x.pth leaves .* parameters of the backbone at random"):
        load_to_train(model, save(tmp_path / "x.pth", {"model": broken}))


@pytest.mark.parametrize("key", ["ema_state", "model_ema"])
def test_a_resumed_checkpoint_with_an_average_goes_on_with_the_model(key, tmp_path):
    """And with its iteration and optimizer; the average is nobody's business."""
    model, average = small_backbone(), small_backbone()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    content = {"model": model.state_dict(), key: average.state_dict(), "iteration": 77}
    file = save(tmp_path / "x.pth", {**content, "optimizer": optimizer.state_dict()})
    resumed = small_backbone()
    other = torch.optim.SGD(resumed.parameters(), 0.1)
    rest = WeightsCheckpointer(resumed, optimizer=other).load(file)
    assert rest["iteration"] == 77
    assert other.param_groups[0]["lr"] == 0.5
    assert torch.equal(resumed.stem.conv1_1.weight, model.stem.conv1_1.weight)


def test_old_detectron2_checkpoints(tmp_path):
    """Of the reference's wrapper: its names, the attention as matrices, and a whole training."""
    model = small_detector()
    old = {
        key: value.flatten(1) if ".conv2.fc" in key and value.ndim == 4 else value
        for key, value in model.state_dict().items()
    }
    content = {"model": old, "optimizer": {"state": {}}, "iteration": 90000}
    file = save(tmp_path / "old.pth", content)
    other = small_detector()
    assert load_weights(other, file) == []
    assert WeightsCheckpointer(other).load(file)["iteration"] == 90000
    assert convert(old).keys() == model.state_dict().keys()


class Wrapped(nn.Module):
    """A model whose names are those of another project's files."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleDict({"conv2": nn.Conv2d(3, 3, 3), "conv1": nn.Conv2d(3, 3, 1)})
        self.backbone = nn.ModuleDict({"layer1": nn.ModuleList([block])})
        self.backbone["conv1"] = nn.Conv2d(3, 3, 3)


def test_a_models_own_names_are_taken_as_they_are(tmp_path):
    model, other = Wrapped(), Wrapped()
    assert load_weights(other, save(tmp_path / "x.pth", {"model": model.state_dict()})) == []
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def test_queries(imagenet_file):
    assert open_weights(f"{imagenet_file}?matching_heuristics=True").by_suffix
    with pytest.raises(FileNotFoundError, match="there is no file .*x=1"):
        open_weights(f"{imagenet_file}?x=1")


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_weights_that_are_not_finite(imagenet, tmp_path, value):
    weights = {key: tensor.clone() for key, tensor in imagenet.items()}
    weights["layer2.0.conv1.weight"].view(-1)[3] = value
    file = save(tmp_path / "diverged.pth", weights)
    with pytest.raises(UnreadableError, match=r"diverged.pth: res3.0.conv1.weight has values that"):
        load_weights(small_backbone(), file)


def test_masks_may_be_infinite_weights_large_and_statistics_not_nan(tmp_path):
    def masked(mask):
        model = small_backbone()
        model.register_buffer("causal_mask", mask)
        return model

    model = masked(torch.full((4, 4), -float("inf")).triu(1))
    model.causal_mask[3, 0] = float("inf")  # the sum of both is NaN
    model.stem.conv1_1.weight.data.fill_(3e38)  # whose sum is infinite
    other = masked(torch.zeros(4, 4))
    assert load_weights(other, save(tmp_path / "x.pth", {"model": model.state_dict()})) == []
    assert torch.equal(other.causal_mask, model.causal_mask)
    require_finite(other, "a model")
    other.stem.conv1_1.norm.running_mean[0] = float("nan")
    with pytest.raises(UnreadableError, match="a model: stem.conv1_1.norm.running_mean has values"):
        require_finite(other, "a model")


@pytest.fixture
def warnings_anew():
    """Each is logged once in a process."""
    _LOG_COUNTER.clear()


RGB = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.68, 116.779, 103.939]]
RGB += ["MODEL.PIXEL_STD", [58.393, 57.12, 57.375]]


@pytest.mark.usefixtures("warnings_anew")
@pytest.mark.parametrize(
    ("weights", "opts", "is_warned"),
    [
        ("timm://resnest50d.in1k", [*RGB, "MODEL.PIXEL_STD", [1.0] * 3], True),
        ("/data/resnest50-528c19ca.pth", [], True),
        ("resnest://ImageNet/resnest50", RGB, False),
        ("converted.pth", [], True),
        ("converted.pth", [*RGB, "INPUT.FORMAT", "BGR"], True),
        ("converted.pth", RGB, False),
        ("", [], False),
    ],
)
def test_builders_warn_of_detectron2s_own_colours(weights, opts, is_warned, caplog):
    """Every project calls them, and loads files by a checkpointer that knows no colours."""
    cfg = make_cfg(*SMALL, "MODEL.WEIGHTS", weights, *opts)
    for _ in range(2):
        resnest_d2.build_resnest_backbone(cfg, image_shape())
    words = "published ResNeSt weights, and files converted"
    lines = [m for m in caplog.messages if words in m]
    assert len(lines) == is_warned


@pytest.mark.usefixtures("warnings_anew")
def test_the_loader_knows_the_colours_of_ones_own_model(caplog):
    small_detector("INPUT.FORMAT", "BGR", "MODEL.WEIGHTS", "own.pth")
    assert "published ResNeSt weights" not in caplog.text


@pytest.mark.usefixtures("warnings_anew")
def test_a_trained_model_remembers_its_colours(tmp_path, caplog):
    weights = small_detector(*RGB).state_dict()
    images = {"channels": "RGB", "mean": [123.68, 116.779, 103.939], "std": RGB[-1]}
    file = save(tmp_path / "x.pth", {"model": weights, "input": images})
    load_weights(small_detector(*RGB), file)
    assert "made for" not in caplog.text
    load_weights(small_detector(*RGB, "INPUT.FORMAT", "BGR"), file)
    assert f"{file} was made for RGB with mean 123.68" in caplog.text
    assert "are those of BGR with mean 123.68" in caplog.text


def test_what_is_known_of_colours_is_what_the_files_were_trained_with():
    """Torchvision's constants, and those in the published configs."""
    known = catalog.find("timm://resnest14d.gluon_in1k").input_format
    assert known.mean == pytest.approx([255 * value for value in IMAGENET_DEFAULT_MEAN])
    assert known.std == pytest.approx([255 * value for value in IMAGENET_DEFAULT_STD])
    for name in filter(model_zoo.published, model_zoo.names()):
        cfg = model_zoo.get_config(name)
        known = catalog.find(f"resnest://COCO/{name}").input_format
        found = (known.channels, list(known.mean), list(known.std))
        assert found == (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_converted_file_knows_its_colours_and_fits_other_projects(
    tmp_path, ending, caplog, capsys
):
    """Timm's names on disk; every tensor but counters gets there by Detectron2's own loader."""
    network = create_model("resnest14d")
    save(tmp_path / "timm.pth", network.state_dict())
    target = tmp_path / f"converted.{ending}"
    assert convert_command([str(tmp_path / "timm.pth"), str(target)]) == 0
    shown = f"MODEL.WEIGHTS '{target}?matching_heuristics=True'"
    assert (shown in capsys.readouterr().out) == (ending == "safetensors")
    model = small_detector(
        "MODEL.RESNETS.WIDTH_PER_GROUP", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256
    )
    file = f"{target}?matching_heuristics=True" if ending == "safetensors" else str(target)
    DetectionCheckpointer(model).load(file)
    loaded = model.backbone.bottom_up.state_dict()
    converted = open_weights(target)
    assert str(converted.input_format).startswith("RGB with mean 123.675")
    expected = converted.weights
    assert len([k for k in loaded if k in expected]) == len(loaded)
    for name in (key for key in loaded if not key.endswith("num_batches_tracked")):
        assert torch.equal(loaded[name], expected[name]), name


class Company(PathHandler):
    """An address that only a handler of the user's can open."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer, self.asked = answer, []

    def _get_supported_prefixes(self):
        return ["https://", "company://"]

    def _get_local_path(self, path, force=False, **kwargs):
        self.asked.append(path)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def company(monkeypatch):
    def register(answer):
        monkeypatch.setattr(PathManager, "_path_handlers", dict(PathManager._path_handlers))
        handler = Company(answer)
        PathManager.register_handler(handler, allow_override=True)
        return handler

    return register


@pytest.mark.parametrize("address", ["https://a.example/w.pth?token=a%2F1", "company://a/w.pth"])
def test_an_address_goes_through_the_users_handler(address, imagenet_file, company):
    handler = company(imagenet_file)
    assert load_weights(small_backbone(), address) == []
    assert handler.asked == [address]


@pytest.mark.parametrize(
    ("error", "expected"), [(RuntimeError("a defect"), RuntimeError), (OSError("it"), FetchError)]
)
def test_what_the_users_handler_raises(error, expected, company):
    """Only what tells of the web or the disk is ours to put into a sentence."""
    company(error)
    with pytest.raises(expected, match=str(error)):
        open_weights("https://a.example/w.pth")


def test_an_error_inside_a_users_backbone_keeps_its_traceback():
    """It is not taken for a setting that does not fit."""

    def build_their_backbone(cfg, input_shape):
        return {1: "a"}[cfg.MODEL.BACKBONE.FREEZE_AT]

    BACKBONE_REGISTRY.register(build_their_backbone)
    try:
        with pytest.raises(KeyError) as error:
            build_detector(make_cfg("MODEL.BACKBONE.NAME", "build_their_backbone"))
        assert type(error.value) is KeyError
        assert error.value.args == (2,)
    finally:
        BACKBONE_REGISTRY._obj_map.pop("build_their_backbone")


def test_grey_and_many_channels_answer_equal_channels_as_colours(tmp_path, caplog):
    model = small_backbone().eval()
    file = save(tmp_path / "colours.pth", {"model": model.state_dict()})
    image = torch.rand(1, 1, 64, 64)
    expected = model(image.expand(-1, 3, -1, -1))
    for channels in (1, 4):
        other = small_backbone(channels).eval()
        assert load_weights(other, file) == []
        found = other(image.expand(-1, channels, -1, -1))
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
        assert f"summed and divided among {channels}, in stem.conv1_1.weight" in caplog.text
