"""Annotations as tools write them: what is odd is repaired or refused."""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from pycocotools.coco import COCO

from resnest_d2.config import InputError
from resnest_d2.data.coco_json import read_coco
from resnest_d2.data.options import Options

SIZES = {"a.png": (40, 30), "sub/b.png": (50, 20)}
CORNERS = [5, 4, 15, 4, 15, 14, 5, 14]
POINTS = [[5, 4], [15, 4], [15, 14], [5, 14]]
SQUARE = np.zeros((30, 40), np.uint8)
SQUARE[4:14, 5:15] = 1
PLAIN = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "sub/b.png", "width": 50, "height": 20},
    ],
    "categories": [{"id": 4, "name": "cat"}, {"id": 90, "name": "dog"}],
    "annotations": [
        {
            **{"id": index + 1, "image_id": image, "category_id": category, "area": 100},
            **{"bbox": [5, 4, 10, 10], "segmentation": [list(CORNERS)], "iscrowd": 0},
        }
        for index, (image, category) in enumerate([(7, 90), (7, 4), (3, 90)])
    ],
}


@pytest.fixture
def folder(tmp_path):
    """The pictures."""
    for name, size in SIZES.items():
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(file)
    return tmp_path


@pytest.fixture
def odd():
    """The plain file, which the test changes."""
    return copy.deepcopy(PLAIN)


def read(folder: Path, data: dict, **arguments):
    (folder / "data.json").write_text(json.dumps(data))
    arguments = {"masks": True} | arguments
    return read_coco(folder / "data.json", folder / "images", **arguments)


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def every(key: str, **values):
    """A change of every entry of a list; a function gets the entry."""

    def change(data):
        for entry in data[key]:
            entry.update({k: v(entry) if callable(v) else v for k, v in values.items()})

    return change


# Changes that leave what the file means as it is.
SAME = {
    "ids are text": lambda d: [
        every("images", id=lambda e: str(e["id"]))(d),
        every("categories", id=lambda e: str(e["id"]))(d),
        every("annotations", **{k: lambda e, k=k: str(e[k]) for k in ("id", "image_id")})(d),
        every("annotations", category_id=lambda e: f"{e['category_id']}")(d),
    ],
    "ids are floats": every("annotations", image_id=lambda e: float(e["image_id"])),
    "iscrowd is text": every("annotations", iscrowd="0"),
    "iscrowd is a truth value": every("annotations", iscrowd=False),
    "iscrowd is absent": lambda d: [a.pop("iscrowd") for a in d["annotations"]],
    "area is text": every("annotations", area="100.0"),
    "area is absent": lambda d: [a.pop("area") for a in d["annotations"]],
    "area is nothing": every("annotations", area=None),
    "area is zero": every("annotations", area=0),
    "area is huge": every("annotations", area=1e308),
    "boxes are lists of text": every("annotations", bbox=["5", "4", "10.0", "1e1"]),
    "boxes are absent": lambda d: [a.pop("bbox") for a in d["annotations"]],
    "boxes are nothing": every("annotations", bbox=None),
    "boxes are empty": every("annotations", bbox=[]),
    "boxes have no area": every("annotations", bbox=[5, 4, 0, 0]),
    "flat polygons": every("annotations", segmentation=list(CORNERS)),
    "points": every("annotations", segmentation=POINTS),
    "points in a list": every("annotations", segmentation=[POINTS]),
    "coordinates are text": every("annotations", segmentation=[[str(c) for c in CORNERS]]),
    "an empty polygon beside": every("annotations", segmentation=[list(CORNERS), []]),
    "sizes are absent": lambda d: [i.pop(k) for i in d["images"] for k in ("width", "height")],
    "sizes are nothing": every("images", width=None, height=None),
    "sizes are zero": every("images", width=0, height=0),
    "sizes are text": every("images", width=lambda e: str(e["width"])),
    "backslashes": every("images", file_name=lambda e: e["file_name"].replace("/", "\\")),
    "a folder too many": every("images", file_name=lambda e: f"train/images/{e['file_name']}"),
    "dots": every("images", file_name=lambda e: f"../lost/{e['file_name']}"),
    "another machine": every("images", file_name=lambda e: f"C:\\Users\\me\\{e['file_name']}"),
    "another root": every("images", file_name=lambda e: f"/home/me/images/{e['file_name']}"),
    "an address": every("images", file_name=lambda e: f"https://a.b/c/{e['file_name']}?w=640#x"),
    "encoded": every("images", file_name=lambda e: e["file_name"].replace("/", "%2F")),
    "another case": every("images", file_name=lambda e: e["file_name"].upper()),
    "no ending": every("images", file_name=lambda e: e["file_name"].removesuffix(".png")),
    "spaces around": every("images", file_name=lambda e: f" {e['file_name']} "),
    "an address in place of the name": lambda d: [
        i.update(coco_url=f"http://a.b/x/{i.pop('file_name')}") for i in d["images"]
    ],
    "path in place of the name": lambda d: [i.update(path=i.pop("file_name")) for i in d["images"]],
    "an image twice": lambda d: d["images"].append(dict(d["images"][0])),
    "an image under two ids": lambda d: [
        d["images"].append({**d["images"][0], "id": 9}),
        d["annotations"][1].update(image_id=9),
    ],
    "a category twice": lambda d: d["categories"].append(dict(d["categories"][0])),
    "Roboflow's phantom": lambda d: [
        every("categories", supercategory="pets")(d),
        d["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"}),
    ],
    "annotations of absent images": lambda d: d["annotations"].append(
        {**d["annotations"][0], "id": 9, "image_id": 12}
    ),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_has_one_meaning_is_read_as_the_plain_file(folder, odd, change):
    plain = read(folder, PLAIN)
    change(odd)
    data = read(folder, odd)
    assert data.categories == plain.categories
    assert data.dicts == plain.dicts
    assert data.annotations == plain.annotations
    # What is written for pycocotools is plain again.
    data.write(folder / "written.json")
    assert sorted(COCO(folder / "written.json").cats) == [4, 90]
    content = json.loads((folder / "written.json").read_text())
    for entries in content.values():
        assert len({entry["id"] for entry in entries}) == len(entries)
    assert read(folder, content).dicts == plain.dicts


