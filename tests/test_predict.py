"""resnest-d2 predict: what is read, drawn and written, broken files, wrong arguments."""

import json
import re
from pathlib import Path

import av
import detectron2.data.transforms as T
import numpy as np
import pytest
import supervision
import torch
from commands import run_command
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import ProposalNetwork, SemanticSegmentor
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import _LOG_COUNTER
from PIL import Image

from resnest_d2 import Predictor, model_zoo
from resnest_d2.commands.predict import Outputs, list_inputs, main, make_parser
from resnest_d2.commands.predict import predict_inputs as run_on
from resnest_d2.config import InputError
from resnest_d2.data.images import read_header
from resnest_d2.data.mapper import Mapper

RED, BLUE = (255, 0, 0), (0, 0, 255)
DIGITS = model_zoo.get_config_file("mask_resnest14_digits")


class Camera(torch.nn.Module):
    """Stands in for a detector and keeps what it is shown; "detects" the left half."""

    def forward(self, inputs):
        self.shown = inputs[-1]["image"]
        return [{"instances": self.left_half(one["height"], one["width"])} for one in inputs]

    def left_half(self, height, width):
        masks = torch.zeros(1, height, width, dtype=torch.bool)
        masks[:, :, : width // 2] = True
        box = Boxes(torch.tensor([[0.0, 0.0, width / 2, height]]))
        classes, scores = torch.tensor([7]), torch.tensor([0.875])
        found = Instances((height, width), pred_boxes=box, scores=scores, pred_classes=classes)
        found.pred_masks = masks
        return found


@pytest.fixture
def camera():
    return Predictor(Camera())


@pytest.fixture(scope="module")
def detector(small_detector):
    return Predictor(small_detector)


@pytest.fixture
def photo(tmp_path):
    """A picture whose left half is red and whose right one is blue."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30], pixels[:, 30:] = RED, BLUE
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos/colours.png")
    return tmp_path / "photos/colours.png"


def outputs_of(folder, *words):
    """What the command would write with these options."""
    given = ["--input", "x", "--output", folder, *words]
    return Outputs(make_parser().parse_args(list(map(str, given))))


def predict_inputs(predictor, files, folder, *words):
    outputs = outputs_of(folder, *words)
    outputs.plan(files)
    return run_on(predictor, outputs)


def command(*words):
    """The exit code of the command in this process."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("fmt", "red"), [("RGB", 0), ("BGR", 2)])
def test_the_model_gets_the_colours_that_its_config_names(
    small_detector, photo, tmp_path, fmt, red
):
    options = ["INPUT.FORMAT", fmt, "INPUT.MIN_SIZE_TEST", 40]
    predictor, shown = Predictor(small_detector, options=options), []
    predictor.model.register_forward_pre_hook(lambda _, args: shown.append(args[0][0]["image"]))
    predictor.set_score_threshold(1)
    assert predict_inputs(predictor, [photo], tmp_path / "out") == []
    (image,) = shown
    assert image.shape == (3, 40, 60)
    assert (image[red, :, :25] == 255).all()
    assert (image[2 - red, :, :25] == 0).all()
    assert (image[2 - red, :, 35:] == 255).all()
    # The picture that is written keeps the colours that it was read with.
    assert np.array_equal(Image.open(tmp_path / "out/colours.png"), Image.open(photo))


def test_pictures_are_read_as_in_training(tmp_path, caplog):
    """Upright, 16 bits over their whole range, transparency on the same background."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to the right to see it upright"
    Image.fromarray(pixels).save(tmp_path / "transparent.png", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "16 bits.tif")
    pages = [Image.fromarray(p) for p in (pixels[..., :3], pixels[..., 1:])]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    _LOG_COUNTER.clear()  # the warning comes once
    predictor = Predictor(Camera(), augmentation=T.AugmentationList([]))
    mapper = Mapper(is_train=False, augmentations=[T.NoOpTransform()], image_format="BGR")
    for file in list_inputs([str(tmp_path)]):
        assert predict_inputs(predictor, [file], tmp_path / "out") == []
        size = dict(zip(("width", "height"), read_header(file).size, strict=True))
        learned = mapper({"file_name": str(file), **size})["image"].numpy()
        assert np.array_equal(predictor.model.shown.numpy(), learned)
    (warning,) = [message for message in caplog.messages if "pages, of which" in message]
    assert str(tmp_path / "pages.tif") in warning


@pytest.fixture(params=[10, 29.97, 66.667, 239.763, 1000])
def video(tmp_path, request):
    path = tmp_path / "clip.avi"
    info = supervision.VideoInfo(64, 48, request.param)
    with supervision.VideoSink(str(path), info, codec="MJPG") as sink:
        for _ in range(5):
            sink.write_frame(np.full((48, 64, 3), RED[::-1], np.uint8))  # OpenCV's order
    return path, request.param


def test_video(camera, video, photo, tmp_path, caplog):
    """The drawing has the frames and the rate of its input, read by another library, PyAV."""
    path, rate = video
    words = ["--json", tmp_path / "found.json", "--batch-size", 2]
    assert predict_inputs(camera, [photo, path], tmp_path / "out", *words) == []
    blue, green, red = camera.model.shown.mean((1, 2)).tolist()
    assert red > 240
    assert max(green, blue) < 15
    with av.open(str(tmp_path / "out/clip.mp4")) as drawn:
        (stream,) = drawn.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in drawn.decode(stream)]
        assert float(stream.average_rate) == pytest.approx(rate, rel=2e-4)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
    # A still video stays still, but for what MPEG-4 loses.
    changed = [(np.abs(frame.astype(int) - frames[0]) > 8).mean() for frame in frames]
    assert max(changed) < 0.01
    right = frames[4][30:, 40:].mean((0, 1))
    assert right[0] > 230
    assert right[1:].max() < 25
    of_photo, *found = json.loads((tmp_path / "found.json").read_text())
    assert (of_photo["file_name"], "frame" in of_photo) == (str(photo), False)
    assert [(one["file_name"], one["frame"]) for one in found] == [(str(path), n) for n in range(5)]
    assert [one["image_id"] for one in (of_photo, *found)] == [*range(1, 7)]
    path.write_bytes(path.read_bytes()[: round(0.9 * path.stat().st_size)])
    assert predict_inputs(camera, [photo, path], tmp_path / "out") == [path]
    assert f"{path} is damaged: only 2 of its 5 frames were read" in caplog.text


def test_json_is_written_where_a_drawing_cannot_be(camera, video, photo, tmp_path, caplog):
    path, _ = video
    folder = tmp_path / "out"
    (folder / "clip.mp4").mkdir(parents=True)
    words = ["--json", tmp_path / "all.json"]
    assert predict_inputs(camera, [path, photo], folder, *words) == [path]
    assert f"Not drawn: cannot write the video {folder / 'clip.mp4'}" in caplog.text
    assert len(json.loads((tmp_path / "all.json").read_text())) == 6
    assert (folder / "colours.png").is_file()


@pytest.mark.parametrize("error", [RuntimeError, ValueError, torch.AcceleratorError])
def test_a_defect_of_the_model_is_not_skipped(camera, photo, tmp_path, monkeypatch, error):
    """An assertion on a GPU, a defect of NumPy's use: not one of them is a bad picture."""

    def forward(self, inputs):
        raise error("device-side assert triggered")

    monkeypatch.setattr(Camera, "forward", forward)
    with pytest.raises(error, match="device-side"):
        predict_inputs(camera, [photo], tmp_path / "out")


def test_names_of_outputs(camera, photo, tmp_path):
    """Different for each input, also where only folders or endings differ."""
    other = photo.parent / "other"
    other.mkdir()
    files = [photo, other / "colours.png", other / "colours.jpg", other / "clip.jpeg~"]
    for file in files[1:]:
        Image.open(photo).save(file, format="JPEG")
    assert predict_inputs(camera, files, tmp_path / "out") == []
    drawn = ["clip.png", "colours.png", "colours_2.png", "colours_3.jpg"]
    assert names_in(tmp_path / "out") == drawn


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "photos"], "--output: photos holds photos/colours.png: take another folder"),
        (["--output", "photos/colours.png"], "--output: photos/colours.png is not a folder"),
        (["--output", "photos/colours.png/x"], "cannot make the folder photos/colours.png/x"),
        (["--json", "photos/colours.png"], "photos/colours.png is an input and would be overwr"),
        (["--json", "photos/colours.png/x.json"], "cannot make the folder photos/colours.png: "),
        (["--json", "out/colours.png"], "out/colours.png is another output and would be overwr"),
        (["--json", "val.json", "--input-json", "val.json"], "val.json is an input"),
        (["--json", "r.json", "--input-json", "r_annotations.json"], "r_annotations.json is an in"),
    ],
)
def test_what_is_read_is_not_overwritten(words, message, photo, tmp_path, monkeypatch, capsys):
    """Neither by drawings nor by what goes beside them, before anything is computed."""
    monkeypatch.chdir(tmp_path)
    image = {"id": 1, "file_name": "colours.png"}
    listed = json.dumps({"images": [image], "categories": [{"id": 1, "name": "7"}]})
    for name in ("val.json", "r_annotations.json"):
        Path(name).write_text(listed)
    before = {path: path.read_bytes() for path in Path().rglob("*.*")}
    given = ["--input", "photos", "--output", "out", *words, "--allow-untrained"]
    assert command(*given, "--config-file", DIGITS) == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert {path: path.read_bytes() for path in Path().rglob("*.*")} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-pixels", "0"], "--max-pixels must be at least 1, got 0"),
        (["--input", "absent.png"], "there is no file or folder absent.png"),
        ([], "MODEL.WEIGHTS is empty and leaves"),
        (
            ["--allow-untrained", "--confidence-threshold", "5"],
            "the score threshold must be between 0 and 1, got 5",
        ),
        (
            ["--output", "/proc/none", "--allow-untrained"],
            "cannot make the folder /proc/none: No such file",
        ),
        (["--no-draw"], "--no-draw leaves nothing to write: add --json FILE"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--line-width", "0"], "--line-width must be at least 1, got 0"),
        (["--input", "rtsp://host/live"], "rtsp://host/live is a stream or a camera"),
        (["--device", "cuda:99"], "device 'cuda:99' was asked for"),
        (["--input-json", "absent.json"], "there is no annotation file absent.json"),
        (["--tile", "0"], "tile must be at least 32"),
        (["--overlap", "0.5"], "--overlap is of tiles: add --tile PIXELS"),
    ],
)
def test_wrong_arguments_are_one_line(words, message, photo, tmp_path, capsys):
    given = ["--input", photo, "--output", tmp_path / "out", *words]
    given += [] if "--model" in words else ["--config-file", DIGITS]
    assert command(*given, "--opts", "MODEL.DEVICE", "cpu") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_inputs_of_every_kind_of_badness(tmp_path, photo, capsys, monkeypatch, batch_size):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # is set by the command
    folder = photo.parent
    (folder / "cut.png").write_bytes(photo.read_bytes()[:60])
    (folder / "empty.png").touch()
    (folder / "none.mp4").write_text("<html>404</html>")
    (folder / "notes.txt").touch()
    for name, width, height in (("wide", 3012, 1), ("high", 1, 3000), ("dot", 1, 1)):
        Image.new("RGB", (width, height)).save(folder / f"{name}.png")
    Image.new("L", (101, 100)).save(folder / "bomb.png")
    words = ["--input", folder, "--output", tmp_path / "out", "--allow-untrained"]
    words += ["--config-file", DIGITS, "--batch-size", batch_size, "--max-pixels"]
    assert command(*words, "10000") == 1
    said, bar = capsys.readouterr()
    assert "2 of 8 inputs drawn" in said
    assert "8/8" in bar
    bad = [folder / n for n in ("bomb.png", "cut.png", "empty.png", "high.png")]
    bad += [folder / "none.mp4", folder / "wide.png"]
    for file in bad:
        assert f"Skipped: {file} " in said
    assert said.splitlines()[-1] == f"Not drawn, or not to their end: {', '.join(map(str, bad))}"
    assert "--max-pixels allows more" in said
    assert "has 3012 x 1 pixels, too narrow to be resized" in said
    assert names_in(tmp_path / "out") == ["colours.png", "dot.png"]
    assert command(*words, "10100") == 1
    assert "3 of 8 inputs drawn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "model", "drawn"),
    [
        ([], 0.5, 0.5),
        (["--confidence-threshold", 0.136], 0.136, 0.136),
        (["--json", "r.json"], 0, 0.5),
        (["--json", "r.json", "--confidence-threshold", 0.136], 0.136, 0.136),
    ],
)
def test_thresholds(small_detector, photo, tmp_path, monkeypatch, words, model, drawn):
    """By default drawings show what is likely, and JSON has all."""
    seen = []
    original = Outputs.write

    def write(self, results):
        results = list(results)
        seen.append([results[0].instances.scores, results[0].above(self.least).instances.scores])
        return original(self, results)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Outputs, "write", write)
    given = ["--input", photo, "--output", "out", "--model", small_detector]
    assert command(*given, *words) == 0
    scores = Predictor(small_detector)(photo).instances.scores
    assert 0 < (scores >= 0.136).sum() < len(scores)
    for found, least in zip(seen[0], (model, drawn), strict=True):
        assert torch.equal(found, scores[scores >= least])
    if "--json" in words:
        written = [one["score"] for one in json.loads(Path("r.json").read_text())]
        assert written == pytest.approx(scores[scores >= model].tolist())


