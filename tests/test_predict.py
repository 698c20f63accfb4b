"""resnest-d2 predict: colours, drawings, broken files, untrained weights."""

import json
import re

import av
import detectron2.data.transforms as T
import numpy as np
import pytest
import supervision
import torch
from commands import run_command
from detectron2.structures import Boxes, Instances
from PIL import Image
from safetensors.torch import save_file

from resnest_d2 import model_zoo
from resnest_d2.commands.predict import main
from resnest_d2.data.images import read_header
from resnest_d2.data.mapper import Mapper
from resnest_d2.inference import Outputs, Predictor, predict_inputs
from resnest_d2.inference.outputs import list_inputs, output_paths
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
        monkeypatch.setattr("resnest_d2.inference.predictor.load_weights", lambda *args: [])
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
    seen = []
    original = supervision.RichLabelAnnotator.annotate

    def spy(self, scene, detections, labels):
        seen.append((labels, detections.xyxy.tolist()))
        return original(self, scene, detections, labels)

    monkeypatch.setattr(supervision.RichLabelAnnotator, "annotate", spy)
    image = np.asarray(Image.open(red_left_blue_right))
    drawn = make_predictor()(image).plot()
    assert seen == [(["7 88%"], [[0, 0, 30, 40]])]
    assert drawn.shape == image.shape
    assert (drawn[:, :28] != image[:, :28]).any(-1).mean() > 0.9
    assert (drawn[:, 34:] != image[:, 34:]).mean() < 0.4  # only the label may reach over


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


@pytest.fixture(params=[10, 12.5, 29.97])
def video(tmp_path, request):
    path = tmp_path / "clip.avi"
    info = supervision.VideoInfo(64, 48, request.param)
    with supervision.VideoSink(str(path), info, codec="MJPG") as sink:
        for _ in range(5):
            sink.write_frame(np.full((48, 64, 3), RED[::-1], np.uint8))  # OpenCV's order
    return path, request.param


def test_video(make_predictor, video, tmp_path):
    """The drawing has the frames and the rate of its input, read by another library, PyAV."""
    path, rate = video
    predictor = make_predictor("INPUT.MIN_SIZE_TEST", 48)
    outputs = Outputs(tmp_path / "out", per_image=True)
    assert predict_inputs(predictor, [path], outputs) == []
    red, green, blue = predictor.model.input["image"].mean((1, 2)).tolist()
    assert red > 240
    assert max(green, blue) < 15
    with av.open(str(tmp_path / "out/clip.mp4")) as drawn:
        (stream,) = drawn.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in drawn.decode(stream)]
        assert float(stream.average_rate) == pytest.approx(rate, rel=1e-4)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
    right = frames[4][30:, 40:].mean((0, 1))
    assert right[0] > 230
    assert right[1:].max() < 25
    found = json.loads((tmp_path / "out/clip.json").read_text())
    assert (found["file_name"], found["width"], found["height"]) == (str(path), 64, 48)
    assert [one["frame"] for one in found["annotations"]] == [*range(5)]


def test_a_video_that_was_cut_short_is_named(make_predictor, video, tmp_path, caplog):
    path, _ = video
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert predict_inputs(make_predictor(), [path], tmp_path / "out") == [path]
    assert str(path) in caplog.text


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


@pytest.mark.parametrize("error", [RuntimeError, ValueError, torch.AcceleratorError])
def test_a_defect_of_the_model_is_not_skipped(
    make_predictor, red_left_blue_right, tmp_path, monkeypatch, error
):
    """An assertion on a GPU, a defect of NumPy's use: not one of them is a bad picture."""

    def forward(self, inputs):
        raise error("device-side assert triggered")

    predictor = make_predictor()
    monkeypatch.setattr(Camera, "forward", forward)
    with pytest.raises(error, match="device-side"):
        predict_inputs(predictor, [red_left_blue_right], tmp_path / "out")


def test_a_picture_that_is_too_narrow_is_named_and_skipped(
    make_predictor, red_left_blue_right, tmp_path, caplog
):
    Image.new("RGB", (3012, 1)).save(tmp_path / "odd.png")
    files = [tmp_path / "odd.png", red_left_blue_right]
    skipped = predict_inputs(make_predictor(), files, tmp_path / "out", batch_size=2)
    assert skipped == files[:1]
    assert f"Skipped {files[0]}: has 3012 x 1 pixels, too narrow to be resized" in caplog.text
    assert (tmp_path / "out/colours.png").is_file()


