"""Annotations in other formats are named, and converted by the command that the message says."""

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from resnest_d2.data.coco_json import read_coco

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
OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepiction,IsInside\na,xclick,cat,1,0.125,0.375,0.1333333,0.4666667,0,0,0,0,0\n"
)
LABELME = {
    "version": "5.0",
    "imagePath": "a.png",
    "imageHeight": 30,
    "imageWidth": 40,
    "shapes": [{"label": "cat", "points": [[5, 4], [15, 4], [15, 14]], "shape_type": "polygon"}],
}
REGION = {"shape_attributes": {"name": "rect", "x": 5, "y": 4, "width": 10, "height": 10}}
VIA = {
    "a.png123": {
        "filename": "a.png",
        "size": 123,
        "regions": [{**REGION, "region_attributes": {"label_id": "cat"}}],
    }
}
BOX = {"image_id": 1, "category_id": 1, "bbox": [5, 4, 10, 10]}
COCO = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat"}]}
JSON = {
    "labelme": (LABELME, "is of labelme, of one image; convert the folder: labelme2coco"),
    "VIA": (VIA, "is a project of VIA; export it as COCO in VIA"),
    "VIA's project": ({"_via_img_metadata": VIA, "_via_settings": {}}, "is a project of VIA"),
    "Label Studio": ([{"id": 1, "data": {"image": "a"}, "annotations": []}], "is of Label Studio"),
    "results": ([{**BOX, "score": 0.5}], "is a list of results, which are evaluated, not trained"),
    "keypoint results": (
        [{"image_id": 1, "category_id": 1, "keypoints": [1, 2, 1], "score": 1}],
        "is a list of results",
    ),
    "annotations": ([BOX], "is the list of annotations alone, without COCO's 'images'"),
    "CreateML": ([{"image": "a.png", "annotations": []}], "is of CreateML"),
    "captions": (
        {**COCO, "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]},
        "is in COCO's format of captions, which holds no instances with boxes",
    ),
    "panoptic": (
        {**COCO, "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": []}]},
        "is in COCO's format of panoptic segmentation",
    ),
    "stuff": (
        {
            "images": COCO["images"],
            "categories": [{"id": 168, "name": "sky-other"}, {"id": 183, "name": "other"}],
            "annotations": [{**BOX, "category_id": 168, "id": 1}],
        },
        "is in COCO's format of stuff",
    ),
    "FiftyOne": ({"samples": []}, "is of FiftyOne"),
    "Datumaro": ({"info": {}, "categories": {"label": {}}, "items": []}, "is of Datumaro"),
    "GeoJSON": ({"type": "FeatureCollection", "features": []}, "is GeoJSON"),
    "a number": (5, "holds no JSON object; it begins with '5'"),
    "a text": ("x", "holds no JSON object"),
    "a list of numbers": ([5], "is a list, not an object in COCO's format"),
    "COCO in a list": ([{**COCO, "annotations": []}], "is a list around an object in COCO's"),
    "names that are lists": ({"categories": [{"id": 1, "name": ["cat"]}]}, "is not in COCO's"),
    "categories that are none": ({"categories": 5}, "is not in COCO's format"),
    "Supervisely": ({"tags": [], "size": {}, "objects": []}, "is of Supervisely, of one image"),
    "Cityscapes": ({"imgHeight": 1, "imgWidth": 1, "objects": []}, "is of Cityscapes, of one"),
    "YouTube-VIS": ({"videos": [], "annotations": [], "categories": []}, "is of YouTube-VIS"),
    "a task of Label Studio": ({"id": 1, "data": {}, "annotations": []}, "is of Label Studio"),
    "BDD100K": ([{"name": "a.jpg", "labels": []}], "is of BDD100K: export COCO's format there"),
    "Detectron2's dicts": ([{"file_name": "a", "annotations": []}], "is of Detectron2's own"),
    "an empty list": ([], "is a list, not an object in COCO's format"),
    "an empty object": ({}, "is not in COCO's format: it has no list 'images'"),
}
TEXTS = {
    "cvat.xml": (CVAT, "is XML of CVAT; convert it to COCO's: coco convert --from cvat"),
    "voc.xml": (
        VOC,
        "is XML of Pascal VOC, of one image; convert it to COCO's: coco convert --from",
    ),
    "page.xml": ("<html></html>", "is XML, not JSON in COCO's format"),
    "a.txt": (
        YOLO,
        "holds labels of YOLO, of one image; convert it to COCO's: coco convert --from",
    ),
    "polygon.txt": (
        "3 0 0 1 0 1 1\n",
        "holds labels of YOLO, of one image; supervision converts polygons: sv.DetectionDataset",
    ),
    "data.yaml": ("train: images\nnc: 1\nnames: [cat]\n", "is the description of a YOLO data set"),
    "boxes.csv": ("a.png,5,4,15,14,cat\n", "is a table; export COCO's format where it was made"),
    "oid.csv": (
        OPEN_IMAGES,
        "is of Open Images; convert it to COCO's: coco convert --from oid",
    ),
    "lines.json": ('{"a": 1}\n{"a": 2}\n', "holds one JSON object a line"),
    "empty.json": (" \n", "is empty"),
    "video.xml": (f"{CVAT[:40]}<annotations><track id='0'>", "is XML of CVAT, of a video; export"),
    "labelme.xml": ("<annotation><object><polygon>", "is XML of the old LabelMe, whose polygons"),
    "config.yaml": ("MODEL:\n  DEVICE: cpu\n", "is YAML, not JSON in COCO's format"),
    "classes.txt": ("cat\ndog\n", "holds no JSON object; it begins with 'cat'"),
    "pointer.json": ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    "scientific.txt": ("0.0 5e-1 0.5 1.0 2e-1\n", "holds labels of YOLO"),
    "cut.json": ('{"images": [', "is no JSON: "),
}


