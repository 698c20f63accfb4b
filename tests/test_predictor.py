"""The predictor: what it takes, and what its results give."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import supervision
import torch
from commands import run_command
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils.file_io import PathHandler, PathManager
from helpers import make_cfg, randomize
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage
from server import Server, content
from test_predict import Camera

from resnest_d2 import Predictor, model_zoo
from resnest_d2.commands.predict import inputs, main, make_parser
from resnest_d2.config import InputError
from resnest_d2.config.load import load_config
from resnest_d2.data.mapper import Mapper
from resnest_d2.export import export_model
from resnest_d2.inference import Outputs, predict_inputs
from resnest_d2.inference.result import Result
from resnest_d2.inference.sources import Video, each_picture
from resnest_d2.inference.tiles import predict_tiles
from resnest_d2.modeling.detector import build_detector
from resnest_d2.weights import UntrainedParametersError
from resnest_d2.weights import files as files_of_weights

SMALL = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64, "TEST.DETECTIONS_PER_IMAGE", 5]
SMALL += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RPN.POST_NMS_TOPK_TEST", 20]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint that holds its config, in an output folder; its weights are drawn."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(SMALL)
    model = build_detector(cfg)
    randomize(model)
    names = {"thing_classes": [f"digit {n}" for n in range(10)]}
    content = {"model": model.state_dict(), "classes": names, "config": cfg.dump()}
    torch.save(content, folder / "model_final.pth")
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


@pytest.fixture
def files(tmp_path, pixels):
    """Two pictures and a text in a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[:, ::-1]).save(folder / "b.png")
    (folder / "notes.txt").touch()
    return folder


def boxes(result):
    return result.instances.pred_boxes.tensor


def test_a_picture_of_any_kind_gives_the_same(predictor, files, pixels):
    expected = predictor(pixels)
    assert len(expected.instances) == 5
    kinds = {
        "path": files / "a.png",
        "text": str(files / "a.png"),
        "pillow": Image.fromarray(pixels),
        "palette or alpha": Image.fromarray(pixels).convert("RGBA"),
    }
    for kind, source in kinds.items():
        found = predictor(source)
        assert torch.equal(boxes(found), boxes(expected)), kind
        assert np.array_equal(found.image, pixels)
    swapped = predictor(np.ascontiguousarray(pixels[:, :, ::-1]), color="BGR")
    assert torch.equal(boxes(swapped), boxes(expected))
    assert predictor(files / "a.png").source == files / "a.png"


def test_an_address_goes_through_detectron2s_path_manager(predictor, files, pixels, tmp_path):
    """So that a handler of the user's counts, of one that needs a password for example."""

    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["secret://"]

        def _open(self, path, mode="r", **kwargs):
            return open(files / path.removeprefix("secret://"), mode)

    PathManager.register_handler(Handler(), allow_override=True)
    assert np.array_equal(predictor("secret://a.png").image, pixels)
    with pytest.raises(InputError, match="secret://notes.txt cannot be read as a picture"):
        predictor("secret://notes.txt")


