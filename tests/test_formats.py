"""Annotations in other formats are refused, and converted by the commands of docs/own_data.md."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from resnest_d2.config import FileError, InputError, MissingFileError
from resnest_d2.data.coco_json import read_coco

PAGE = Path(__file__).parents[1] / "docs/own_data.md"
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels><label><name>cat</name></label></labels></task></meta>
  <image id="0" name="a.png" width="40" height="30">
    <box label="cat" occluded="0" xtl="5" ytl="4" xbr="15" ybr="14" z_order="0"></box>
  </image>
</annotations>"""
VOC = """<annotation>
  <filename>a.png</filename><size><width>40</width><height>30</height><depth>3</depth></size>
  <object><name>cat</name>
    <bndbox><xmin>5</xmin><ymin>4</ymin><xmax>15</xmax><ymax>14</ymax></bndbox>
  </object>
</annotation>"""
YOLO = "0 0.25 0.3 0.25 0.3333\n"
LABELME = {
    "version": "5.0",
    "imagePath": "a.png",
    "imageHeight": 30,
    "imageWidth": 40,
    "shapes": [{"label": "cat", "points": [[5, 4], [15, 4], [15, 14]], "shape_type": "polygon"}],
}
DATA = "train: images\nnc: 1\nnames: [cat]\n"
# The row of the page's table, the files it converts, the file it leaves, and the box in that.
CONVERSIONS = {
    "YOLO's boxes": (
        {"labels/a.txt": YOLO, "labels/data.yaml": DATA},
        "train.json",
        [5, 4, 10, 10],
    ),
    "YOLO's polygons": (
        {"labels/a.txt": "0 0.125 0.1 0.375 0.1 0.375 0.5 0.125 0.5\n", "data.yaml": DATA},
        "train.json",
        [5, 3, 10, 12],
    ),
    "Pascal VOC": ({"Annotations/a.xml": VOC}, "train.json", [4, 3, 11, 11]),  # pixels from 1 on
    "CVAT's XML": ({"annotations.xml": CVAT}, "train.json", [5, 4, 10, 10]),
    "labelme": (
        {"images/a.json": json.dumps(LABELME)},
        "runs/labelme2coco/dataset.json",
        [5, 4, 10, 10],
    ),
}
PACKAGES = {"coco": "hotcoco", "labelme2coco": "labelme2coco"}


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_the_commands_of_the_page_convert(tmp_path, kind):
    files, written, box = CONVERSIONS[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "images").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "images/a.png")
    (command,) = re.findall(rf"^\| {kind}[^|]*\| `([^`]*)`", PAGE.read_text(), re.M)
    program, *arguments = shlex.split(command)
    pytest.importorskip(PACKAGES.get(program, "supervision"))
    program = Path(sys.executable).parent / program
    subprocess.run([program, *arguments], cwd=tmp_path, check=True, capture_output=True)
    images = tmp_path if kind == "labelme" else tmp_path / "images"
    data = read_coco(tmp_path / written, images)
    assert list(data.categories.values()) == ["cat"]
    (annotation,) = data.annotations
    assert annotation["bbox"] == pytest.approx(box, abs=1 if "polygons" in kind else 0.01)


NO_COCO = (
    r"is not in COCO's format: it has no list 'images'; docs/own_data.md has commands that con"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(LABELME), NO_COCO),
        (json.dumps([{"image_id": 1, "score": 0.5}]), NO_COCO),
        (json.dumps({"images": [], "categories": []}), "it has no list 'annotations'"),
        (VOC, "is no JSON: expected value at line 1 column 1; docs/own_data.md has commands that"),
        ("", "is no JSON: "),
        ("{}".encode("utf-16"), "is no JSON: "),
    ],
)
def test_other_formats_are_refused_in_a_sentence(tmp_path, content, message):
    file = tmp_path / "train.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"train.json {message}|{message}"):
        read_coco(file, tmp_path)


def test_folders_and_files_that_are_none(tmp_path):
    with pytest.raises(MissingFileError, match=r"no annotation file .*absent.json"):
        read_coco(tmp_path / "absent.json", tmp_path)
    with pytest.raises(FileError, match=f"cannot read {tmp_path}: Is a directory"):
        read_coco(tmp_path, tmp_path)
    file = tmp_path / "train.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(MissingFileError, match="there is no folder of images .*absent"):
        read_coco(file, tmp_path / "absent")