@pytest.mark.parametrize("ids", [[None] * 3, [1, 1, 2], ["a", "b", "c"], [[1], 2, 3], [1.5, 2, 3]])
def test_annotations_whose_ids_are_none_are_numbered(folder, odd, caplog, ids):
    for annotation, number in zip(odd["annotations"], ids, strict=True):
        annotation["id"] = number
    data = read(folder, odd)
    assert data.dicts == read(folder, PLAIN).dicts
    assert [a["id"] for a in data.annotations] == [1, 2, 3]
    assert "3 annotations were numbered, for ids are absent, double or text" in caplog.text


def test_names_that_are_numbers_and_ids_that_are_names(folder, odd, caplog):
    odd["categories"] = [{"id": "c", "name": 4}, {"id": "d", "name": 7.5}]
    every("annotations", category_id=lambda e: {4: "c", 90: "d"}[e["category_id"]])(odd)
    every("annotations", image_id=lambda e: f"x{e['image_id']}")(odd)
    every("images", id=lambda e: f"x{e['id']}")(odd)
    data = read(folder, odd)
    assert data.categories == {1: "4", 2: "7.5"}
    assert [i["id"] for i in data.images] == [1, 2]
    assert [(a["image_id"], a["category_id"]) for a in data.annotations] == [(1, 2), (1, 1), (2, 2)]
    for which in ("categories are no numbers from 0 on; all were numbered: c, d", "images are no"):
        assert f"2 ids of {which}" in caplog.text


def test_one_class_under_two_ids(folder, odd, caplog):
    odd["categories"][1]["name"] = "cat"
    data = read(folder, odd)
    assert data.categories == {4: "cat", 90: "cat"}
    (said,) = warnings(caplog)
    assert "'cat' (4 and 90)" in said
    assert "--merge-classes" in said
    data = read(folder, odd, options=Options(merge_classes=True))
    assert data.categories == {4: "cat"}
    assert {a["category_id"] for a in data.annotations} == {4}


def test_classes_are_matched_by_name(folder, odd, caplog):
    theirs = {1: "dog", 2: "Cat ", 3: "cow"}
    data = read(folder, PLAIN, categories=theirs)
    assert data.categories == theirs
    assert [a["category_id"] for a in data.annotations] == [1, 2, 1]
    assert "2 categories were matched to the training set's by their names" in caplog.text
    odd["categories"].append({"id": 5, "name": "unused"})
    assert read(folder, odd, categories=theirs).categories == theirs
    assert "left out 1 categories that the training set does not have: 'unused'" in caplog.text
    with pytest.raises(InputError, match="category 90 'dog' is not one of .*did you mean dogs"):
        read(folder, PLAIN, categories={1: "cat", 2: "dogs"})


