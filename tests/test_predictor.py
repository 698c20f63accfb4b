"""The predictor: what it takes and is made of, tiles, and what its results give."""

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import supervision
import torch
from commands import run_python
from detectron2.data import Metadata
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from detectron2.utils.file_io import PathHandler, PathManager
from helpers import make_cfg
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage
from test_predict import Camera

from resnest_d2 import Predictor, model_zoo
from resnest_d2.config import InputError
from resnest_d2.config.load import load_config
from resnest_d2.export import export_model
from resnest_d2.inference.predictor import predict_tiles
from resnest_d2.inference.result import Result
from resnest_d2.inference.sources import each_picture, video_info
from resnest_d2.modeling.detector import build_detector
from resnest_d2.weights import UntrainedParametersError
from resnest_d2.weights import files as files_of_weights

FOUND = 12  # instances of the small detector in every picture
DIGITS = model_zoo.get_config_file("mask_resnest14_digits")


@pytest.fixture(scope="module")
def predictor(small_detector):
    return Predictor(small_detector, device="cpu")


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


def config(small_detector):
    """The small detector's own config."""
    return torch.load(small_detector, weights_only=True)["config"]


def test_a_picture_of_any_kind_gives_the_same(predictor, files, pixels):
    expected = predictor(pixels)
    assert len(expected.instances) == FOUND
    path, image = files / "a.png", Image.fromarray(pixels)
    for source in (path, str(path), image, image.convert("RGBA")):
        found = predictor(source)
        assert torch.equal(boxes(found), boxes(expected))
        assert np.array_equal(found.image, pixels)
    swapped = predictor(np.ascontiguousarray(pixels[:, :, ::-1]), color="BGR")
    assert torch.equal(boxes(swapped), boxes(expected))
    assert (predictor(path).source, expected.source) == (path, None)
    grey = pixels[:, :, 0]
    for source in (grey, grey[:, :, None], Image.fromarray(grey)):
        assert np.array_equal(predictor.read(source, color="BGR"), np.stack([grey] * 3, axis=-1))


def test_addresses_go_through_detectron2s_path_manager(predictor, files, pixels):
    """So that a handler of the user's counts, of one that needs a password for example."""
    make_video(files / "clip.avi", [pixels] * 2)

    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["secret://"]

        def _get_local_path(self, path, **kwargs):
            if "absent" in path:
                raise OSError("status 404")
            return str(files / path.removeprefix("secret://"))

        def _open(self, path, mode="r", **kwargs):
            return open(self._get_local_path(path), mode)

    PathManager.register_handler(Handler(), allow_override=True)
    assert np.array_equal(predictor("secret://a.png").image, pixels)
    assert [result.frame for result in predictor("secret://clip.avi")] == [0, 1]
    for name, reason in (
        ("notes.txt", "cannot be read as a picture"),
        ("absent.png", "cannot be read as a picture: status 404"),
        ("absent.mp4", "cannot be fetched: status 404"),
    ):
        with pytest.raises(InputError, match=f"secret://{name} {reason}"):
            list(predictor(f"secret://{name}"))


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


def test_a_video(predictor, tmp_path, caplog, monkeypatch):
    """One that was cut short is named; some files tell a little more frames than they have."""
    path, rng = tmp_path / "clip.avi", np.random.default_rng(0)
    make_video(path, [np.full((48, 64, 3), (255, 0, 0), np.uint8)] * 3)  # blue, in OpenCV's order
    results = list(predictor(path, batch_size=2))
    assert [(result.source, result.frame) for result in results] == [(path, n) for n in range(3)]
    assert results[0].image[..., 2].mean() > 240
    assert results[0].image[..., 0].mean() < 15
    make_video(path, rng.integers(0, 255, (20, 48, 64, 3), np.uint8))
    told = supervision.VideoInfo(64, 48, 10, 21)
    monkeypatch.setattr(supervision.VideoInfo, "from_video_path", lambda path: told)
    assert len(list(each_picture(path))) == 20
    assert "damaged" not in caplog.text
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < len(list(each_picture(path))) < 20
    assert "clip.avi is damaged: only" in caplog.text