@pytest.mark.parametrize("kind", JSON)
def test_json_of_other_formats_is_named(tmp_path, kind):
    content, message = JSON[kind]
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"{file} {message}")):
        read_coco(file, tmp_path)


@pytest.mark.parametrize("name", TEXTS)
def test_files_of_other_formats_are_named(tmp_path, name):
    content, message = TEXTS[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name} {message}")):
        read_coco(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}", mtime=0), "is compressed by gzip: unpack it"),
        ("{}".encode("utf-16"), "is written in UTF-16: save it in UTF-8"),
        (b"PAR1\0\0", "is a table in Parquet's format"),
        (b"{\0\0\0", "is no text, but JSON is"),
    ],
    ids=["gzip", "utf-16", "parquet", "binary"],
)
def test_files_that_are_no_text_are_named(tmp_path, content, message):
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"train.json {message}"):
        read_coco(tmp_path / "train.json", tmp_path)


def test_supervision_converts_polygons_of_yolo(tmp_path):
    """As the message says it, with folders in place of capitals."""
    sv = pytest.importorskip("supervision")
    folder, images = tmp_path / "labels", tmp_path / "images"
    folder.mkdir()
    images.mkdir()
    Image.new("RGB", (40, 30)).save(images / "a.png")
    (folder / "a.txt").write_text("0 0.125 0.1 0.375 0.1 0.375 0.5 0.125 0.5\n")
    (tmp_path / "data.yaml").write_text(TEXTS["data.yaml"][0])
    with pytest.raises(ValueError, match="supervision converts polygons") as raised:
        read_coco(folder / "a.txt", images)
    call = str(raised.value).partition("polygons: ")[2]
    for word, path in (
        *(("IMAGES", images), ("LABELS", folder)),
        *(("data.yaml", tmp_path / "data.yaml"), ("train.json", tmp_path / "train.json")),
    ):
        call = call.replace(f"'{word}'", repr(str(path)))
    eval(call, {"sv": sv})
    data = read_coco(tmp_path / "train.json", images, masks=True)
    assert list(data.categories.values()) == ["cat"]
    assert data.annotations[0]["bbox"] == pytest.approx([5, 3, 10, 12], abs=1)