def test_a_box_config_takes_masks_of_any_kind(folder, caplog):
    for mask in ("nonsense", {"size": [4, 4], "counts": "x"}, [["a"]], {"counts": []}, 5):
        odd = copy.deepcopy(PLAIN)
        every("annotations", segmentation=mask)(odd)
        data = read(folder, odd, masks=False)
        assert [a["bbox"] for a in data.annotations] == [[5, 4, 10, 10]] * 3
        assert data.num_masks == 0
        with pytest.raises(InputError, match="annotation 1: "):
            read(folder, odd)


def test_keypoints_of_models_without_them_are_not_looked_at(folder, odd):
    odd["categories"][0].update(keypoints=["a", "b"], skeleton=[[0, 1]])
    odd["categories"][1].update(keypoints="many", skeleton=[[7]])
    odd["annotations"][0]["keypoints"] = [1]
    assert read(folder, odd).dicts == read(folder, PLAIN).dicts
    odd["categories"][1].update(keypoints=["c"], skeleton=[])
    with pytest.raises(InputError, match="'cat' and 'dog' have different keypoints"):
        read(folder, odd, keypoints=True)


def test_an_only_class_is_no_phantom(folder, odd):
    odd["categories"] = [{"id": 1, "name": "cat", "supercategory": "cat"}]
    odd["annotations"] = []
    assert read(folder, odd).categories == {1: "cat"}


def test_a_file_with_a_byte_order_mark_is_read(folder):
    file = folder / "data.json"
    file.write_text(json.dumps(PLAIN), encoding="utf-8-sig")
    data = read_coco(file, folder / "images", masks=True)
    assert data.dicts == read(folder, PLAIN).dicts


def test_a_class_that_can_be_two_of_the_training_sets_is_refused(folder, odd):
    every("categories", name="cat")(odd)
    assert read(folder, odd, categories={4: "cat", 90: "cat"}).num_annotations == 3
    with pytest.raises(InputError, match="4 'cat' can be any of the training set's 1 and 2, .*mer"):
        read(folder, odd, categories={1: "cat", 2: "cat"})


def test_two_entries_of_one_image_that_differ_are_refused(folder, odd):
    for change in ({"width": 80, "height": 60}, {"path": "/elsewhere/a.png"}):
        listed = [*odd["images"], {**odd["images"][0], "id": 8, **change}]
        with pytest.raises(InputError, match="'a.png' is listed twice, with another size or path"):
            read(folder, odd | {"images": listed})


@pytest.mark.parametrize("skeleton", [[[0, 1], [1, 2]], [[1, 2], [2, 3]], [[1.0, 2.0], [2, 3.0]]])
def test_keypoints_count_from_0_or_1_and_are_scaled_like_boxes(folder, odd, skeleton):
    every("categories", keypoints=["a", "b", "c"], skeleton=skeleton)(odd)
    every("annotations", keypoints=[12, 10, 2, 28, 26, 1, 0, 0, 0], num_keypoints=2)(odd)
    odd["images"][0].update(width=80, height=60)
    for annotation in odd["annotations"][:2]:
        annotation.update(bbox=[10, 8, 20, 20], segmentation=[[2 * c for c in CORNERS]])
    data = read(folder, odd, keypoints=True)
    assert data.skeleton == [(0, 1), (1, 2)]
    assert data.annotations[0]["keypoints"] == [6, 5, 2, 14, 13, 1, 0, 0, 0]
    assert data.annotations[2]["keypoints"] == [12, 10, 2, 28, 26, 1, 0, 0, 0]


@pytest.mark.parametrize(("width", "height"), [(41, 30), (40, 32), (39, 28)])
def test_a_size_that_is_a_pixel_off_clips(folder, odd, caplog, width, height):
    odd["images"][0].update(width=width, height=height)
    outline = [35, 20, width, 20, width, height, 35, height]
    odd["annotations"][0].update(bbox=[35, 20, width - 35, height - 20], segmentation=[outline])
    data = read(folder, odd)
    image, annotation = data.images[0], data.annotations[0]
    assert (image["width"], image["height"]) == (40, 30)
    assert annotation["bbox"] == [35, 20, min(width, 40) - 35, min(height, 30) - 20]
    assert max(annotation["segmentation"][0][::2]) == min(width, 40)
    assert max(annotation["segmentation"][0][1::2]) == min(height, 30)
    assert f"7 ({width} x {height} is 40 x 30)" in caplog.text


