"""run_model.py, the script beside ONNX files, in processes without PyTorch."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from PIL import Image
from pycocotools.coco import COCO

from resnest_d2.config import InputError
from resnest_d2.data.images import read_image
from resnest_d2.export import load_exported, standalone
from resnest_d2.export.runtimes import Metadata

GRAPH = """
<ir_version: 9, opset_import: ["": 20]>
made (float[3, H, W] image)
    => (float[N, 4] boxes, float[N] scores, int64[N] classes, float[N, 28, 28] masks)
{
    start = Constant <value_ints = [0, 0, 0]> ()
    end = Constant <value_ints = [1, 1, 1]> ()
    one = Constant <value_ints = [1]> ()
    corner = Slice (image, start, end)
    first = Reshape (corner, one)
    boxes = Add (boxes_, first)
    scores = Identity (scores_)
    classes = Identity (classes_)
    masks = Identity (masks_)
}
"""
FACTS = Metadata(
    classes=["circle", "square"],
    category_ids=[7, 9],
    input_format="BGR",
    pixel_mean=[10.0, 20.0, 30.0],
    size_divisibility=32,
    min_side=64,
    min_size=64,
    max_size=100,
    score_threshold=0.05,
)


def write_onnx(file, boxes, scores, classes, masks):
    """An ONNX file whose outputs are these, where boxes move by the image's first pixel."""
    model = onnx.parser.parse_model(GRAPH)
    values = {"boxes_": boxes, "scores_": scores, "classes_": classes, "masks_": masks}
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    model.graph.initializer.extend(tensors)
    onnx.helper.set_model_props(model, {"resnest_d2": FACTS.to_json()})
    onnx.save(model, file)


@pytest.fixture
def made(tmp_path):
    """An ONNX file of known outputs, and a turned photo of 40x60 pixels that has blue 8."""
    boxes = np.float32([[-8, -8, 32, 40], [10, 12, 60, 50], [0, 0, 0, 0]])
    masks = np.random.default_rng(0).random((3, 28, 28), np.float32)
    scores, classes = np.float32([0.9, 0.6, -1]), np.int64([1, 0, 0])
    write_onnx(tmp_path / "x.onnx", boxes, scores, classes, masks)
    photo = Image.new("RGB", (40, 60), (200, 100, 8))
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.png", exif=exif)
    return tmp_path


BLOCKED = """
import runpy, shutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "detectron2", "resnest_d2", "torchvision"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Absent())
sys.path[:] = [path for path in sys.path if path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
shutil.copy("/proc/self/status", "status")
"""