def test_an_address_of_the_web(predictor, files, pixels, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    server = Server()
    server.answers = {"a.png": content((files / "a.png").read_bytes())}
    with server.running():
        assert np.array_equal(predictor(f"{server.url}a.png").image, pixels)
        with pytest.raises(InputError, match=rf"{server.url}c.png cannot be read .*404"):
            predictor(f"{server.url}c.png")


def test_several_pictures(predictor, files, pixels):
    expected = [boxes(predictor(files / name)) for name in ("a.png", "b.png")]
    assert not torch.equal(*expected)
    found = predictor([files / "a.png", np.ascontiguousarray(pixels[:, ::-1])])
    assert isinstance(found, list)
    for source in (files, str(files), (path for path in sorted(files.glob("*.png")))):
        stream = predictor(source)
        assert iter(stream) is stream
        found = [*found, *stream]
    assert len(found) == 8
    for number, result in enumerate(found):
        assert torch.equal(boxes(result), expected[number % 2])


def test_a_batch_gives_what_its_pictures_give(predictor, pixels):
    images = [np.ascontiguousarray(np.roll(pixels, n, axis=1)) for n in range(5)]
    calls = []
    hook = predictor.model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    batched = predictor(images, batch_size=2)
    hook.remove()
    assert calls == [2, 2, 1]
    for image, result in zip(images, batched, strict=True):
        alone = predictor(image)
        assert torch.allclose(boxes(result), boxes(alone), atol=1e-3)
        assert torch.allclose(result.instances.scores, alone.instances.scores, atol=1e-5)


def make_video(path, frames, rate=10):
    with supervision.VideoSink(str(path), supervision.VideoInfo(64, 48, rate), "MJPG") as sink:
        for frame in frames:
            sink.write_frame(frame)


def test_a_video(predictor, tmp_path):
    path = tmp_path / "clip.avi"
    make_video(path, [np.full((48, 64, 3), (255, 0, 0), np.uint8)] * 3)  # blue, in OpenCV's order
    results = list(predictor(path, batch_size=2))
    assert [result.source for result in results] == [0, 1, 2]
    assert results[0].image[..., 2].mean() > 240
    assert results[0].image[..., 0].mean() < 15


def test_a_folder_with_a_bad_picture(predictor, files, caplog):
    """It is named and left out, as by the command; what is listed must be readable."""
    (files / "aa.png").write_bytes((files / "a.png").read_bytes()[:60])
    (files / "ab.png").symlink_to(files / "nowhere.png")
    (files / "ac.mp4").touch()
    results = list(predictor(files))
    assert [result.source.name for result in results] == ["a.png", "b.png"]
    for name, reason in (("aa.png", "cannot be read as a picture"), ("ab.png", "there is no file")):
        assert f"Skipped {files / name}: {reason}" in caplog.text
    assert f"Skipped {files / 'ac.mp4'}: cannot be read as a video" in caplog.text
    for source in ([files / "a.png", files / "aa.png"], iter([files / "aa.png"]), files / "aa.png"):
        with pytest.raises(InputError, match=r"aa\.png cannot be read as a picture"):
            list(predictor(source))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"expected an RGB image \(H, W, 3\) uint8, got \(4, 4\)"),
        (np.zeros((4, 4, 3)), r"got \(4, 4, 3\) float64"),
        (5, "a int holds no pictures"),
        ([3], "a int holds no pictures"),
        (Image.new("F", (4, 4)), "its pixels are floating-point numbers of 32 bits"),
        ("absent.png", "absent.png"),
        ("absent.mp4", "there is no file or folder absent.mp4"),
    ],
)
def test_wrong_sources(predictor, source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predictor(source)


def test_wrong_options(predictor, checkpoint, pixels, tmp_path):
    with pytest.raises(ValueError, match='color must be "RGB" or "BGR", got \'RBG\''):
        predictor(pixels, color="RBG")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        predictor([pixels], batch_size=0)
    with pytest.raises(
        ValueError, match="optimize must be one of False, True, 'compile', got 'yes'"
    ):
        Predictor(checkpoint, optimize="yes")
    with pytest.raises(ValueError, match="--tile must be at least 32, got 4"):
        Predictor(checkpoint, tile=4)
    with pytest.raises(ValueError, match="--overlap must be between 0 and 0.9, got 1"):
        Predictor(checkpoint, tile=64, overlap=1)
    with pytest.raises(FileNotFoundError, match="holds no image or video"):
        predictor(tmp_path)


def test_what_a_predictor_is_made_of(checkpoint, predictor, pixels, tmp_path):
    expected = boxes(predictor(pixels))
    config = tmp_path / "model.yaml"
    config.write_text(torch.load(checkpoint, weights_only=True)["config"])
    small = ["INPUT.MIN_SIZE_TEST", 64, *SMALL]
    made = [
        Predictor(checkpoint.parent, device="cpu"),
        Predictor(weights=checkpoint),
        Predictor(options=["MODEL.WEIGHTS", checkpoint]),
        Predictor(str(config), weights=checkpoint),
        Predictor(checkpoint, config_file=str(config)),
        Predictor(load_config(str(config)), weights=checkpoint),
        Predictor("mask_resnest14_digits", weights=checkpoint, options=small),
        Predictor(checkpoint, device=torch.device("cpu")),
    ]
    for number, one in enumerate(made):
        assert torch.equal(boxes(one(pixels)), expected), number
        assert one.metadata.thing_classes[3] == "digit 3"
    optimized = boxes(Predictor(checkpoint, optimize=True)(pixels))
    assert torch.allclose(optimized, expected, atol=1e-2)
    absent = ["MODEL.WEIGHTS", "absent.pth"]  # counts, as the command line does
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        Predictor(checkpoint, options=absent)
    with pytest.raises(InputError, match="config_file is another: leave one of them out"):
        Predictor(str(config), config_file=str(config))


def test_a_config_that_is_named_is_taken_as_it_stands(checkpoint, pixels, caplog):
    """Not the settings that the checkpoint was trained with, which one warning lists."""
    own = Predictor(checkpoint)
    assert own.augmentation.short_edge_length == [64, 64]
    named = Predictor("mask_resnest14_digits", weights=checkpoint)
    cfg = model_zoo.get_config("mask_resnest14_digits")
    assert named.augmentation.short_edge_length == [cfg.INPUT.MIN_SIZE_TEST] * 2
    assert "INPUT.MIN_SIZE_TEST" in caplog.text
    with pytest.raises(UntrainedParametersError, match="box_predictor.*has shape"):
        Predictor("mask_resnest50", weights=checkpoint, options=["MODEL.RESNETS.DEPTH", 14])


def test_options_need_not_be_text(checkpoint, pixels):
    for two in (2, "2"):
        low = Predictor(checkpoint, options=["TEST.DETECTIONS_PER_IMAGE", two])
        assert len(low(pixels)) == 2
    cfg = load_config(model_zoo.get_config_file("mask_resnest14_digits"), list(map(str, SMALL)))
    low = Predictor(cfg, weights=checkpoint, options=["TEST.DETECTIONS_PER_IMAGE", 2])
    assert len(low(pixels)) == 2
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 5
    with pytest.raises(InputError, match="options must be pairs"):
        Predictor(checkpoint, options=["TEST.DETECTIONS_PER_IMAGE"])


def test_a_device_that_is_asked_for_must_be_there(checkpoint, caplog):
    """Only what a config says by default may fall back to the CPU."""
    for device in ("gpu", "mps"):
        with pytest.raises(InputError, match=f"device '{device}' is no device of PyTorch, or not"):
            Predictor(checkpoint, device=device)
    for asked in ({"device": "cuda"}, {"options": ["MODEL.DEVICE", "cuda"]}):
        with pytest.raises(InputError, match="device 'cuda' was asked for, and no GPU was found"):
            Predictor(checkpoint, **asked)
    model = Predictor(checkpoint).model
    assert "No GPU: running on the CPU" in caplog.text
    with pytest.raises(InputError, match="device 'cuda' was asked for"):
        Predictor(model, device="cuda")


def test_a_model_that_somebody_instantiated(checkpoint, predictor, pixels):
    """In Detectron2's format, such as those that a LazyConfig describes."""
    cfg = load_config(model_zoo.get_config_file("mask_resnest14_digits"), list(map(str, SMALL)))
    model = build_detector(cfg)
    names = [f"digit {n}" for n in range(10)]
    resize = T.ResizeShortestEdge([64, 64], 1333)
    made = Predictor(model, weights=checkpoint, classes=names, augmentation=resize, device="cpu")
    assert not model.training
    assert made.input_format == "RGB"
    result = made(pixels)
    assert torch.equal(boxes(result), boxes(predictor(pixels)))
    assert result.names == predictor(pixels).names
    with pytest.raises(InputError, match="built cannot be changed: config_file and options must"):
        Predictor(model, config_file="x.yaml", options=["A", "b"])
    assert Predictor(model).augmentation.max_size == 1333


@pytest.mark.slow
def test_an_exported_file(checkpoint, predictor, pixels, tmp_path):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "model.onnx"
    export_model(predictor, file, [np.tile(pixels, (2, 2, 1))])
    exported = Predictor(file)
    large = np.tile(pixels, (3, 3, 1))
    expected, found = predictor(large), exported(large)
    assert found.names == expected.names
    ids = [[one["category_id"] for one in result.to_coco()] for result in (found, expected)]
    assert ids[0] == ids[1]
    assert torch.allclose(boxes(found), boxes(expected), atol=0.1)
    assert (found.instances.pred_masks != expected.instances.pred_masks).float().mean() < 1e-2
    exported.set_score_threshold(expected.instances.scores[2].item() - 1e-4)
    assert 3 <= len(exported(large).instances) <= 5


def test_what_an_exported_file_tells_counts(checkpoint, predictor, pixels, tmp_path, monkeypatch):
    class Exported:
        """The interface of export.ExportedModel, exported at a threshold of 0.3."""

        metadata = SimpleNamespace(
            classes=["a", "b"],
            category_ids=[7, 3],
            input_format="BGR",
            min_size=64,
            max_size=100,
            score_threshold=0.3,
        )

        def __call__(self, inputs):
            self.seen = inputs[0]["image"].numpy()
            (output,) = Camera()(inputs)
            output["instances"].pred_classes[:] = 1
            return [output]

        def set_score_threshold(self, threshold):
            if threshold < 0.3:
                raise InputError("exported with 0.3")
            self.threshold = threshold

    monkeypatch.setattr("resnest_d2.export.load_exported", lambda file: Exported())
    made = Predictor("model.onnx")
    result = made(pixels)
    assert made.model.seen.shape == (3, 64, 85)
    assert np.abs(made.model.seen[2].mean() - pixels[..., 0].mean()) < 2  # BGR
    assert [one["category_id"] for one in result.to_coco()] == [3]
    made.set_score_threshold(0.1, only_raise=True)
    assert made.model.threshold == 0.3
    with pytest.raises(InputError, match="exported with 0.3"):
        made.set_score_threshold(0.2)
    with pytest.raises(InputError, match="exported as it is and cannot be changed: weights and h"):
        Predictor("model.onnx", weights="x.pth", half=True)


def test_an_exported_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*absent.onnx"):
        Predictor(tmp_path / "absent.onnx")


def test_a_name_takes_the_weights_that_were_published(monkeypatch):
    class Asked(Exception):
        pass

    def ask(path):
        raise Asked(path)

    monkeypatch.setattr("resnest_d2.inference.predictor.open_weights", ask)
    with pytest.raises(Asked, match="^resnest://COCO/mmdet/mask_resnest50$"):
        Predictor("mmdet/mask_resnest50")


def test_the_checkpoint_is_read_once(checkpoint, pixels, monkeypatch):
    read = files_of_weights.read_checkpoint
    paths = []

    def count(path, *args):
        paths.append(path)
        return read(path, *args)

    monkeypatch.setattr("resnest_d2.weights.loading.read_checkpoint", count)
    assert Predictor(checkpoint)(pixels).to_coco()
    assert paths == [str(checkpoint)]


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="no model 'mask_resnest5'; did you mean"):
        Predictor("mask_resnest5")
    with pytest.raises(ValueError, match="no checkpoint of 'mask_resnest14' was published"):
        Predictor("mask_resnest14")
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        Predictor("absent.pth")
    with pytest.raises(ValueError, match="must hold model_final.pth or one file of weights, has n"):
        Predictor(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / name)
    with pytest.raises(ValueError, match="or one file of weights, has a.pth, b.pth"):
        Predictor(tmp_path)
    with pytest.raises(ValueError, match="a.pth holds no config"):
        Predictor(tmp_path / "a.pth")