def test_annotations_at_another_size_are_scaled(folder, odd, caplog):
    odd["images"][0].update(width=80, height=60)
    for annotation in odd["annotations"][:2]:
        annotation.update(bbox=[10, 8, 20, 20], segmentation=[[2 * c for c in CORNERS]])
    odd["annotations"][1].update(area=None)
    first, second, _ = read(folder, odd).annotations
    assert first["bbox"] == second["bbox"] == [5, 4, 10, 10]
    assert first["segmentation"] == second["segmentation"] == [CORNERS]
    assert (first["area"], second["area"]) == (25, 100)
    assert "1 images were annotated at another size; their annotations are scaled: 7 (80 x 60" in (
        caplog.text
    )
    # A mask of pixels is of its picture's size.
    odd["annotations"][0]["segmentation"] = {"size": [60, 80], "counts": [4800]}
    with pytest.raises(InputError, match=r"annotation 1: its RLE has size \[60, 80\] .*\[30, 40\]"):
        read(folder, odd)


@pytest.mark.parametrize("kind", ["box", "mask", "outside", "RLE"])
def test_exif_exchanges_width_and_height(folder, odd, caplog, kind):
    """The JSON has the stored size; boxes tell whether they are of the picture as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "images/a.png", exif=exif)
    data = read(folder, odd)
    assert (data.images[0]["width"], data.images[0]["height"]) == (30, 40)
    assert data.annotations[0]["bbox"] == [5, 4, 10, 10]
    assert "1 images have the width and height of before EXIF turns them" in caplog.text
    changes = {
        "box": {"bbox": [29, 4, 10, 10], "segmentation": []},
        "mask": {"bbox": None, "segmentation": [[20, 4, 39, 4, 39, 9, 20, 9]]},
        "outside": {"bbox": None, "segmentation": [[33, 4, 38, 4, 38, 9, 33, 9]]},
        "RLE": {"segmentation": {"size": [30, 40], "counts": [4, 5, 1191]}},
    }
    odd["annotations"][0].update(changes[kind])
    way = "its RLE has size" if kind == "RLE" else "is of a picture as it is stored, before EXIF"
    with pytest.raises(InputError, match=f"annotation 1: {way}"):
        read(folder, odd, masks=kind != "box")


@pytest.mark.parametrize("box", [[10, 9, 10, 10], [5, 4, 15, 14], [0.125, 0.13, 0.25, 0.33]])
def test_boxes_that_are_not_their_masks(folder, odd, caplog, box):
    """As centres, corners and parts of the image are."""
    every("annotations", bbox=box)(odd)
    words = "3 of 3 boxes are not .*COCO's are x, y, width, height in pixels; --boxes-from-masks ma"
    with pytest.raises(InputError, match=words):
        read(folder, odd)
    data = read(folder, odd, options=Options(boxes_from_masks=True))
    assert data.dicts == read(folder, PLAIN).dicts
    assert "3 boxes were computed from their masks: 1, 2, 3" in caplog.text


def test_few_boxes_that_are_not_their_masks_are_named(folder, odd, caplog):
    odd["annotations"] = [
        {**odd["annotations"][0], "id": n, "bbox": [5 - n / 100, 4, 10, 10]} for n in range(1, 11)
    ]
    odd["annotations"][4]["bbox"] = [25, 20, 10, 10]
    assert read(folder, odd).annotations[4]["bbox"] == [25, 20, 10, 10]
    said = f"{folder / 'data.json'}: 1 boxes are not those of their masks and stay: 5"
    assert warnings(caplog) == [said]


def test_boxes_without_masks_are_seen_by_their_images(folder, odd, caplog):
    every("annotations", segmentation=[])(odd)
    odd["annotations"] = [{**odd["annotations"][0], "id": n} for n in range(1, 11)]
    for annotation in odd["annotations"][:2]:
        annotation["bbox"] = [20, 10, 38, 19]
    assert read(folder, odd, masks=False).annotations[0]["bbox"] == [20, 10, 20, 19]
    assert "2 boxes reach beyond their images and were clipped: 1, 2" in caplog.text
    odd["annotations"][2]["bbox"] = [20, 10, 38, 19]
    words = r"3 of 10 boxes reach beyond .*1, 2, 3\); COCO's are .*; --boxes-as-given clips them"
    with pytest.raises(InputError, match=words):
        read(folder, odd, masks=False)
    data = read(folder, odd, masks=False, options=Options(boxes_as_given=True))
    assert data.annotations[2]["bbox"] == [20, 10, 20, 19]


@pytest.mark.parametrize("asked", [False, True])
def test_boxes_from_masks_are_clipped(folder, odd, asked):
    odd["annotations"][0]["segmentation"] = [[30, 20, 60, 20, 60, 50]]
    odd["annotations"][1]["segmentation"] = [[60, 20, 90, 20, 90, 50]]
    odd["annotations"][2]["segmentation"] = [[5, 5, 20, 5, 10, 5]]
    every("annotations", bbox=[5, 4, 10, 10] if asked else None)(odd)
    (annotation,) = read(folder, odd, options=Options(boxes_from_masks=asked)).annotations[:1]
    assert annotation["bbox"] == [30, 20, 10, 10]


def test_masks_outside_of_their_images_are_none(folder, odd, caplog):
    odd["annotations"][0]["segmentation"] = [[50, 5, 60, 5, 60, 9]]
    assert len(read(folder, odd).annotations) == 2
    assert "left out 1 annotations that have a mask outside of their image, so" in caplog.text
    assert len(read(folder, odd, masks=False).annotations) == 3


def test_crowds(folder, odd, caplog):
    """As CVAT's brush, exporters of binary masks, and tools that have "ignore" write them."""
    counts = mask_util.encode(np.asfortranarray(SQUARE))["counts"].decode()
    mask = {"size": [30, 40], "counts": counts}
    odd["annotations"][0].update(iscrowd=1, segmentation=mask)
    odd["annotations"][1]["ignore"] = 1
    every("annotations", difficult=1)(odd)  # which is no reason
    data = read(folder, odd)
    assert (data.num_crowds, [a["iscrowd"] for a in data.annotations]) == (2, [1, 1, 0])
    assert "2 annotations are crowds" in caplog.text
    assert "--crowd-as-instances" in caplog.text
    assert "1 annotations to ignore ('ignore' 1) count as crowds: 2" in caplog.text
    data = read(folder, odd, options=Options(crowd_as_instances=True))
    assert (data.num_crowds, [a["iscrowd"] for a in data.annotations]) == (0, [0, 0, 0])
    odd["annotations"][0]["ignore"] = "maybe"
    with pytest.raises(InputError, match="annotation 1: 'ignore' must be 0 or 1, got 'maybe'"):
        read(folder, odd)