def test_json_of_the_command_is_that_of_evaluation(small_detector, registered_digits, tmp_path):
    """Detections, ids and classes, with --input-json; boxes of what Detectron2 writes."""
    root = registered_digits / "digits"
    content = json.loads((root / "annotations/digits_val.json").read_text())
    for category in content["categories"]:
        category["name"] = f"digit {category['name']}"
    (tmp_path / "val.json").write_text(json.dumps(content))
    result = run_command(
        *("predict", "--input", root / "val", "--input-json", tmp_path / "val.json"),
        *("--output", tmp_path / "out", "--json", tmp_path / "results.json"),
        *("--batch-size", 2, "--opts", "MODEL.WEIGHTS", small_detector),
    )
    assert result.returncode == 0, result.stderr
    predictor = Predictor(small_detector)
    evaluator = COCOEvaluator("digits_val", output_dir=str(tmp_path / "evaluated"))
    mapper = Mapper(
        is_train=False, augmentations=[predictor.augmentation], image_format=predictor.input_format
    )
    cfg = model_zoo.get_config("mask_resnest14_digits")
    loader = build_detection_test_loader(cfg, "digits_val", mapper=mapper, num_workers=0)
    inference_on_dataset(predictor.model, loader, evaluator)

    def comparable(path):
        return sorted(
            (e["image_id"], e["category_id"], round(e["score"], 4), *(round(v) for v in e["bbox"]))
            for e in json.loads(path.read_text())
        )

    written = comparable(tmp_path / "results.json")
    assert len(written) == 3 * 12
    assert written == comparable(tmp_path / "evaluated/coco_instances_results.json")
    assert (tmp_path / "results_annotations.json").is_file()
    assert names_in(tmp_path / "out") == names_in(root / "val")