def test_results_as_coco(predictor, pixels):
    result = predictor(pixels)
    found = result.to_coco(7)
    instances = result.instances
    assert len(found) == 5
    for index, entry in enumerate(found):
        left, top, right, bottom = boxes(result)[index].tolist()
        assert entry["image_id"] == 7
        assert entry["bbox"] == pytest.approx([left, top, right - left, bottom - top])
        assert entry["category_id"] == instances.pred_classes[index]
        assert entry["score"] == pytest.approx(instances.scores[index].item())
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        assert np.array_equal(mask, instances.pred_masks[index].numpy())
    json.dumps(found)
    ids = {f"digit {n}": 100 + n for n in range(10)}
    numbers = [entry["category_id"] for entry in result.to_coco(7, ids)]
    assert numbers == [100 + n for n in instances.pred_classes.tolist()]
    with pytest.raises(ValueError, match="class 'digit .' is not among the categories cat"):
        result.to_coco(7, {"cat": 1})


def test_results_as_supervision(predictor, pixels, monkeypatch):
    result = predictor(pixels)
    detections = result.to_supervision()
    assert np.array_equal(detections.xyxy, boxes(result).numpy())
    assert list(detections.data["class_name"]) == result.names
    assert detections.mask.shape == (5, 48, 64)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"needs supervision, .*resnest_d2\[draw\]"):
        result.to_supervision()