def run_standalone(*arguments, folder):
    script = shutil.copy(standalone.__file__, folder / "run_model.py")
    command = [sys.executable, "-c", BLOCKED, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


runtimes = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


@runtimes
def test_the_script_runs_where_torch_is_not(made, runtime):
    files = ["--json", "found.json", "--image-id", "12", "--output", "drawn.png"]
    files += ["--runtime", runtime]
    result = run_standalone("x.onnx", "photo.png", *files, folder=made)
    assert result.returncode == 0, result.stderr
    # Upright it is 60x40, which is resized to 96x64 and padded; the boxes move by blue's 8.
    boxes = [[0, 0, 40 / 1.6, 48 / 1.6], [18 / 1.6, 20 / 1.6, 68 / 1.6, 58 / 1.6]]
    lines = result.stdout.splitlines()
    for line, box, start in zip(lines, boxes, ("square 0.900", "circle 0.600"), strict=True):
        assert line.startswith(f"{start} at ")
        assert list(map(float, line.split()[3:])) == pytest.approx(box, abs=0.051)
    truth = {"images": [{"id": 12, "width": 40, "height": 60}], "annotations": [], "info": {}}
    truth["categories"] = [{"id": 7, "name": "circle"}, {"id": 9, "name": "square"}]
    (made / "truth.json").write_text(json.dumps(truth))
    loaded = COCO(made / "truth.json").loadRes(str(made / "found.json"))
    records = loaded.loadAnns([1, 2])
    assert [record["image_id"] for record in records] == [12, 12]
    assert [record["category_name"] for record in records] == ["square", "circle"]
    assert [record["category_id"] for record in records] == [9, 7]
    assert [record["score"] for record in records] == pytest.approx([0.9, 0.6])
    x, y, width, height = records[1]["bbox"]
    assert [x, y, x + width, y + height] == pytest.approx(boxes[1], abs=1e-4)
    drawn = np.asarray(Image.open(made / "drawn.png"))
    assert drawn.shape == (40, 60, 3)
    assert (drawn[39, 59] == (200, 100, 8)).all()
    assert (drawn[15, 15] != (200, 100, 8)).any()
    exported = load_exported(made / "x.onnx", runtime)
    pixels = np.array(Image.new("RGB", (96, 64), (8, 100, 200))).transpose(2, 0, 1)
    given = {"image": torch.from_numpy(pixels), "height": 40, "width": 60}
    found = exported([given])[0]["instances"]
    assert torch.allclose(found.pred_boxes.tensor, torch.tensor(boxes), atol=1e-4)
    for annotation, mask in zip(records, found.pred_masks.numpy(), strict=True):
        assert (loaded.annToMask(annotation) != mask).mean() < 1e-3


@pytest.mark.parametrize("threshold", ["0.01", "nan"])
def test_the_script_refuses_a_threshold_below_the_files(made, threshold):
    result = run_standalone("x.onnx", "photo.png", "--threshold", threshold, folder=made)
    assert result.returncode == 2
    assert f"--threshold {threshold} is not between x.onnx's 0.05 and 1" in result.stderr


@pytest.fixture
def change(made):
    """Change what the file says about itself."""

    def set_facts(changes):
        model = onnx.load(made / "x.onnx")
        facts = json.loads(model.metadata_props[0].value) | changes
        facts = {name: value for name, value in facts.items() if value != "left out"}
        onnx.helper.set_model_props(model, {"resnest_d2": json.dumps(facts)})
        onnx.save(model, made / "x.onnx")

    return set_facts


def test_the_script_numbers_classes_without_names(made, change):
    change({"classes": [], "category_ids": None})
    result = run_standalone("x.onnx", "photo.png", "--output", "drawn.png", folder=made)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "0"]


@pytest.mark.parametrize(
    "changes",
    [
        {"min_side": "left out"},
        {"outputs": ["boxes"]},
        {"pixel_mean": [1.0]},
        {"size_divisibility": 0},
        {"score_threshold": float("nan")},
    ],
)
def test_facts_of_another_version_are_refused(made, change, changes):
    change(changes)
    words = rf"x.onnx was written by another version of .* changed since: {next(iter(changes))}"
    with pytest.raises(InputError, match=words):
        load_exported(made / "x.onnx")


@runtimes
def test_the_script_refuses_files_of_others(made, runtime):
    model = onnx.load(made / "x.onnx")
    del model.metadata_props[:]
    onnx.save(model, made / "x.onnx")
    result = run_standalone("x.onnx", "photo.png", "--runtime", runtime, folder=made)
    assert result.returncode == 1
    assert result.stderr == "error: x.onnx was not written by `resnest-d2 export`\n"


@runtimes
def test_a_file_that_reads_others_is_refused(made, monkeypatch, runtime):
    """ONNX can keep weights in other files; in those of this package they are all inside."""
    monkeypatch.chdir(made)
    (made / "weights").write_bytes(bytes(48))
    model = onnx.load(made / "x.onnx")
    tensor = next(one for one in model.graph.initializer if one.name == "boxes_")
    onnx.external_data_helper.set_external_data(tensor, "weights", 0, 48)
    tensor.ClearField("raw_data")
    (made / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="x.onnx cannot be read as an ONNX model"):
        load_exported(made / "x.onnx", runtime)