@pytest.mark.parametrize(("told", "rate"), [(0, 25), (90000, 25), (66.667, 66.667), (1000, 1000)])
def test_a_video_that_does_not_tell_its_rate_has_a_usual_one(tmp_path, monkeypatch, told, rate):
    info = supervision.VideoInfo(64, 48, told, -1)
    monkeypatch.setattr(supervision.VideoInfo, "from_video_path", lambda path: info)
    found = video_info(tmp_path / "clip.avi")
    assert (found.fps, found.total_frames) == (rate, None)


def test_the_first_prediction_says_nothing_of_others(small_detector, files):
    code = "import sys, resnest_d2; print(resnest_d2.Predictor(sys.argv[1])(sys.argv[2]))"
    result = run_python(code, small_detector, files / "a.png")
    assert result.returncode == 0
    assert re.fullmatch(r"\d+ objects?.*\n", result.stdout)
    assert result.stderr in ("", "No GPU: running on the CPU.\n")


def test_augmentation_is_only_for_evaluation(small_detector, caplog):
    Predictor(small_detector, options=["TEST.AUG.ENABLED", True])
    assert "TEST.AUG.ENABLED: evaluation alone augments, predictions do not" in caplog.text


def test_a_folder_with_a_bad_picture(predictor, files, caplog):
    """It is named and left out, as by the command; what is listed must be readable."""
    (files / "aa.png").write_bytes((files / "a.png").read_bytes()[:60])
    (files / "ab.png").symlink_to(files / "nowhere.png")
    (files / "ac.mp4").touch()
    results = list(predictor(files))
    assert [result.source.name for result in results] == ["a.png", "b.png"]
    for reason in (
        f"{files / 'aa.png'} cannot be read as a picture",
        f"there is no file or folder {files / 'ab.png'}",
        f"{files / 'ac.mp4'} cannot be read as a video",
    ):
        assert f"Skipped: {reason}" in caplog.text
    for source in ([files / "a.png", files / "aa.png"], iter([files / "aa.png"]), files / "aa.png"):
        with pytest.raises(InputError, match=r"aa\.png cannot be read as a picture"):
            list(predictor(source))


@pytest.mark.parametrize(
    "ending", ["jfif", "jpe", "jp2", "j2k", "avif", "ppm", "pgm", "apng", "TIFF", "mpo", "JPG"]
)
def test_whatever_is_read_is_found_in_a_folder(tmp_path, ending):
    kind = {"mpo": "MPO", "apng": "PNG", "j2k": "JPEG2000"}.get(ending)
    Image.new("RGB", (40, 30), "red").save(tmp_path / f"a.{ending}", kind)
    (found,) = each_picture(tmp_path)
    assert found.image.shape == (30, 40, 3)


def test_what_is_left_out_of_a_folder_is_said_once(files, caplog):
    for name in ("notes.txt", "b.HEIC", "README", ".hidden", "old.eps"):
        (files / name).touch()
    assert len(list(each_picture(files))) == 2
    assert caplog.messages == [
        f"{files}: left out 4 files, by their endings (.eps, .heic, .txt, none)"
    ]