def test_results_of_a_threshold_drawn_and_cut_out(predictor, pixels, tmp_path):
    result = predictor(pixels)
    scores = result.instances.scores
    kept = result.above(scores[1].item())
    assert torch.equal(kept.instances.scores, scores[:2])
    assert len(result.instances) == 5
    path = kept.save(tmp_path / "new" / "drawn.png", scale=2)
    for name in ("drawn", "drawn.mp4", "drawn.psd"):
        with pytest.raises(ValueError, match=f"is written to a picture, .png for .*{name}$"):
            kept.save(tmp_path / name)
    with pytest.raises(OSError, match=f"cannot make the folder {path}: "):
        kept.save(path / "drawn.png")
    assert Image.open(path).size == (128, 96)
    assert (kept.plot() != pixels).any()
    assert np.array_equal(result.above(1.1).plot(), pixels)
    sizes = [crop.size for crop in kept.crops()]
    for (width, height), box in zip(sizes, boxes(kept).tolist(), strict=True):
        assert width >= int(box[2] - box[0])
        assert height >= int(box[3] - box[1])
    with pytest.raises(ValueError, match="the model finds no instances; its output has sem_seg"):
        _ = Result({"sem_seg": 1}, pixels, result.metadata).instances


def test_a_result_is_as_long_as_its_instances(predictor, pixels):
    result = predictor(pixels)
    assert len(result) == 5
    assert result
    none = result.above(1.1)
    assert len(none) == 0
    assert not none
    assert "instances" in result
    assert result["instances"] is result.instances
    assert len(Result({"sem_seg": 1}, pixels, result.metadata)) == 0
    with pytest.raises(TypeError, match="not iterable"):
        iter(result)
    assert repr(none) == "<Result of None: 0 instances in instances>"