def test_pictures_are_no_annotations_and_files_no_folders(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png is a picture, not annotations"):
        read_coco(tmp_path / "a.png", tmp_path)
    (tmp_path / "train.json").write_text(json.dumps({**COCO, "annotations": []}))
    with pytest.raises(FileNotFoundError, match="train.json is a file, not a folder of images"):
        read_coco(tmp_path / "train.json", tmp_path / "train.json")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"_annotations.coco.json": "{}"}, "is a folder; its annotations may be "),
        ({"a.xml": VOC, "b.xml": VOC}, "is a folder with a.xml, which is XML of Pascal VOC"),
        ({"labels/a.txt": YOLO, "data.yaml": ""}, "is a folder with a.txt, which holds labels of"),
        (
            dict.fromkeys(("a.json", "b.json"), json.dumps(LABELME)),
            "is a folder with a.json, which is of labelme, of one image; convert the folder: ",
        ),
        (
            dict.fromkeys(("a.json", "b.json"), json.dumps({"tags": [], "size": 1, "objects": []})),
            "is a folder with a.json, which is of Supervisely",
        ),
        (dict.fromkeys(("a.json", "b.json"), "{}"), "with a.json, which is one of 2 JSON files"),
        ({"a.png": ""}, "is a folder, not a JSON file"),
        (
            {"README.txt": "This data set", "classes.txt": "cat", "labels/a.txt": YOLO},
            "is a folder with a.txt, which holds labels of YOLO",
        ),
        ({"README.txt": "This data set"}, "is a folder, not a JSON file"),
    ],
)
def test_folders_are_named_by_what_they_hold(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_coco(tmp_path, tmp_path)


def command_in(error: Exception) -> str:
    """The converting command that a message tells."""
    return str(error).partition("convert it to COCO's: ")[2].partition(" (")[0]


def run(command: str, folder: Path, **words: Path) -> None:
    """Run a command of a message or the docs in a folder, with files where it has capitals."""
    program, *arguments = [str(words.get(word, word)) for word in shlex.split(command)]
    program = Path(sys.executable).parent / program
    subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["cvat.xml", "voc.xml", "a.txt", "oid.csv"])
def test_the_command_of_the_message_converts(tmp_path, name):
    """As it stands in the message, with the folder of images where it says IMAGES."""
    pytest.importorskip("hotcoco")
    folder, images = tmp_path / "labels", tmp_path / "images"
    folder.mkdir()
    images.mkdir()
    Image.new("RGB", (40, 30)).save(images / "a.png")
    (folder / name).write_text(TEXTS[name][0])
    if name == "a.txt":
        (folder / "data.yaml").write_text(TEXTS["data.yaml"][0])
    with pytest.raises(ValueError, match="coco convert") as raised:
        read_coco(folder / name, images)
    run(command_in(raised.value), tmp_path, IMAGES=images)
    data = read_coco(tmp_path / "train.json", images)
    assert list(data.categories.values()) == ["cat"]
    (annotation,) = data.annotations
    # Corners of VOC are pixels counted from 1.
    expected = [4, 3, 11, 11] if name == "voc.xml" else [5, 4, 10, 10]
    assert annotation["bbox"] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("kind", ["labelme", "VIA", "VIA's project"])
def test_commands_of_other_packages_convert(tmp_path, kind):
    package = "labelme2coco" if kind == "labelme" else "globox"
    pytest.importorskip(package)
    labels = tmp_path / "labels"
    labels.mkdir()
    Image.new("RGB", (40, 30)).save(labels / "a.png")
    (labels / "a.json").write_text(json.dumps(JSON[kind][0]))
    with pytest.raises(ValueError, match=package) as raised:
        read_coco(labels / "a.json", labels)
    command = package + str(raised.value).rpartition(package)[2]
    run(command, tmp_path, FOLDER=labels, IMAGES=labels, FILE=labels / "a.json")
    written = "runs/labelme2coco/dataset.json" if kind == "labelme" else "train.json"
    data = read_coco(tmp_path / written, tmp_path if kind == "labelme" else labels)
    assert list(data.categories.values()) == ["cat"]
    assert data.annotations[0]["bbox"] == [5, 4, 10, 10]


def test_vias_own_coco_export_reads(tmp_path):
    """VIA repeats categories, writes ids as text and polygons flat."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    content = {
        "info": {},
        "images": [{"id": 0, "width": 40, "height": 30, "file_name": "a.png", "license": 0}],
        "annotations": [
            {
                **{"id": 0, "image_id": "0", "category_id": 1, "area": 100, "iscrowd": 0},
                **{"segmentation": [5, 4, 15, 4, 15, 14, 5, 14], "bbox": [5, 4, 10, 10]},
            }
        ],
        "licenses": [{"id": 0, "name": "Unknown License", "url": ""}],
        "categories": [{"supercategory": "type", "id": 1, "name": "cat"}] * 2,
    }
    (tmp_path / "via.json").write_text(json.dumps(content))
    data = read_coco(tmp_path / "via.json", tmp_path, masks=True)
    assert data.categories == {1: "cat"}
    assert data.annotations[0]["segmentation"] == [[5, 4, 15, 4, 15, 14, 5, 14]]