def test_sources_are_read_as_they_come(files):
    listed = each_picture([files / "a.png", files / "b.png"])
    assert next(listed).source == files / "a.png"
    (files / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*b\.png"):
        next(listed)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            np.zeros((4, 4, 4), np.uint8),
            r"expected an RGB image \(H, W, 3\) or \(H, W\) uint8, got",
        ),
        (np.zeros((4, 4)), r"got \(4, 4\) float64"),
        (np.zeros((0, 9, 3), np.uint8), r"got \(0, 9, 3\) uint8"),
        (torch.zeros(3, 9, 9), "a Tensor holds no pictures"),
        (0.5, "a float holds no pictures"),
        (0, "0 is a stream or a camera, which has no end: record a part of it to a file"),
        ("1", "1 is a stream or a camera"),
        (["rtsp://host/live"], "rtsp://host/live is a stream or a camera"),
        ("UDP://@:1234", "UDP://@:1234 is a stream or a camera"),
        (Image.new("F", (4, 4)), "its pixels are floating-point numbers of 32 bits"),
        (Image.new("L", (4000, 1)), "the picture has 4000 x 1 pixels, too narrow to be resized"),
        ("absent.png", "there is no file or folder absent.png"),
        ("absent.mp4", "there is no file or folder absent.mp4"),
        ("/proc/self/fd", "folder /proc/self/fd holds no image or video"),
    ],
)
def test_wrong_sources(predictor, source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predictor(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"color": "RBG"}, 'color must be "RGB" or "BGR", got \'RBG\''),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": "2"}, "batch_size must be an integer of at least 1, got '2'"),
    ],
)
def test_wrong_options_of_a_call(predictor, pixels, options, message):
    with pytest.raises(InputError, match=message):
        predictor(pixels, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimize": "yes"}, "optimize must be one of False, True, 'compile', .* got 'yes'"),
        ({"optimize": 1}, "optimize must be one of False, True, 'compile', 'openvino', got 1"),
        ({"runtime": "openvino"}, "a runtime is for an exported file"),
        ({"tile": 4}, "tile must be at least 32, got 4"),
        ({"tile": 64, "overlap": 1}, "overlap must be between 0 and 0.9, got 1"),
        ({"tile": 64, "overlap": np.nan}, "overlap must be between 0 and 0.9, got nan"),
        ({"options": ["TEST.DETECTIONS_PER_IMAGE"]}, "must be a list of pairs"),
        ({"options": ["MODEL.WEIGHTS", "absent.pth"]}, "there is no file absent.pth"),
        ({"device": "gpu"}, "device 'gpu' is no device of PyTorch, or not"),
        ({"device": "mps"}, "device 'mps' is no device of PyTorch, or not"),
        ({"device": "cuda"}, "device 'cuda' was asked for, and no GPU was found"),
        ({"options": ["MODEL.DEVICE", "cuda"]}, "device 'cuda' was asked for, and no GPU was f"),
    ],
)
def test_wrong_options(small_detector, options, message):
    with pytest.raises(InputError, match=message):
        Predictor(small_detector, **options)


def test_what_a_predictor_is_made_of(small_detector, predictor, pixels, tmp_path):
    expected, file = boxes(predictor(pixels)), tmp_path / "model.yaml"
    file.write_text(config(small_detector))
    made = [
        Predictor(small_detector.parent, device="cpu"),
        Predictor(weights=small_detector),
        Predictor(options=["MODEL.WEIGHTS", small_detector]),
        Predictor(str(file), weights=small_detector),
        Predictor(small_detector, config_file=str(file)),
        Predictor(load_config(str(file)), weights=small_detector),
        Predictor(small_detector, device=torch.device("cpu")),
    ]
    for number, one in enumerate(made):
        assert torch.equal(boxes(one(pixels)), expected), number
        assert one.metadata.thing_classes[3] == "digit 3"
    optimized = boxes(Predictor(small_detector, optimize=True)(pixels))
    assert torch.allclose(optimized, expected, atol=1e-2)
    compiled = Predictor(small_detector, optimize="compile").model.backbone
    assert compiled._compiled_call_impl is not None
    with pytest.raises(InputError, match="config_file is another: leave one of them out"):
        Predictor(str(file), config_file=str(file))


def test_a_config_that_is_named_is_taken_as_it_stands(small_detector, caplog):
    """Not the settings that the checkpoint was trained with, which one warning lists."""
    assert Predictor(small_detector).augmentation.short_edge_length == [64, 64]
    assert "No GPU: running on the CPU" in caplog.text  # only a config may fall back to it
    named = Predictor("mask_resnest14_digits", weights=small_detector)
    cfg = model_zoo.get_config("mask_resnest14_digits")
    assert named.augmentation.short_edge_length == [cfg.INPUT.MIN_SIZE_TEST] * 2
    assert "INPUT.MIN_SIZE_TEST" in caplog.text
    with pytest.raises(UntrainedParametersError, match="box_predictor.*has shape"):
        Predictor("mask_resnest50", weights=small_detector, options=["MODEL.RESNETS.DEPTH", 14])