def add_pictures(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(file)


def found(folder: Path, *names: str, **arguments) -> list[str]:
    """The files that the names are read from, relative to the folder of images."""
    first, mask = PLAIN["images"][0], PLAIN["annotations"][0]
    data = {
        "images": [{**first, "id": n, "file_name": name} for n, name in enumerate(names)],
        "categories": PLAIN["categories"],
        "annotations": [{**mask, "id": n + 1, "image_id": n} for n in range(len(names))],
    }
    images = read(folder, data, **arguments).images
    return [Path(i["file_name"]).relative_to(folder / "images").as_posix() for i in images]


@pytest.mark.parametrize("mask", ["b.png", "b.jpg"])
@pytest.mark.parametrize("prefix", ["", "images/", "train/images/"])
def test_a_mask_is_no_picture(folder, mask, prefix):
    """The root holds pictures and masks, and one picture is not there."""
    add_pictures(folder, "images/a.jpg", "images/c.jpg", f"masks/{mask}")
    if prefix:
        add_pictures(folder, mask)  # nor is this one, which lies in no folder
    names = [f"{prefix}{name}.jpg" for name in "abc"]
    with pytest.raises(InputError, match=rf"1 of the 3 images are not in .*: {names[1]};"):
        found(folder, *names)
    there = found(folder, *names, options=Options(skip_missing=True))
    assert there == ["images/a.jpg", "images/c.jpg"]


@pytest.mark.parametrize("start", ["", "data/"])
def test_a_picture_that_is_not_there_is_no_other_folders(folder, start):
    add_pictures(folder, "seq1/0001.jpg", "seq2/0001.jpg", "seq4/0001.jpg")
    names = [f"{start}seq{n}/0001.jpg" for n in (1, 2, 3)]  # the third was not unpacked
    with pytest.raises(InputError, match="1 of the 3 images .*seq3/0001.jpg; --skip-missing"):
        found(folder, *names)
    there = found(folder, *names, options=Options(skip_missing=True))
    assert there == ["seq1/0001.jpg", "seq2/0001.jpg"]


def test_folders_too_few(folder):
    """All pictures are in one folder of the root, which their names leave out."""
    add_pictures(folder, "train/c.png", "train/x/D.PNG", "train/cafe\u0301.png", "masks/c.png")
    names = ["c.png", "x/d.png", "caf\u00e9.png"]
    assert found(folder, *names) == ["train/c.png", "train/x/D.PNG", "train/cafe\u0301.png"]
    assert found(folder, "train/c.png", "caf\u00e9.png") == ["train/c.png", "train/cafe\u0301.png"]


@pytest.mark.parametrize("names", [["c.png"], ["y/E.Png"], ["sub/b.png", "b.png"]])
def test_a_name_that_can_be_two_files_is_none(folder, names):
    add_pictures(folder, "x/c.png", "y/c.png", "y/e.png", "y/E.PNG", "sub/b.png")
    number = len(names)
    with pytest.raises(InputError, match=f"1 of the {number} images are not in .*: {names[-1]}"):
        found(folder, *names)
    assert found(folder, "y/e.png") == ["y/e.png"]


@pytest.mark.parametrize("name", ["a.jpg", "a.png.jpg", "a.tiff"])
def test_a_picture_of_another_ending_is_another_one(folder, name):
    add_pictures(folder, "b.png", "c.png.jpg")
    for missing in (name, "c.png"):
        with pytest.raises(InputError, match=f"1 of the 2 images are not in .*: {missing};"):
            found(folder, missing, "b.png")


@pytest.mark.parametrize("names", [("a.png", "./a.png"), ("x/a.png", "y/a.png")])
def test_two_images_that_can_only_be_one_file(folder, names):
    with pytest.raises(InputError, match=r"images .*a.png' and .*a.png' can only be the same file"):
        found(folder, *names)


def test_links_and_names_that_no_file_can_have(folder):
    images = folder / "images"
    (images / "link.png").symlink_to(images / "a.png")
    (images / "lost.png").symlink_to(images / "nowhere.png")
    assert found(folder, "a.png", "link.png") == ["a.png", "link.png"]
    for name in ("lost.png", "x" * 300, "data:image/png;base64," + "A" * 5000, "http://[", "\0"):
        with pytest.raises(InputError, match="1 of the 2 images are not in") as raised:
            found(folder, "a.png", name)
        assert len(str(raised.value)) < 700
        assert found(folder, "a.png", name, options=Options(skip_missing=True)) == ["a.png"]


def test_missing_images_and_their_annotations_are_left_out(folder, odd, caplog):
    (folder / "images").rename(folder / "{a}")
    odd["images"].append({"id": 1, "file_name": "lost.png"})
    odd["annotations"].append({**odd["annotations"][0], "id": 4, "image_id": 1})
    (folder / "data.json").write_text(json.dumps(odd))
    options = Options(skip_missing=True)
    data = read_coco(folder / "data.json", folder / "{a}", masks=True, options=options)
    assert (len(data.images), len(data.annotations)) == (2, 3)
    assert f"1 of 3 images are not in {folder}/{{a}} and are left out: lost.png" in caplog.text
    (folder / "{a}").rename(folder / "images")
    every("images", file_name=lambda e: f"lost{e['id']}")(odd)
    with pytest.raises(InputError, match="3 of the 3 images"):
        read(folder, odd, options=options)


def test_pictures_that_are_none_are_all_named(folder, caplog):
    (folder / "images/a.png").write_text("<html>")
    with pytest.raises(InputError, match="1 of 2 images cannot be read: .*a.png .*--skip-bad-im"):
        read(folder, PLAIN)
    data = read(folder, PLAIN, options=Options(skip_bad_images=True))
    assert ([i["id"] for i in data.images], len(data.annotations)) == ([3], 1)
    assert "1 images cannot be read and are left out" in caplog.text
    (folder / "images/sub/b.png").write_text("")
    with pytest.raises(InputError, match="2 of 2 images cannot be read"):
        read(folder, PLAIN, options=Options(skip_bad_images=True))
