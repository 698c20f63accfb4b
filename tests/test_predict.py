"""tools/predict.py: colours, drawings, broken files, untrained weights."""

import json
import re

import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from commands import run_tool
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from safetensors.torch import save_file

from resnest_d2 import model_zoo
from resnest_d2.data.images import read_header
from resnest_d2.data.mapper import Mapper
from resnest_d2.inference import Predictor, predict_inputs
from resnest_d2.inference.files import list_inputs, output_paths
from resnest_d2.modeling.detector import build_detector

RED, BLUE = (255, 0, 0), (0, 0, 255)


class Camera(torch.nn.Module):
    """Stands in for a detector and keeps what it is shown; "detects" the left half."""

    def forward(self, inputs):
        (self.input,) = inputs
        height, width = self.input["height"], self.input["width"]
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, width / 2, height]]))
        instances.scores = torch.tensor([0.875])
        instances.pred_classes = torch.tensor([7])
        masks = torch.zeros(1, height, width, dtype=torch.bool)
        masks[:, :, : width // 2] = True
        instances.pred_masks = masks
        return [{"instances": instances}]


@pytest.fixture
def make_predictor(monkeypatch):
    def make(*opts):
        cfg = model_zoo.get_config("mask_resnest14_digits")
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
        monkeypatch.setattr("resnest_d2.inference.predictor.build_detector", lambda cfg: Camera())
        return Predictor(cfg)

    return make


@pytest.fixture
def red_left_blue_right(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30], pixels[:, 30:] = RED, BLUE
    Image.fromarray(pixels).save(tmp_path / "colours.png")
    return tmp_path / "colours.png"


@pytest.mark.parametrize(("fmt", "red_channel"), [("RGB", 0), ("BGR", 2)])
def test_the_model_gets_the_colours_that_its_config_names(
    make_predictor, red_left_blue_right, tmp_path, fmt, red_channel
):
    predictor = make_predictor("INPUT.FORMAT", fmt, "INPUT.MIN_SIZE_TEST", 40)
    assert predict_inputs(predictor, [red_left_blue_right], tmp_path / "out") == []
    image = predictor.model.input["image"]
    assert image.shape == (3, 40, 60)
    left, right = image[:, :, :25], image[:, :, 35:]
    assert (left[red_channel] == 255).all()
    assert (left[2 - red_channel] == 0).all()
    assert (right[2 - red_channel] == 255).all()
    # The picture that is written keeps the colours that it was read with.
    drawn = np.asarray(Image.open(tmp_path / "out/colours.png"))
    assert drawn.shape == (40, 60, 3)
    assert tuple(drawn[20, 50]) == BLUE


def test_draws_box_mask_name_and_score(make_predictor, red_left_blue_right, monkeypatch):
    predictor = make_predictor()
    image = np.asarray(Image.open(red_left_blue_right))
    seen = {}
    original = Visualizer.overlay_instances

    def spy(self, **kwargs):
        seen.update(kwargs)
        return original(self, **kwargs)

    monkeypatch.setattr("detectron2.utils.visualizer.Visualizer.overlay_instances", spy)
    drawn = predictor.draw(image, predictor(image))
    assert seen["labels"] == ["7 88%"]
    assert seen["boxes"].tensor.tolist() == [[0, 0, 30, 40]]
    assert seen["masks"][0].mask[:, :30].all()
    assert drawn.shape == image.shape
    assert (drawn[:, :28] != image[:, :28]).any(-1).mean() > 0.9
    assert (drawn[:, 34:] != image[:, 34:]).mean() < 0.3  # only the label may reach over


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_wrong_arrays(make_predictor, wrong):
    shape = re.escape(str(wrong.shape))
    with pytest.raises(ValueError, match=rf"expected an RGB image \(H, W, 3\) uint8, got {shape}"):
        make_predictor()(wrong)


def test_pictures_are_read_as_in_training(make_predictor, tmp_path, caplog):
    """Upright, 16 bits over their whole range, transparency on the same background."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to the right to see it upright"
    Image.fromarray(pixels).save(tmp_path / "transparent.png", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "16 bits.tif")
    pages = [Image.fromarray(p) for p in (pixels[..., :3], pixels[..., 1:])]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    predictor = make_predictor("INPUT.MIN_SIZE_TEST", 0, "INPUT.FORMAT", "RGB")
    mapper = Mapper(is_train=False, augmentations=[T.NoOpTransform()], image_format="RGB")
    for file in list_inputs([str(tmp_path)]):
        assert predict_inputs(predictor, [file], tmp_path / "out") == []
        size = dict(zip(("width", "height"), read_header(file).size, strict=True))
        learned = mapper({"file_name": str(file), **size})["image"].numpy()
        assert np.array_equal(predictor.model.input["image"].numpy(), learned)
    assert (
        caplog.messages.count(f"{tmp_path / 'pages.tif'} has 2 pages, of which the first is read")
        == 1
    )


def test_a_name_that_cannot_be_written_to_becomes_png(
    make_predictor, red_left_blue_right, tmp_path
):
    odd = tmp_path / "photo.jpeg~"
    odd.write_bytes(red_left_blue_right.read_bytes())
    assert predict_inputs(make_predictor(), [odd, red_left_blue_right], tmp_path / "out") == []
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["colours.png", "photo.png"]


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(5):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:] = RED[::-1]  # OpenCV's order
        writer.write(frame)
    writer.release()
    return path


def test_video(make_predictor, video, tmp_path):
    predictor = make_predictor("INPUT.MIN_SIZE_TEST", 48)
    assert predict_inputs(predictor, [video], tmp_path / "out") == []
    red, green, blue = predictor.model.input["image"].mean((1, 2)).tolist()
    assert red > 240
    assert max(green, blue) < 15
    capture = cv2.VideoCapture(str(tmp_path / "out/clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    assert capture.read()[1].shape == (48, 64, 3)


def test_a_video_that_was_cut_short_is_named(make_predictor, video, tmp_path, caplog):
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert predict_inputs(make_predictor(), [video], tmp_path / "out") == [video]
    assert str(video) in caplog.text


def test_broken_files_are_named_and_skipped(
    make_predictor, red_left_blue_right, tmp_path, caplog, capfd
):
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(red_left_blue_right.read_bytes()[:60])
    text = tmp_path / "text.jpg"
    text.write_text("<html>404</html>")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    files = list_inputs([str(tmp_path)])
    assert [f.name for f in files] == ["colours.png", "empty.mp4", "text.jpg", "truncated.png"]
    skipped = predict_inputs(make_predictor(), files, tmp_path / "out")
    assert skipped == [empty, text, truncated]
    assert all(str(f) in caplog.text for f in skipped)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["colours.png"]
    assert "4/4" in capfd.readouterr().err  # the progress bar


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, ValueError])
def test_a_picture_on_which_the_model_fails_is_named_and_skipped(
    make_predictor, red_left_blue_right, tmp_path, caplog, monkeypatch, error
):
    predictor, call = make_predictor(), Camera.forward

    def forward(self, inputs):
        if inputs[0]["height"] == 7:
            raise error("you tried to allocate 99 GB")
        return call(self, inputs)

    monkeypatch.setattr(Camera, "forward", forward)
    odd = tmp_path / "odd.png"
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(odd)
    files = [odd, red_left_blue_right]
    assert predict_inputs(predictor, files, tmp_path / "out") == [odd]
    message = f"Skipped {odd}: has 9 x 7 pixels, on which the model fails: you tried to allocate"
    assert message in caplog.text
    assert (tmp_path / "out/colours.png").is_file()


def test_a_defect_of_the_model_is_not_skipped(make_predictor, red_left_blue_right, tmp_path):
    predictor = make_predictor()
    del predictor.model
    with pytest.raises(AttributeError):
        predict_inputs(predictor, [red_left_blue_right], tmp_path / "out")


def test_inputs_and_outputs(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
        (tmp_path / folder / "notes.txt").touch()
    files = list_inputs([str(tmp_path / "a"), str(tmp_path / "b")])
    names = [p.name for p in output_paths(files, tmp_path / "out")]
    assert names == ["x.png", "x_2.png"]
    with pytest.raises(ValueError, match=r"a/x.png is an input and would be overwritten"):
        output_paths(files, tmp_path / "a")
    with pytest.raises(ValueError, match=r"--output: .*a/x.png is not a folder"):
        output_paths(files, tmp_path / "a/x.png")
    with pytest.raises(FileNotFoundError, match="--input: there is no file or folder .*absent$"):
        list_inputs([str(tmp_path / "absent")])
    with pytest.raises(
        FileNotFoundError, match=f"--input: folder {tmp_path} holds no image or video"
    ):
        list_inputs([str(tmp_path)])


def predict(*args):
    return run_tool("predict.py", "--config-file", "configs/mask_resnest14_digits.yaml", *args)


def test_the_command(tmp_path, red_left_blue_right):
    output = tmp_path / "out put"
    args = ["--input", red_left_blue_right, "--output", output]
    result = predict(*args)
    assert result.returncode == 2
    assert 'error: MODEL.WEIGHTS is "" leaves' in result.stderr
    assert "Traceback" not in result.stderr
    assert not output.exists()

    result = predict(*args, "--allow-untrained")
    assert result.returncode == 0, result.stderr
    assert "1 of 1 inputs drawn" in result.stdout
    assert (output / "colours.png").is_file()

    (tmp_path / "broken.png").write_text("")
    (tmp_path / "none.mp4").write_text("<html>404</html>")
    for name, width, height in (("wide", 3012, 1), ("high", 1, 3000), ("dot", 1, 1)):
        Image.new("RGB", (width, height)).save(tmp_path / f"{name}.png")
    Image.new("L", (101, 100)).save(tmp_path / "bomb.png")
    args = ["--input", tmp_path, "--output", output, "--allow-untrained"]
    result = predict(*args, "--max-pixels", "10000")
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert "2 of 7 inputs drawn" in result.stdout
    names = ("bomb.png", "broken.png", "high.png", "none.mp4", "wide.png")
    for name in names:
        assert f"Skipped {tmp_path / name}" in result.stdout
    last = ", ".join(str(tmp_path / name) for name in names)
    assert result.stdout.splitlines()[-1] == f"Not drawn, or not to their end: {last}"
    assert "bomb.png: cannot be read as a picture: " in result.stdout
    assert "--max-pixels allows more" in result.stdout
    result = predict(*args, "--max-pixels", "10100")
    assert "3 of 7 inputs drawn" in result.stdout
    result = predict(*args, "--max-pixels", "0")
    assert result.returncode == 2
    assert "error: --max-pixels must be at least 1, got 0" in result.stderr

    result = predict(*args, "--confidence-threshold", "5")
    assert result.returncode == 2
    assert "error: --confidence-threshold must be between 0 and 1, got 5.0" in result.stderr

    result = predict("--input", tmp_path / "absent.png", "--output", output)
    assert result.returncode == 2
    assert "error: --input: there is no file or folder" in result.stderr


@pytest.mark.parametrize("classes", [2, 12])
def test_as_many_names_as_classes_of_a_retinanet(tmp_path, caplog, classes):
    cfg = model_zoo.get_config("retinanet_resnest50")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 14])
    cfg.MODEL.RETINANET.NUM_CLASSES = classes
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    names = {"thing_classes": [f"name {number}" for number in range(10)]}
    torch.save({"model": build_detector(cfg).state_dict(), "classes": names}, cfg.MODEL.WEIGHTS)
    cfg.MODEL.RETINANET.NUM_CLASSES = 80
    predictor = Predictor(cfg)
    assert predictor.model.num_classes == classes
    assert predictor.metadata.thing_classes == [str(number) for number in range(classes)]
    assert f"The model tells {classes} classes apart, but 'classes of the ch" in caplog.text


@pytest.mark.parametrize("classes", [2, 10, 12])
@pytest.mark.parametrize("ending", ["pth", "safetensors", None])
def test_as_many_names_as_classes_or_numbers(tmp_path, caplog, classes, ending):
    """Names of a checkpoint and, without any (None), of the config's data set."""
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"])
    file = tmp_path / f"weights.{ending or 'pth'}"
    weights = build_detector(cfg).state_dict()
    names = {"thing_classes": [f"name {number}" for number in range(10)]}
    if ending == "safetensors":
        save_file(weights, file, {"classes": json.dumps(names)})
    else:
        torch.save({"model": weights, **({"classes": names} if ending else {})}, file)
    cfg.MODEL.WEIGHTS = str(file)
    predictor = Predictor(cfg)
    expected = names["thing_classes"] if ending else [str(digit) for digit in range(10)]
    if classes != 10:
        expected = [str(number) for number in range(classes)]
    assert predictor.metadata.thing_classes == expected
    warnings = [message for message in caplog.messages if "numbers are drawn" in message]
    source = "'classes of the checkpoint'" if ending else "'digits_val'"
    start = f"The model tells {classes} classes apart, but {source} has 10 names"
    assert [message.startswith(start) for message in warnings] == [True] * (classes != 10)
    image = np.zeros((64, 64, 3), np.uint8)
    assert predictor.draw(image, predictor(image)).shape == image.shape