def red_things(image):
    """Finds what is pure red, each connected part with its mask; RGB must come in."""
    labels, number = ndimage.label((image == (255, 0, 0)).all(-1))
    masks = torch.from_numpy(np.stack([labels == n for n in range(number + 1)])[1:])
    instances = Instances(image.shape[:2])
    found = [m.nonzero() for m in masks]
    corners = [[*f.amin(0).flip(0), *(f.amax(0).flip(0) + 1)] for f in found]
    instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.full((number,), 0.9)
    instances.pred_classes = torch.zeros(number, dtype=torch.int64)
    instances.pred_masks = masks
    return {"instances": instances}


def test_tiles_see_the_colours_and_are_put_together():
    """One red square in a tile, a ring over the border of tiles, and a blue square."""
    image = np.zeros((200, 300, 3), np.uint8)
    image[10:30, 10:30] = image[70:130, 70:130] = (255, 0, 0)
    image[95:105, 95:105] = 0
    image[150:170, 200:230] = (0, 0, 255)
    shapes = []

    def model(part):
        shapes.append(part.shape[:2])
        return red_things(part)

    found = predict_tiles(model, image, 100, 0.2)["instances"]
    assert set(shapes) == {(100, 100), (200, 300)}
    expected = red_things(image)["instances"]
    assert len(found) == 2
    for box, mask in zip(expected.pred_boxes.tensor, expected.pred_masks, strict=True):
        (at,) = (found.pred_boxes.tensor == box).all(1).nonzero().flatten().tolist()
        assert torch.equal(found.pred_masks[at], mask)  # to the pixel, with its hole
    none = predict_tiles(red_things, image * 0, 100, 0.2)["instances"]
    assert len(none) == 0
    assert none.pred_masks.shape == (0, 200, 300)