def test_json_of_classes_that_the_annotation_file_lacks(detector, photo, tmp_path, caplog):
    """They are left out, with a warning; the others stay."""
    result = detector(photo)
    name = result.names[0]
    outputs = outputs_of(tmp_path, "--no-draw", "--json", tmp_path / "r.json")
    outputs.category_ids = {name: 9}
    outputs.plan([photo])
    outputs.check_model(detector)
    assert run_on(detector, outputs) == []
    assert "Detections of 9 classes that --input-json lacks are not in the JSON" in caplog.text
    found = json.loads((tmp_path / "r.json").read_text())
    assert [entry["category_name"] for entry in found] == [
        one for one in result.names if one == name
    ]
    assert {entry["category_id"] for entry in found} == {9}
    outputs.category_ids = {"cat": 1}
    with pytest.raises(ValueError, match=r"none of the model's classes \(digit 0, .*it has cat"):
        outputs.check_model(detector)


def test_a_list_of_images_without_annotations(photo, tmp_path, caplog):
    """COCO's test sets; ids that are no numbers are numbered, in a file that results fit."""
    files = [photo, photo.with_name("other.png")]
    files[1].write_bytes(photo.read_bytes())
    content = {
        "images": [{"id": f"x{n}", "file_name": file.name} for n, file in enumerate(files)],
        "categories": [{"id": 5, "name": "Digit 0 "}, {"id": 9, "name": "Digit 0 "}],
    }
    (tmp_path / "test.json").write_text(json.dumps(content))
    words = ["--input", photo.parent, "--input-json", tmp_path / "test.json"]
    words += ["--json", tmp_path / "r.json"]

    outputs = outputs_of(tmp_path, *words)
    outputs.plan(outputs.image_ids)
    assert not outputs.unreadable
    assert list(outputs.targets) == files
    assert list(outputs.image_ids.values()) == [1, 2]
    repaired = json.loads((tmp_path / "r_annotations.json").read_text())
    assert [image["id"] for image in repaired["images"]] == [1, 2]
    assert repaired["categories"] == [{"id": 5, "name": "Digit 0 "}]  # a name has one id in results
    photo.write_text("")
    outputs = outputs_of(tmp_path, *words)
    assert list(outputs.image_ids) == files[1:]
    (problem,) = outputs.unreadable
    assert problem.startswith(f"{photo} cannot be read as a picture")
    outputs.check_model(Predictor(Camera(), classes=["digit 0"]))
    assert outputs.category_ids == {"digit 0": 5}
    assert "lacks" not in caplog.text


def test_a_run_that_is_interrupted_leaves_its_json(detector, photo, tmp_path, monkeypatch):
    run, calls = detector.run, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(detector, "run", interrupted)
    files = [photo, photo.with_name("other.png")]
    files[1].write_bytes(photo.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        predict_inputs(
            detector, files, tmp_path / "out", "--no-draw", "--json", tmp_path / "r.json"
        )
    found = json.loads((tmp_path / "r.json").read_text())
    assert {Path(one["file_name"]).name for one in found} == {"colours.png"}


@pytest.mark.parametrize("kind", [SemanticSegmentor, ProposalNetwork])
def test_a_model_without_instances_has_nothing_for_json(kind, tmp_path):
    """It is refused before anything is computed."""
    predictor = Predictor(Camera())
    predictor.model = kind.__new__(kind)  # none of it is called
    with pytest.raises(InputError, match="the model finds no instances: leave out --json"):
        outputs_of(tmp_path, "--json", "r.json").check_model(predictor)