def test_options_need_not_be_text(small_detector, pixels, tmp_path):
    (tmp_path / "model.yaml").write_text(config(small_detector))
    cfg = load_config(str(tmp_path / "model.yaml"))
    for model in (small_detector, cfg):
        for two in (2, "2"):
            options = ["TEST.DETECTIONS_PER_IMAGE", two, "INPUT.MIN_SIZE_TEST", 0]
            low = Predictor(model, weights=small_detector, options=options)
            assert len(low(pixels)) == 2
            assert low.prepare(pixels)["image"].shape == (3, 48, 64)  # 0 leaves the size
    assert cfg.TEST.DETECTIONS_PER_IMAGE == FOUND


def test_a_model_that_somebody_instantiated(small_detector, predictor, pixels, tmp_path):
    """In Detectron2's format, such as those that a LazyConfig describes."""
    (tmp_path / "model.yaml").write_text(config(small_detector))
    model = build_detector(load_config(str(tmp_path / "model.yaml"), ["MODEL.DEVICE", "cpu"]))
    resize = T.ResizeShortestEdge([64, 64], 1333)
    made = Predictor(model, weights=small_detector, augmentation=resize, device="cpu")
    assert not model.training
    assert made.input_format == "RGB"
    result = made(pixels)
    assert torch.equal(boxes(result), boxes(predictor(pixels)))
    assert result.names == predictor(pixels).names  # the checkpoint's
    with pytest.raises(InputError, match="built cannot be changed: config_file and options must"):
        Predictor(model, config_file="x.yaml", options=["A", "b"])
    with pytest.raises((RuntimeError, AssertionError), match="CUDA|NVIDIA"):
        Predictor(model, device="cuda")
    made = Predictor(model, classes=list("abcdefghij"))
    assert made.augmentation.max_size == 1333
    assert set(made(pixels).names) <= set("abcdefghij")


def test_classes_of_a_semantic_model():
    """Their names are those of what it segments, and it draws them."""
    cfg = make_cfg("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.RESNETS.DEPTH", 14)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_resnest_fpn_backbone"])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2])
    image = np.zeros((64, 64, 3), np.uint8)
    resize = T.ResizeShortestEdge([64, 64], 64)
    predictor = Predictor(build_detector(cfg), classes=["sky", "sea"], augmentation=resize)
    assert predictor.metadata.stuff_classes == ["sky", "sea"]
    assert not predictor.finds_instances
    assert (predictor(image).plot() != image).any()


def test_the_threshold_of_every_stage():
    cfg = model_zoo.get_config("cascade_resnest50")
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.RESNETS.DEPTH", 14])
    predictor = Predictor(build_detector(cfg))
    stages = predictor.model.roi_heads.box_predictor
    for threshold, only_raise, expected in ((0.6, False, 0.6), (0.5, True, 0.6), (0.5, False, 0.5)):
        predictor.set_score_threshold(threshold, only_raise)
        assert [stage.test_score_thresh for stage in stages] == [expected] * 3
    for wrong in (float("nan"), -0.1, 2):
        with pytest.raises(InputError, match="score threshold must be between 0 and 1"):
            predictor.set_score_threshold(wrong)


@pytest.mark.slow
def test_an_exported_file(small_detector, pixels, tmp_path):
    pytest.importorskip("onnxruntime")
    # The scores of the others are as good as equal.
    predictor = Predictor(small_detector, options=["TEST.DETECTIONS_PER_IMAGE", 5])
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


def test_what_an_exported_file_tells_counts(pixels, monkeypatch):
    class Exported:
        """The interface of export.ExportedModel."""

        metadata = SimpleNamespace(
            **{"classes": list("abcdefgh"), "category_ids": [7, 3, 1, 2, 4, 5, 6, 9]},
            **{"input_format": "BGR", "min_size": 64, "max_size": 100, "score_threshold": 0.3},
        )

        def __call__(self, inputs):
            self.seen = inputs[0]["image"].numpy()
            return Camera()(inputs)

        def set_score_threshold(self, threshold):
            if threshold < 0.3:
                raise InputError("exported with 0.3")

    monkeypatch.setattr("resnest_d2.export.load_exported", lambda *_: Exported())
    made = Predictor("model.onnx")
    result = made(pixels)
    assert made.model.seen.shape == (3, 64, 85)
    assert np.abs(made.model.seen[2].mean() - pixels[..., 0].mean()) < 2  # BGR
    assert [one["category_id"] for one in result.to_coco()] == [9]
    made.set_score_threshold(0.2, only_raise=True)
    with pytest.raises(InputError, match="exported with 0.3"):
        made.set_score_threshold(0.2)
    with pytest.raises(InputError, match="exported as it is and cannot be changed: weights and d"):
        Predictor("model.onnx", weights="x.pth", device="cpu")


