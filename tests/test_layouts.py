"""Where annotation files and pictures are in the folders that tools write."""

import json

import pytest
from PIL import Image

from resnest_d2.config import InputError, MissingFileError
from resnest_d2.data.layouts import find_layout, has_masks

FILES = {"images": [], "annotations": [], "categories": []}


def make(root, *names):
    """Make pictures, and files in COCO's format, each with the pictures of its part."""
    pictures = [name for name in names if not name.endswith(".json")]
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name in pictures:
            Image.new("L", (2, 2)).save(file)
            continue
        part = "val" if "val" in name.lower() else "test" if "test" in name else "train"
        mine = [p for p in pictures if part in p] or pictures
        images = [{"id": 1, "file_name": p.rpartition("/")[2]} for p in mine]
        file.write_text(json.dumps(FILES | {"images": images}))


LAYOUTS = {
    "Roboflow": (
        "train/_annotations.coco.json train/train.jpg valid/_annotations.coco.json valid/val.jpg "
        "test/_annotations.coco.json test/test.jpg",
        ("train/_annotations.coco.json", "train"),
        ("valid/_annotations.coco.json", "valid"),
    ),
    "two files": (
        "train.json val.json images/train.png images/val.png",
        ("train.json", "images"),
        ("val.json", "images"),
    ),
    "CVAT": (
        "annotations/instances_default.json images/a.tif",
        ("annotations/instances_default.json", "images"),
        None,
    ),
    "CVAT without the folder": (
        "annotations/instances_default.json a.tif",
        ("annotations/instances_default.json", "."),
        None,
    ),
    "COCO": (
        "annotations/instances_train2017.json train2017/train.jpg "
        "annotations/instances_val2017.json val2017/val.jpg "
        "annotations/captions_train2017.json annotations/person_keypoints_train2017.json",
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_val2017.json", "val2017"),
    ),
    "folders of parts": (
        "annotations/train.json annotations/val.json images/train/train.jpg images/val/val.jpg",
        ("annotations/train.json", "images/train"),
        ("annotations/val.json", "images/val"),
    ),
    "a part each": (
        "train/labels.json train/images/train.jpg val/labels.json val/images/val.jpg",
        ("train/labels.json", "train/images"),
        ("val/labels.json", "val/images"),
    ),
    "FiftyOne": ("labels.json data/a.jpg", ("labels.json", "data"), None),
    "one file": ("annotations.json a.jpg", ("annotations.json", "."), None),
    "words": (
        "Training.json Validation.json train.jpg val.jpg",
        ("Training.json", "."),
        ("Validation.json", "."),
    ),
}


@pytest.mark.parametrize(("names", "train", "val"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, names, train, val):
    make(tmp_path, *names.split())
    layout = find_layout(tmp_path)
    for part, expected in zip((layout.train, layout.val), (train, val), strict=True):
        found = part and (part.file, part.images)
        assert found == (expected and tuple(tmp_path / name for name in expected))
    assert str(layout).startswith(f"train on {layout.train.file} (pictures in ")
    assert ("evaluate on" in str(layout)) == (val is not None)


@pytest.mark.parametrize(
    ("segmentations", "expected"),
    [
        ([[[1, 1, 5, 1, 5, 5]], {"size": [9, 9], "counts": "1"}, []], True),
        ([[1, 1, 5, 1, 5, 5], None], True),
        ([[], None, [], [[1, 1, 5, 1, 5, 5]]], False),
        ([], False),
    ],
)
def test_masks_are_seen(tmp_path, segmentations, expected):
    annotations = [{"category_id": 1, "segmentation": one} for one in segmentations]
    (tmp_path / "train.json").write_text(json.dumps(FILES | {"annotations": annotations}))
    assert has_masks(tmp_path / "train.json") == expected


@pytest.mark.parametrize("name", ["sub\\a.png", "Größe.png", "other/place/a.png"])
def test_pictures_whose_names_are_written_otherwise(tmp_path, name):
    make(tmp_path, "annotations/train.json", "photos/a.png")
    file = tmp_path / "annotations/train.json"
    file.write_text(json.dumps(FILES | {"images": [{"file_name": name}]}))
    assert find_layout(tmp_path).train.images == tmp_path
    make(tmp_path, "images/b.png")
    assert find_layout(tmp_path).train.images == tmp_path / "images"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("", "no annotation file in COCO's format"),
        ("val.json a.jpg", "no part to train on, only .*val.json"),
        ("one.json two.json a.jpg", "one.json and .*two.json may be the train part; name the righ"),
        ("train.json train/labels.json", "labels.json and .*train.json may be the train part"),
        ("train.json", "there are no pictures for .*train.json in"),
    ],
)
def test_what_is_not_found(tmp_path, names, words):
    make(tmp_path, *names.split())
    with pytest.raises((InputError, MissingFileError), match=f"^--data: .*{words}"):
        find_layout(tmp_path)


def test_other_files_are_passed_over(tmp_path):
    make(tmp_path, "train.json", "a.jpg")
    (tmp_path / "config.json").write_text('{"name": "train"}')
    (tmp_path / "classes.json").write_text('["train"]')
    (tmp_path / "empty.json").touch()
    assert find_layout(tmp_path).train.file == tmp_path / "train.json"


def test_yolo_gets_the_converting_line(tmp_path):
    (tmp_path / "data.yaml").write_text("train: images/train")
    with pytest.raises(InputError, match="coco convert --from yolo"):
        find_layout(tmp_path)
    with pytest.raises(MissingFileError, match="--data: there is no folder"):
        find_layout(tmp_path / "nothing")