@pytest.mark.parametrize("with_masks", [True, False])
def test_a_merged_detection_has_the_score_of_its_best_piece(with_masks):
    """Not a mean, which many doubtful pieces would pull down."""
    image = np.zeros((150, 150, 3), np.uint8)
    image[20:80, 20:80] = (255, 0, 0)

    def model(part):
        found = red_things(part)["instances"]
        found.scores[:] = 0.9 if part.shape[:2] == (150, 150) else 0.1
        if not with_masks:
            found.remove("pred_masks")
        return {"instances": found}

    found = predict_tiles(model, image, 100, 0.5)["instances"]
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.pred_boxes.tensor.tolist() == [[20, 20, 80, 80]]


def test_tiles_keep_classes_apart_and_the_best_first():
    image = np.zeros((150, 150, 3), np.uint8)

    def model(part):
        instances = Instances(part.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 20, 20]] * 2))
        instances.scores, instances.pred_classes = torch.tensor([0.3, 0.6]), torch.tensor([0, 1])
        return {"instances": instances}

    found = predict_tiles(model, image, 100, 0)["instances"]
    assert found.scores.tolist() == pytest.approx([0.6] * 4 + [0.3] * 4)
    assert found.pred_classes.tolist() == [1] * 4 + [0] * 4


def test_a_predictor_of_tiles(checkpoint, pixels, monkeypatch):
    large = np.tile(pixels, (2, 2, 1))
    result = Predictor(checkpoint, tile=64)(large)
    assert result.instances.pred_masks.shape[1:] == (96, 128)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'resnest_d2\[draw\]'"):
        Predictor(checkpoint, tile=64)


def test_sources_are_read_as_they_come(files):
    listed = each_picture([files / "a.png", files / "b.png"])
    name, _ = next(listed)
    assert name == files / "a.png"
    (files / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*b\.png"):
        next(listed)


def test_json_of_the_command_is_that_of_evaluation(checkpoint, registered_digits, tmp_path):
    """Detections, ids and classes, with --input-json; boxes of what Detectron2 writes."""
    root = registered_digits / "digits"
    content = json.loads((root / "annotations/digits_val.json").read_text())
    for category in content["categories"]:
        category["name"] = f"digit {category['name']}"
    (tmp_path / "val.json").write_text(json.dumps(content))
    result = run_command(
        *("predict", "--input", root / "val", "--input-json", tmp_path / "val.json"),
        *("--output", tmp_path / "out", "--json", tmp_path / "results.json", "--json-per-image"),
        *("--save-crops", "--batch-size", 2, "--opts", "MODEL.WEIGHTS", checkpoint),
    )
    assert result.returncode == 0, result.stderr
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.merge_from_list(SMALL)
    model = build_detector(cfg).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    MetadataCatalog.get("digits_val")
    evaluator = COCOEvaluator("digits_val", output_dir=str(tmp_path / "evaluated"))
    mapper = Mapper(cfg, is_train=False)
    loader = build_detection_test_loader(cfg, "digits_val", mapper=mapper, num_workers=0)
    inference_on_dataset(model, loader, evaluator)

    def comparable(path):
        entries = json.loads(path.read_text())
        found = [
            (e["image_id"], e["category_id"], round(e["score"], 4), *(round(v) for v in e["bbox"]))
            for e in entries
        ]
        return sorted(found)

    written = comparable(tmp_path / "results.json")
    assert len(written) == 15
    assert written == comparable(tmp_path / "evaluated/coco_instances_results.json")
    pictures = sorted(path.name for path in (root / "val").iterdir())
    drawn = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file())
    assert [name for name in drawn if not name.endswith(".json")] == pictures
    per_image = [json.loads(p.read_text()) for p in sorted((tmp_path / "out").glob("*.json"))]
    assert sum(len(one["annotations"]) for one in per_image) == 15
    assert Path(per_image[0]["file_name"]).is_file()