def test_the_script_reads_pictures_as_the_package_does(tmp_path):
    values = np.linspace(0, 65535, 12 * 8).reshape(12, 8)
    grey = Image.fromarray((values // 257).astype(np.uint8))
    veiled = Image.merge("RGBA", [grey, grey.transpose(Image.Transpose.ROTATE_180), grey, grey])
    pictures = {"grey.png": grey, "veiled.png": veiled, "palette.png": grey.convert("P")}
    pictures |= {"grey alpha.png": veiled.convert("LA"), "cmyk.jpg": grey.convert("CMYK")}
    pictures |= {"bits.png": grey.convert("1"), "pixel.png": grey.crop((0, 0, 1, 1))}
    deep = Image.fromarray(values.astype(np.uint16))
    pictures |= {"deep.png": deep, "deep.tif": deep}
    turned = Image.Exif()
    turned[0x0112] = 7
    for name, image in pictures.items():
        image.save(tmp_path / name, **({} if name == "deep.tif" else {"exif": turned}))
        found = np.asarray(standalone.read_picture(str(tmp_path / name)))
        assert (found == read_image(tmp_path / name)).all(), name
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(SystemExit, match="f.tif has pixels of 32 bits, whose range is not known"):
        standalone.read_picture(str(tmp_path / "f.tif"))


def test_the_scripts_sizes_are_detectron2s():
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 3000, (300, 2)).tolist():
        for short, long in ((800, 1333), (128, 1333), (600, 601)):
            expected = T.ResizeShortestEdge.get_output_shape(height, width, short, long)
            assert standalone.resized_shape(height, width, short, long) == expected
    assert standalone.resized_shape(7, 9, 0, 0) == (7, 9)


def test_the_scripts_masks_are_detectron2s():
    masks = torch.rand(40, 28, 28)
    boxes = torch.rand(40, 4) * torch.tensor([50, 40, 40, 30])
    boxes[:, 2:] = boxes[:, :2] + 0.5 + boxes[:, 2:]  # inside of the picture, as the script's are
    expected = paste_masks_in_image(masks, boxes, (75, 95), 0.5).numpy()
    for mask, box, wanted in zip(masks.numpy(), boxes.numpy(), expected, strict=True):
        part, top, left = standalone.paste(mask, box)
        pasted = np.zeros((75, 95), bool)
        pasted[top : top + part.shape[0], left : left + part.shape[1]] = part
        assert (pasted != wanted).sum() <= 1  # a probability of 0.5, to rounding


def test_the_scripts_rle_is_pycocotools():
    generator = np.random.default_rng(0)
    for _ in range(500):
        height, width = generator.integers(1, 60, 2).tolist()
        bottom, right = generator.integers(1, [height + 1, width + 1]).tolist()
        top, left = generator.integers(0, [bottom, right]).tolist()
        whole = np.zeros((height, width), np.uint8, order="F")
        part = generator.random((bottom - top, right - left)) < generator.choice([0, 0.1, 0.9, 1])
        whole[top:bottom, left:right] = part
        expected = mask_util.encode(whole)
        expected["counts"] = expected["counts"].decode()
        assert standalone.encode(part, top, left, height, width) == expected


def test_the_script_needs_little_memory_for_many_masks_of_a_large_photo(tmp_path):
    """100 masks of 12 million pixels, half of them above the threshold, would be 1.2 GB."""
    low = np.random.default_rng(0).random((100, 2), np.float32) * 20
    boxes = np.concatenate([low, low + np.float32([20, 15])], axis=1)
    boxes[0] = 0, 0, 85, 64  # the whole photo
    scores = np.linspace(0.9, 0.1, 100, dtype=np.float32)
    distance = np.hypot(*np.mgrid[-1:1:28j, -1:1:28j]).astype(np.float32)
    masks = np.broadcast_to(1.5 - distance, (100, 28, 28)).copy()
    write_onnx(tmp_path / "x.onnx", boxes, scores, np.zeros(100, np.int64), masks)
    Image.new("RGB", (4000, 3000)).save(tmp_path / "photo.bmp")
    files = ["--json", "found.json", "--output", "drawn.bmp", "--runtime", "onnxruntime"]
    result = run_standalone("x.onnx", "photo.bmp", *files, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    records = json.loads((tmp_path / "found.json").read_text())
    assert len(records) == 50
    areas = [mask_util.area(record["segmentation"]) for record in records]
    assert areas[0] > 8e6
    assert min(areas) > 3e5
    # The process's own: getrusage counts its parent's memory too.
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", (tmp_path / "status").read_text())
    assert int(peak) < 400 * 1024