def test_a_name_takes_the_weights_that_were_published(monkeypatch):
    class Asked(Exception):
        pass

    def ask(path):
        raise Asked(path)

    monkeypatch.setattr("resnest_d2.inference.predictor.open_weights", ask)
    with pytest.raises(Asked, match="^resnest://COCO/mmdet/mask_resnest50$"):
        Predictor("mmdet/mask_resnest50")


def test_the_checkpoint_is_read_once(small_detector, pixels, monkeypatch):
    read = files_of_weights.read_checkpoint
    paths = []

    def counted(path, *args):
        paths.append(path)
        return read(path, *args)

    monkeypatch.setattr("resnest_d2.weights.loading.read_checkpoint", counted)
    assert Predictor(small_detector)(pixels).to_coco()
    assert paths == [str(small_detector)]


def test_models_that_are_not_there(tmp_path):
    for name, message in (
        ("mask_resnest5", "no model 'mask_resnest5'; did you mean"),
        ("mask_resnest14", "no checkpoint of 'mask_resnest14' was published"),
        ("absent.pth", "there is no file absent.pth"),
        (tmp_path / "absent.onnx", "there is no file .*absent.onnx"),
        (tmp_path, "must hold model_final.pth or one file of weights, has none"),
    ):
        with pytest.raises(InputError, match=message):
            Predictor(name)
    for name in ("a.pth", "b.pth"):
        torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / name)
    with pytest.raises(ValueError, match="or one file of weights, has a.pth, b.pth"):
        Predictor(tmp_path)
    with pytest.raises(ValueError, match="a.pth holds no config"):
        Predictor(tmp_path / "a.pth")


@pytest.mark.parametrize("classes", [10, 12])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", ["mask_resnest14_digits", "retinanet_resnest50"])
def test_as_many_names_as_classes_or_numbers(tmp_path, caplog, name, named, classes):
    """Names of a checkpoint and, without any, of the config's data set."""
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 14])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = classes
    cfg.DATASETS.TEST, cfg.MODEL.WEIGHTS = ("digits_val",), str(tmp_path / "weights.pth")
    own = {"classes": {"thing_classes": [f"name {number}" for number in range(10)]}}
    content = {"model": build_detector(cfg).state_dict(), **(own if named else {})}
    torch.save(content, cfg.MODEL.WEIGHTS)
    expected = [f"{'name ' if named and classes == 10 else ''}{n}" for n in range(classes)]
    assert Predictor(cfg).metadata.thing_classes == expected
    warnings = [message for message in caplog.messages if "numbers are drawn" in message]
    source = "'classes of the checkpoint'" if named else "'digits_val'"
    start = f"The model tells {classes} classes apart, but {source} has 10 names"
    assert [message.startswith(start) for message in warnings] == [True] * (classes != 10)


def test_results_as_supervision(monkeypatch):
    result = result_of([1, 0], [0.75, 0.25])
    detections = result.to_supervision()
    assert np.array_equal(detections.xyxy, boxes(result).numpy())
    assert list(detections.data["class_name"]) == ["nine", "one"]
    assert np.array_equal(detections.mask, result.instances.pred_masks.numpy())
    monkeypatch.setitem(sys.modules, "supervision", None)
    for needs in (result.to_supervision, result.plot):
        with pytest.raises(ImportError, match=r"drawing detections needs .*'resnest_d2\[draw\]'"):
            needs()