def test_the_command_refuses(checkpoint, files, tmp_path, capsys):
    def line(*arguments):
        words = ["--input", files, "--output", tmp_path / "out", *arguments]
        with pytest.raises(SystemExit) as raised:
            main([*map(str, words), "--opts", "MODEL.WEIGHTS", str(checkpoint)])
        assert raised.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "--no-draw leaves nothing to write: add --json FILE" in line("--no-draw")
    assert "--batch-size must be at least 1, got 0" in line("--batch-size", 0)
    assert "absent.json" in line("--input-json", "absent.json")
    assert "notes.txt" in line("--json", files / "notes.txt/results.json")
    assert "--tile must be at least 32" in line("--tile", 0)


def test_json_of_classes_that_the_annotation_file_lacks(predictor, pixels, tmp_path, caplog):
    """They are left out, with a warning; the others stay."""
    result = predictor(pixels)
    name = result.names[0]
    others = set(result.names) - {name}
    outputs = Outputs(tmp_path, draw=False, json=tmp_path / "r.json", category_ids={name: 9})
    outputs.check_model(predictor)
    assert "Detections of 9 classes that --input-json lacks are not in the JSON" in caplog.text
    outputs.add(result, tmp_path / "x.png", None)
    assert [entry["category_name"] for entry in outputs.results] == [
        one for one in result.names if one not in others
    ]
    assert {entry["category_id"] for entry in outputs.results} == {9}
    outputs.category_ids = {"cat": 1}
    with pytest.raises(ValueError, match=r"none of the model's classes \(digit 0, .*it has cat"):
        outputs.check_model(predictor)


def test_inputs_are_not_overwritten(checkpoint, files, tmp_path, capsys):
    inputs = (files / "a.png", tmp_path / "a.json", tmp_path / "v_annotations.json")
    for path in inputs[1:]:
        path.write_text("{}")
    contents = {path: path.read_bytes() for path in inputs}
    for options, message in (
        (["--json", files / "a.png"], "a.png is an input and would be overwritten"),
        (["--json", tmp_path / "a.json", "--input-json", tmp_path / "a.json"], "a.json is --input"),
        (  # where the repaired annotations would go
            ["--json", tmp_path / "v.json", "--input-json", tmp_path / "v_annotations.json"],
            "v_annotations.json is --input-json's file and would be overwritten",
        ),
        (["--overlap", 0.5], "--overlap is of tiles: add --tile PIXELS"),
    ):
        words = ["--input", files, "--output", tmp_path / "out", *options]
        with pytest.raises(SystemExit) as raised:
            main([*map(str, words), "--opts", "MODEL.WEIGHTS", str(checkpoint)])
        assert raised.value.code == 2
        assert message in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in contents.items())


def test_json_is_not_another_output(files, tmp_path):
    outputs = Outputs(tmp_path, per_image=True, json=tmp_path / "clip_1.json")
    with pytest.raises(ValueError, match="clip_1.json is one of --json-per-image: take another"):
        outputs.check([files / "clip.mp4", files / "clip_1.png"])


def test_names_that_differ_in_their_endings_have_json_of_their_own(predictor, files, tmp_path):
    with Image.open(files / "a.png") as image:
        image.save(files / "a.jpg")
    outputs = Outputs(tmp_path / "out", per_image=True, crops=True)
    inputs = [files / "a.jpg", files / "a.png"]
    assert predict_inputs(predictor, inputs, outputs) == []
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert names == {"a.jpg", "a.json", "a_2.png", "a_2.json"}
    many = len(predictor(inputs[0]).instances) + len(predictor(inputs[1]).instances)
    assert len(list((tmp_path / "out/crops").rglob("*.png"))) == many


def test_a_run_that_is_interrupted_leaves_its_json(predictor, files, tmp_path, monkeypatch):
    run, calls = predictor.run, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(predictor, "run", interrupted)
    outputs = Outputs(tmp_path / "out", draw=False, json=tmp_path / "r.json")
    with pytest.raises(KeyboardInterrupt):
        predict_inputs(predictor, [files / "a.png", files / "b.png"], outputs)
    found = json.loads((tmp_path / "r.json").read_text())
    assert {Path(one["file_name"]).name for one in found} == {"a.png"}