def test_inputs_and_outputs(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
        (tmp_path / folder / "notes.txt").touch()
    files = list_inputs([str(tmp_path / "a"), str(tmp_path / "b")])
    names = [p.name for p in output_paths(files, tmp_path / "out").values()]
    assert names == ["x.png", "x_2.png"]
    with pytest.raises(
        ValueError, match=r"--output: .*/a holds the input x.png: take another folder"
    ):
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
    return run_command("predict", "--config-file", "configs/mask_resnest14_digits.yaml", *args)


def test_the_command(tmp_path, red_left_blue_right):
    output = tmp_path / "out put"
    args = ["--input", red_left_blue_right, "--output", output]
    result = predict(*args)
    assert result.returncode == 2
    assert "error: MODEL.WEIGHTS is empty and leaves" in result.stderr
    assert "Traceback" not in result.stderr
    assert not output.exists()

    result = predict(*args, "--allow-untrained")
    assert result.returncode == 0, result.stderr
    assert "1 of 1 inputs drawn" in result.stdout
    assert (output / "colours.png").is_file()


def test_inputs_of_every_kind_of_badness(tmp_path, red_left_blue_right, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # is set by the command
    (tmp_path / "broken.png").write_text("")
    (tmp_path / "none.mp4").write_text("<html>404</html>")
    for name, width, height in (("wide", 3012, 1), ("high", 1, 3000), ("dot", 1, 1)):
        Image.new("RGB", (width, height)).save(tmp_path / f"{name}.png")
    Image.new("L", (101, 100)).save(tmp_path / "bomb.png")
    words = ["--input", tmp_path, "--output", tmp_path / "out", "--allow-untrained"]
    words += ["--config-file", model_zoo.get_config_file("mask_resnest14_digits"), "--max-pixels"]
    assert main([*map(str, words), "10000"]) == 1
    said = capsys.readouterr().out
    assert "2 of 7 inputs drawn" in said
    names = ("bomb.png", "broken.png", "high.png", "none.mp4", "wide.png")
    for name in names:
        assert f"Skipped {tmp_path / name}" in said
    last = ", ".join(str(tmp_path / name) for name in names)
    assert said.splitlines()[-1] == f"Not drawn, or not to their end: {last}"
    assert "bomb.png: cannot be read as a picture: " in said
    assert "--max-pixels allows more" in said
    assert main([*map(str, words), "10100"]) == 1
    assert "3 of 7 inputs drawn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-pixels", "0"], "error: --max-pixels must be at least 1, got 0"),
        (
            ["--confidence-threshold", "5"],
            "error: --confidence-threshold must be between 0 and 1, got 5.0",
        ),
        (["--input", "absent.png"], "error: --input: there is no file or folder absent.png"),
        (["--model", "mask_resnest5"], "error: no model 'mask_resnest5'; did you mean"),
        (
            ["--output", "/proc/none"],
            "error: --output: cannot make /proc/none: No such file or directory",
        ),
    ],
)
def test_wrong_arguments_are_one_line(words, message, red_left_blue_right, tmp_path, capsys):
    given = ["--input", str(red_left_blue_right), "--output", str(tmp_path / "out"), *words]
    if "--model" not in words:
        given += ["--config-file", model_zoo.get_config_file("mask_resnest14_digits")]
    with pytest.raises(SystemExit) as raised:
        main([*given, "--allow-untrained", "--opts", "MODEL.DEVICE", "cpu"])
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


@pytest.mark.parametrize("classes", [2, 12])
def test_as_many_names_as_classes_of_a_retinanet(tmp_path, caplog, classes):
    cfg = model_zoo.get_config("retinanet_resnest50")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 14])
    cfg.MODEL.RETINANET.NUM_CLASSES = classes
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    names = {"thing_classes": [f"name {number}" for number in range(10)]}
    torch.save({"model": build_detector(cfg).state_dict(), "classes": names}, cfg.MODEL.WEIGHTS)
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
    assert predictor(image).plot().shape == image.shape