def test_results_of_a_threshold_drawn_and_cut_out(pixels, tmp_path):
    result = replace(result_of([1, 0, 1], [0.75, 0.5, 0.25]), image=pixels)
    kept = result.above(0.5)
    assert kept.instances.scores.tolist() == [0.75, 0.5]
    assert len(result) == 3
    path = kept.save(tmp_path / "new" / "drawn.png", scale=2)
    for name in ("drawn", "drawn.mp4", "drawn.psd"):
        with pytest.raises(ValueError, match=f"is written to a picture, .png for .*{name}$"):
            kept.save(tmp_path / name)
    with pytest.raises(OSError, match=f"cannot make the folder {path}: "):
        kept.save(path / "drawn.png")
    assert Image.open(path).size == (128, 96)
    assert (kept.plot(threshold=0) != pixels).any()
    assert np.array_equal(kept.plot(threshold=1), pixels)
    for crop, (left, top, right, bottom) in zip(kept.crops(), boxes(kept).tolist(), strict=True):
        x, y = int(left - 0.1 * (right - left)), int(top - 0.1 * (bottom - top))
        part = pixels[max(0, y) :, max(0, x) :][: crop.height, : crop.width]
        assert np.array_equal(crop, part)
        assert crop.width >= int(right - left)
        assert crop.height >= int(bottom - top)


def result_of(numbers, scores, with_masks=True, **facts):
    """Things of these classes and scores, 10 pixels wide and 20 high; masks are their left half."""
    boxes = torch.tensor([[5.0 + 2 * n, 3, 15 + 2 * n, 23] for n in range(len(numbers))])
    instances = Instances((48, 64), pred_boxes=Boxes(boxes.reshape(-1, 4)))
    instances.pred_classes, instances.scores = torch.tensor(numbers), torch.tensor(scores)
    if with_masks:
        masks = torch.zeros(len(numbers), 48, 64, dtype=torch.bool)
        for number, mask in enumerate(masks):
            mask[3:23, 5 + 2 * number : 10 + 2 * number] = True
        instances.pred_masks = masks
    image = np.zeros((48, 64, 3), np.uint8)
    metadata = Metadata(name="results", thing_classes=["one", "nine"])
    return Result({"instances": instances}, image, metadata, **facts)


@pytest.mark.parametrize(
    ("numbers", "scores", "text"),
    [
        ([1, 0, 1], [0.9, 0.8, 0.5], "3 objects: 2 x nine, 1 x one"),
        ([0], [0.9], "1 object: 1 x one"),
        ([0, 1, 1], [0.9, 0.4, 0.3], "1 object: 1 x one (2 below a score of 0.5)"),
        ([1], [0.1], "0 objects (1 below a score of 0.5)"),
        ([], [], "0 objects"),
        ([7, 7], [0.9, 0.9], "2 objects: 2 x 7"),
    ],
)
def test_a_result_counts_what_is_drawn_and_is_as_long_as_its_instances(numbers, scores, text):
    result = result_of(numbers, scores, source="a.png")
    assert str(result) == text
    assert repr(result) == f"<Result of a.png: {text}>"
    assert len(result) == len(list(result)) == len(numbers)
    assert bool(result) == bool(numbers)
    result["instances"].remove("scores")  # as of annotations, which are all drawn
    assert str(result).startswith(f"{len(numbers)} object")
    assert [one.score for one in result] == [None] * len(numbers)


def test_a_result_without_instances():
    others = Result({"proposals": 1}, np.zeros((9, 9, 3), np.uint8), Metadata(name="none"))
    assert len(others) == 0
    assert str(others) == "no objects, but proposals"
    with pytest.raises(ValueError, match="the model finds no instances; its output has proposals"):
        iter(others)
    with pytest.raises(ValueError, match="a model's output of proposals cannot be drawn"):
        others.plot()