def test_a_picture_that_is_one_tile(checkpoint, predictor, pixels):
    assert torch.equal(boxes(Predictor(checkpoint, tile=5000)(pixels)), boxes(predictor(pixels)))


def test_sources_that_are_no_pictures(predictor, pixels):
    for source, message in (
        (torch.zeros(3, 9, 9), "a Tensor holds no pictures"),
        (np.zeros((0, 9, 3), np.uint8), "expected an RGB image .* got .0, 9, 3. uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor(source)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got '2'"):
        predictor([pixels], batch_size="2")


def test_a_list_of_images_without_annotations(files, tmp_path, caplog):
    """COCO's test sets; ids that are no numbers are numbered, in a file that results fit."""
    names = sorted(path.name for path in files.iterdir())[:2]
    content = {
        "images": [{"id": f"x{n}", "file_name": name} for n, name in enumerate(names)],
        "categories": [{"id": 5, "name": "Digit 0 "}, {"id": 9, "name": "Digit 0 "}],
    }
    (tmp_path / "test.json").write_text(json.dumps(content))
    words = ["--input", files, "--output", tmp_path, "--input-json", tmp_path / "test.json"]
    args = make_parser().parse_args(map(str, [*words, "--json", tmp_path / "r.json"]))
    found, outputs, unreadable = inputs(args)
    assert not unreadable
    assert [path.name for path in found] == names
    assert list(outputs.image_ids.values()) == [1, 2]
    written = tmp_path / "r_annotations.json"
    repaired = json.loads(written.read_text())
    assert [image["id"] for image in repaired["images"]] == [1, 2]
    assert repaired["categories"] == [{"id": 5, "name": "Digit 0 "}]  # a name has one id in results
    (files / names[0]).write_text("")
    found, _, (problem,) = inputs(args)
    assert len(found) == 1
    assert problem.startswith(f"{files / names[0]} cannot be read as a picture")
    outputs.check_model(
        SimpleNamespace(finds_instances=True, metadata={"thing_classes": ["digit 0"]})
    )
    assert outputs.category_ids["digit 0"] == 5
    assert "lacks" not in caplog.text


def test_a_video_that_was_cut_short_is_named(predictor, tmp_path, caplog):
    path, rng = tmp_path / "clip.avi", np.random.default_rng(0)
    make_video(path, rng.integers(0, 255, (20, 48, 64, 3), np.uint8))
    video = Video(path)
    assert video.rate == 10
    video.frames = 21  # as a file whose sound is a little longer says
    assert len(list(video)) == 20
    assert not video.is_cut
    assert "damaged" not in caplog.text
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < len(list(predictor(path))) < 20
    assert "clip.avi is damaged: only" in caplog.text


@pytest.mark.parametrize("option", ["--json", "--json-per-image", "--save-crops"])
def test_a_semantic_model_has_nothing_for_json(option, files, tmp_path, capsys, monkeypatch):
    """It is refused before anything is computed."""
    cfg = make_cfg("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.RESNETS.DEPTH", 14)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_resnest_fpn_backbone"])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 64, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    words = ["--input", files, "--output", tmp_path / "out", "--allow-untrained"]
    words += ["--config-file", tmp_path / "config.yaml"]
    assert main(list(map(str, words))) == 0
    assert (tmp_path / "out/a.png").is_file()
    monkeypatch.setattr(Predictor, "run", lambda *args: pytest.fail("computed"))
    value = [tmp_path / "r.json"] if option == "--json" else []
    index = words.index("--config-file")
    with pytest.raises(SystemExit) as raised:
        main([str(word) for word in [*words[:index], option, *value, *words[index:]]])
    assert raised.value.code == 2
    assert "finds no instances: it can be drawn, and --json" in capsys.readouterr().err


def test_tiles_of_a_model_without_instances(pixels):
    with pytest.raises(ValueError, match="--tile is for models of boxes and masks"):
        predict_tiles(lambda image: {"sem_seg": 0}, pixels, 32, 0.2)