@pytest.mark.parametrize("with_masks", [True, False])
def test_the_instances_one_by_one_and_as_tables(with_masks, monkeypatch):
    result = result_of([1, 0], [0.75, 0.25], with_masks, source="clip.mp4", frame=3)
    area = 100 if with_masks else 200
    first, second = result
    assert first[:4] == ("nine", 0.75, (5, 3, 15, 23), area)
    assert (second.name, second.box) == ("one", (7, 3, 17, 23))
    assert (first.mask is None) != with_masks
    if with_masks:
        assert np.array_equal(second.mask, result.instances.pred_masks[1])
    table = result.to_pandas()
    assert table.to_dict("records")[1] == {
        **{"file": "clip.mp4", "frame": 3, "name": "one", "score": 0.25, "area": area},
        **{"x": 7, "y": 3, "width": 10, "height": 20},
    }
    for entry, plain, one in zip(
        json.loads(result.to_json(8)), result.to_coco(8), result, strict=True
    ):
        assert entry.pop("area") == area
        assert entry == plain
        assert entry["image_id"] == 8
        assert entry["category_id"] == ("one", "nine").index(one.name)
        assert (entry["category_name"], entry["score"]) == (one.name, one.score)
        assert entry["bbox"] == [one.box[0], 3, 10, 20]
        assert ("segmentation" in entry) == with_masks
        if with_masks:
            assert np.array_equal(coco_mask.decode(plain["segmentation"]).astype(bool), one.mask)
    assert len(result_of([], [], with_masks).to_pandas()) == 0
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="a table of detections needs"):
        result.to_pandas()


def test_a_result_is_shown_in_a_notebook_or_a_window(monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(("window", picture.size)))
    result = result_of([1], [0.9])
    result.show()
    display = SimpleNamespace(display=lambda picture: shown.append(("notebook", picture.size)))
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1), display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    result.show(2, labels=False)
    assert shown == [("window", (64, 48)), ("notebook", (128, 96))]


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

    expected = red_things(image)["instances"]
    for overlap, sees_the_whole in ((0.2, True), (0.8, False)):

        def detect(part, sees_the_whole=sees_the_whole):
            return model(part if sees_the_whole or len(part) == 100 else part * 0)

        found = predict_tiles(detect, image, 100, overlap)["instances"]
        assert len(found) == 2
        for box, mask in zip(expected.pred_boxes.tensor, expected.pred_masks, strict=True):
            (at,) = (found.pred_boxes.tensor == box).all(1).nonzero().flatten().tolist()
            assert torch.equal(found.pred_masks[at], mask)  # to the pixel, with its hole
    assert set(shapes) == {(100, 100), (200, 300)}
    none = predict_tiles(red_things, image * 0, 100, 0.2)["instances"]
    assert len(none) == 0
    assert none.pred_masks.shape == (0, 200, 300)
    # No tile is a sliver: a line of pixels could not be resized.
    shapes.clear()
    predict_tiles(model, np.zeros((101, 201, 3), np.uint8), 100, 0)
    assert set(shapes) == {(100, 100), (101, 201)}


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
    def model(part):
        instances = Instances(part.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 20, 20]] * 2))
        instances.scores, instances.pred_classes = torch.tensor([0.3, 0.6]), torch.tensor([0, 1])
        return {"instances": instances}

    found = predict_tiles(model, np.zeros((150, 150, 3), np.uint8), 100, 0)["instances"]
    assert found.scores.tolist() == pytest.approx([0.6] * 4 + [0.3] * 4)
    assert found.pred_classes.tolist() == [1] * 4 + [0] * 4


def test_a_predictor_of_tiles(small_detector, predictor, pixels, monkeypatch):
    result = Predictor(small_detector, tile=64)(np.tile(pixels, (2, 2, 1)))
    assert result.instances.pred_masks.shape[1:] == (96, 128)
    one = Predictor(small_detector, tile=5000)(pixels)  # a picture that is one tile
    assert torch.equal(boxes(one), boxes(predictor(pixels)))
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'resnest_d2\[draw\]'"):
        Predictor(small_detector, tile=64)


@pytest.mark.parametrize("beside", ["sem_seg", "panoptic_seg", "pred_keypoints"])
def test_tiles_are_for_boxes_and_masks_alone(pixels, beside):
    """What they cannot put together is not left out in silence."""

    def model(part):
        output = red_things(part)
        if beside != "pred_keypoints":
            return {**output, beside: 0}
        output["instances"].pred_keypoints = torch.zeros(len(output["instances"]), 17, 3)
        return output

    with pytest.raises(ValueError, match="tiles are for models of boxes and masks alone"):
        predict_tiles(model, pixels, 32, 0.2)
