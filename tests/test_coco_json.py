"""Annotation files as people and tools make them: read, repaired, or refused in a list."""

import copy
import json
import logging
from contextlib import suppress
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import detection_utils
from detectron2.data.datasets import load_coco_json
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from resnest_d2.config import InputError
from resnest_d2.data.coco_json import CocoData, read_coco
from resnest_d2.data.images import read_image
from resnest_d2.data.instances import decode_counts
from resnest_d2.data.options import Options
from resnest_d2.evaluation.coco import load_truth

SIZES = {"a.png": (40, 30), "sub/b.png": (50, 20)}
CORNERS = [5, 4, 15, 4, 15, 14, 5, 14]
POINTS = [[5, 4], [15, 4], [15, 14], [5, 14]]
SQUARE = np.zeros((30, 40), np.uint8)
SQUARE[4:14, 5:15] = 1
RUNS = [154, *[10, 20] * 9, 10, 766]  # of the square
PLAIN = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "sub/b.png", "width": 50, "height": 20},
    ],
    "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
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
    add_pictures(tmp_path, **SIZES)
    return tmp_path


def add_pictures(folder: Path, *names: str, **sizes: tuple[int, int]) -> None:
    for name, size in {**dict.fromkeys(names, (40, 30)), **sizes}.items():
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(file)


@pytest.fixture
def odd():
    """The plain file, which the test changes."""
    return copy.deepcopy(PLAIN)


def read(folder: Path, data: dict, **arguments) -> CocoData:
    (folder / "data.json").write_text(json.dumps(data))
    arguments = {"masks": True} | arguments
    return read_coco(folder / "data.json", folder / "images", **arguments)


def errors(folder: Path, data: dict, **arguments) -> list[str]:
    return read(folder, data, refuse=False, **arguments).errors


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def every(key: str, **values):
    """A change of every entry of a list; a function gets the entry."""

    def change(data):
        for entry in data[key]:
            entry.update({k: v(entry) if callable(v) else v for k, v in values.items()})

    return change


def test_what_detectron2_reads_is_read_the_same(folder):
    data = read(folder, PLAIN)
    theirs = load_coco_json(str(data.file), str(folder / "images"), "coco_json_test")
    assert data.categories == {4: "cat", 90: "dog"}  # ids with holes, in their order
    by_id = {record["image_id"]: record for record in data.dicts}
    assert len(theirs) == 2
    for record in theirs:
        assert by_id[record["image_id"]] == record
    assert by_id[7]["annotations"][0]["category_id"] == 1
    alone = read(folder, PLAIN | {"annotations": PLAIN["annotations"][:1]})
    assert alone.dicts[1]["annotations"] == []  # an image without annotations stays


# Changes that leave what the file means as it is.
SAME = {
    "ids are text": lambda d: [
        every("images", id=lambda e: str(e["id"]))(d),
        every("categories", id=lambda e: str(e["id"]))(d),
        every("annotations", **{k: lambda e, k=k: str(e[k]) for k in ("id", "image_id")})(d),
        every("annotations", category_id=lambda e: f"{e['category_id']}.0")(d),
    ],
    "numbers are text": every("annotations", iscrowd="0", area="100", bbox=["5", "4", 10.0, "1e1"]),
    "values are absent": lambda d: [
        a.pop(k) for a in d["annotations"] for k in ("iscrowd", "area", "bbox")
    ],
    "values are nothing": every("annotations", iscrowd=None, area=None, bbox=[]),
    "values are zero": every("annotations", iscrowd=False, area=0, bbox=[5, 4, 0, 0]),
    "area is huge": every("annotations", area=1e308),
    "flat polygons": every("annotations", segmentation=list(CORNERS)),
    "points": every("annotations", segmentation=POINTS),
    "points in a list": every("annotations", segmentation=[POINTS]),
    "coordinates are text": every("annotations", segmentation=[[str(c) for c in CORNERS]]),
    "an empty polygon beside": every("annotations", segmentation=[list(CORNERS), []]),
    "a polygon of one point beside": every("annotations", segmentation=[list(CORNERS), [1, 2]]),
    "sizes are absent": lambda d: [i.pop(k) for i in d["images"] for k in ("width", "height")],
    "sizes are zero": every("images", width=0, height=None),
    "sizes are text": every("images", width=lambda e: str(e["width"])),
    "backslashes": every("images", file_name=lambda e: e["file_name"].replace("/", "\\")),
    "folders too many": every("images", file_name=lambda e: f"../train/{e['file_name']}"),
    "another machine": every("images", file_name=lambda e: f"C:\\Users\\me\\{e['file_name']}"),
    "another case": every("images", file_name=lambda e: e["file_name"].upper()),
    "no ending": every("images", file_name=lambda e: e["file_name"].removesuffix(".png")),
    "spaces around": every("images", file_name=lambda e: f" {e['file_name']} "),
    "an image twice": lambda d: d["images"].append(dict(d["images"][0])),
    "a category twice": lambda d: d["categories"].append(dict(d["categories"][0])),
    "Roboflow's phantom": lambda d: [
        every("categories", supercategory="pets")(d),
        d["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"}),
    ],
    "keypoints that no model asked for": lambda d: [
        d["categories"][0].update(keypoints="many", skeleton=[[7]]),
        d["annotations"][0].update(keypoints=[1]),
    ],
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
    assert read(folder, content).dicts == plain.dicts


@pytest.mark.parametrize(
    ("change", "has_box"),
    [
        ({"bbox": [5, 5, 0, 10], "segmentation": []}, False),
        ({"bbox": [-20, 5, 10, 10], "segmentation": []}, False),
        ({"bbox": None, "segmentation": []}, False),
        ({"bbox": None, "segmentation": [[50, 5, 60, 5, 60, 9]]}, False),
        ({"segmentation": [[5, 5, 9, 9, 3]]}, True),
        ({"segmentation": []}, True),
        ({"segmentation": {"size": [30, 40], "counts": [1200]}}, True),
    ],
)
def test_useless_annotations_are_left_out_and_named(folder, odd, caplog, change, has_box):
    odd["annotations"][0].update(change)
    assert [a["id"] for a in read(folder, odd).annotations] == [2, 3]
    what = "have no mask, neither" if has_box else "have neither box nor mask in their image"
    said = warnings(caplog)[-1]
    assert said.startswith(f"{folder / 'data.json'}: left out 1 annotations that {what}")
    assert said.endswith(": 1")
    caplog.clear()
    data = read(folder, odd, masks=False)  # a model of boxes has no use for the mask
    assert (len(data.annotations), data.num_masks) == (2 + has_box, 2)
    assert bool(warnings(caplog)) != has_box


@pytest.mark.parametrize("compressed", [True, False])
def test_rle(folder, odd, compressed):
    text = mask_util.encode(np.asfortranarray(SQUARE))["counts"].decode()
    rle = {"size": [30, 40], "counts": text if compressed else RUNS}
    odd["annotations"][0]["segmentation"] = rle
    data = read(folder, odd)
    assert data.annotations[0]["segmentation"] == {"size": [30, 40], "counts": text}
    assert (mask_util.decode(data.annotations[0]["segmentation"]) == SQUARE).all()
    assert (data.num_masks, data.num_rle) == (3, 1)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_compressed_run_lengths_are_pycocotools(runs):
    """Read by our own few lines, which see what is broken."""
    size = [1, sum(runs)]
    rle = mask_util.frPyObjects({"size": size, "counts": runs}, *size)
    assert decode_counts(rle["counts"].decode()) == runs


# What is changed in the first entry of a list, and all that is then said.
NUMBERS = "annotation 1: 'bbox' must be four numbers"
MASK = "annotation 1: 'segmentation' must be RLE, 'size' [height, width] and 'counts', a list of nu"
PAIRS = "category 90: 'skeleton' must be pairs of numbers of its keypoints, from 1 on"
RLE = "annotation 1: its RLE"
SUM = "annotation 1: the counts of its RLE do not add up to 30 x 40"
WRONG = [
    ("categories", {"id": None}, "category number 1 of the list: 'id' must be an integer"),
    ("categories", {"name": " "}, "category 90: 'name' must be a text that is not empty, got ' '"),
    ("categories", {"id": 4}, "category 4 is 'dog' and 'cat'"),
    ("categories", {"keypoints": "nose"}, "category 90: 'keypoints' must be a list of names"),
    ("categories", {"keypoints": ["a"], "skeleton": [1, 2]}, PAIRS),
    ("categories", {"keypoints": ["a"], "skeleton": [[1, 2]]}, PAIRS),
    ("images", {"id": 3}, "image 3 is listed twice, differently: 'a.png' and 'sub/b.png'"),
    ("images", {"id": [3]}, "image number 1 of the list: 'id' must be an integer"),
    ("images", {"file_name": None}, "image 7: 'file_name' must be a text that is not empty, got N"),
    ("images", {"width": 30}, "image 7 is said to be 30 x 30, but {images}/a.png is 40 x 30"),
    ("annotations", {"category_id": 8}, "annotation 1: category_id 8 is none of the categories"),
    ("annotations", {"image_id": 8}, "annotation 1: image_id 8 is none of the images"),
    ("annotations", {"category_id": {}}, "annotation 1: 'category_id' must be an integer"),
    ("annotations", {"bbox": [1, 2, 3]}, NUMBERS),
    ("annotations", {"bbox": [1, 2, 3, float("nan")]}, NUMBERS),
    ("annotations", {"bbox": [float("inf")] * 2 + [float("-inf")] * 2}, NUMBERS),
    ("annotations", {"bbox": [1], "area": "big"}, NUMBERS),  # two faults are one annotation
    ("annotations", {"bbox": {"x": 5, "y": 4, "width": 10, "height": 10}}, NUMBERS),
    ("annotations", {"bbox": [0, 0, 1e308, 1e308]}, NUMBERS),
    ("annotations", {"area": "big"}, "annotation 1: 'area' must be a number, got 'big'"),
    ("annotations", {"iscrowd": "some"}, "annotation 1: 'iscrowd' must be 0 or 1, got 'some'"),
    ("annotations", {"segmentation": "nonsense"}, MASK),
    ("annotations", {"segmentation": ["a", 2, 3, 4, 5, 6]}, MASK),
    ("annotations", {"segmentation": [{"x": 5, "y": 4}]}, MASK),
    ("annotations", {"segmentation": {"counts": []}}, MASK),
]
WRONG += [
    ("annotations", {"segmentation": {"size": size, "counts": counts}}, message)
    for size, counts, message in [
        ([4, 4], "x", f"{RLE} has size [4, 4] (height, width), its image [30, 40]"),
        *(([30, 40], counts, SUM) for counts in ([5, 5], "0")),
        *(([30, 40], counts, MASK) for counts in (None, [-5, 1205])),
        *(([30, 40], counts, f"{RLE} cannot be decoded") for counts in ("zz##", "o" * 100, "oooo")),
    ]
]


@pytest.mark.parametrize(("key", "change", "message"), WRONG)
def test_one_cause_is_one_error_that_names_the_entry(folder, odd, caplog, key, change, message):
    """Annotations of a wrong image or category get no error of their own, and can be skipped."""
    odd["annotations"] = [{**odd["annotations"][0], "id": n} for n in (1, 2, 3)]
    odd[key][0].update(change)
    error, *others = errors(folder, odd, keypoints=True)
    assert error.startswith(message.replace("{images}", str(folder / "images")))
    assert not others or "id" in change  # else annotations name an entry that there is
    with pytest.raises(InputError) as raised:
        read(folder, odd, keypoints=True)
    assert str(raised.value).splitlines()[1:] == [error, *others]
    if key == "annotations":
        skipped = read(folder, odd, options=Options(skip_bad_annotations=True))
        assert [a["id"] for a in skipped.annotations] == [2, 3]
        assert "1 annotations are wrong and are left out: 1 (" in caplog.text


def test_all_errors_are_listed_at_once(folder, odd):
    wrong = [{"bbox": [1, 2]}, {"category_id": 8}, {"segmentation": 5}, {"iscrowd": 2}]
    odd["annotations"][1:] = [
        {**odd["annotations"][0], "id": 100 + n, **w} for n, w in enumerate(12 * wrong)
    ]
    odd["images"].append({"id": 5, "file_name": ""})
    with pytest.raises(InputError) as raised:
        read(folder, odd)
    header, *lines, last = str(raised.value).splitlines()
    way = ", which training leaves out with --skip-bad-annotations:"
    assert header.endswith(f"data.json: 49 errors in 48 of 49 annotations{way}")
    assert len(lines) == 20
    assert last == "and 29 more; resnest-d2 check-data lists all"
    # As check-data does, which goes on to the pictures.
    data = read(folder, odd, refuse=False)
    assert data.errors[:20] == lines
    starts = {"image 5", *(f"annotation {100 + n}" for n in range(48))}
    assert {line.partition(":")[0] for line in data.errors} == starts
    assert [a["id"] for a in data.annotations] == [1]
    assert (data.num_annotations, len(data.images)) == (49, 2)
    (other,) = errors(folder, odd, options=Options(skip_bad_annotations=True))
    assert other.startswith("image 5: ")
    nothing = {"images": [], "annotations": [], "categories": []}
    assert errors(folder, nothing) == ["'images' is empty", "'categories' is empty"]


@pytest.mark.parametrize(
    ("ids", "name"), [([0, 1], 1), (["a", "b"], "b"), ([5, None], "number 2 of the list")]
)
def test_errors_name_annotations_as_the_file_does(folder, odd, ids, name):
    odd["annotations"] = [{**odd["annotations"][0], "id": n} for n in ids]
    odd["annotations"][1]["bbox"] = "wide"
    (error,) = errors(folder, odd)
    assert error.startswith(f"annotation {name}: 'bbox' must be four numbers")


@pytest.mark.parametrize("ids", [[None] * 3, [1, 1, 2], ["a", "b", "c"], [0, 1, 2]])
def test_annotations_whose_ids_are_none_are_numbered(folder, odd, caplog, ids):
    for annotation, number in zip(odd["annotations"], ids, strict=True):
        annotation["id"] = number
    data = read(folder, odd)
    assert data.dicts == read(folder, PLAIN).dicts
    assert [a["id"] for a in data.annotations] == [1, 2, 3]
    is_said = "annotations were numbered, for ids are absent, double or text: 3" in caplog.text
    assert is_said == (ids[0] != 0)


def test_names_that_are_numbers_and_ids_that_are_names(folder, odd, caplog):
    odd["categories"] = [{"id": "1_11", "name": 4}, {"id": "11_1", "name": 7.5}]
    every("annotations", category_id=lambda e: {4: "1_11", 90: "11_1"}[e["category_id"]])(odd)
    every("annotations", image_id=lambda e: f"x{e['image_id']}")(odd)
    every("images", id=lambda e: f"x{e['id']}")(odd)
    data = read(folder, odd)
    assert data.categories == {1: "4", 2: "7.5"}
    assert [i["id"] for i in data.images] == [1, 2]
    assert [(a["image_id"], a["category_id"]) for a in data.annotations] == [(1, 2), (1, 1), (2, 2)]
    for which in ("categories are no numbers from 0 on; all were numbered: 1_", "images are no"):
        assert f"2 ids of {which}" in caplog.text


def test_one_class_under_two_ids(folder, odd, caplog):
    every("categories", name="cat")(odd)
    data = read(folder, odd)
    assert data.categories == {4: "cat", 90: "cat"}
    (said,) = warnings(caplog)
    assert "'cat' (4 and 90)" in said
    assert "--merge-classes" in said
    merged = read(folder, odd, options=Options(merge_classes=True))
    assert merged.categories == {4: "cat"}
    assert {a["category_id"] for a in merged.annotations} == {4}
    # Beside the training set's.
    assert read(folder, odd, categories={4: "cat", 90: "cat"}).num_annotations == 3
    said = errors(folder, odd, categories={1: "cat", 2: "cat"})
    assert len(said) == 2
    assert said[0].startswith("category 4 'cat' can be several of the training set's: 1 cat, 2 cat")


def test_classes_are_matched_by_name(folder, odd, caplog):
    theirs = {1: "dog", 2: "Cat ", 3: "cow"}
    data = read(folder, PLAIN, categories=theirs)
    assert data.categories == theirs
    assert [a["category_id"] for a in data.annotations] == [1, 2, 1]
    assert "2 categories were matched to the training set's by their names" in caplog.text
    odd["categories"].append({"id": 5, "name": "unused"})
    assert read(folder, odd, categories=theirs).categories == theirs
    assert "left out 1 categories that the training set does not have: 'unused'" in caplog.text
    (error,) = errors(folder, PLAIN, categories={1: "cat", 2: "dogs"})
    assert error.startswith(
        "category 90 'dog' is not one of the training set's: 1 cat, 2 dogs; did"
    )


def test_keypoints(folder, odd):
    every("categories", keypoints=["a", "b", "c"], skeleton=[[1, 2], [2, 3.0]])(odd)
    every("annotations", keypoints=[12, 10, 2, 28, 26, 1, 0, 0, 0], num_keypoints=2)(odd)
    del odd["annotations"][1]["keypoints"]  # without a label; instances can be stacked all the same
    data = read(folder, odd, keypoints=True)
    assert (data.keypoint_names, data.skeleton) == (["a", "b", "c"], [(0, 1), (1, 2)])
    assert data.annotations[0]["keypoints"] == [12, 10, 2, 28, 26, 1, 0, 0, 0]
    assert data.annotations[1]["keypoints"] == [0] * 9
    assert data.num_keypoints == 2
    found = data.dicts[0]["annotations"][0]["keypoints"]  # Detectron2's are no pixels
    assert found == [12.5, 10.5, 2, 28.5, 26.5, 1, 0.5, 0.5, 0]
    odd["annotations"][0]["keypoints"] = [1, 2]
    (error,) = errors(folder, odd, keypoints=True)
    assert error.startswith("annotation 1: 'keypoints' must be 3 times x, y and visibility, as ma")
    wanted = {"keypoints": True, "keypoint_names": ["c"]}
    del odd["annotations"][0]
    (error,) = errors(folder, odd, **wanted)
    assert error.startswith("its keypoints ['a', 'b', 'c'] are not those that the model is trained")
    odd["categories"][0]["keypoints"] = ["c"]
    (error,) = errors(folder, odd, **wanted)
    assert error.startswith("categories 'dog' and 'cat' have different keypoints")


@pytest.mark.parametrize(("width", "height"), [(41, 32), (39, 28)])
def test_a_size_that_is_a_pixel_off_clips(folder, odd, caplog, width, height):
    odd["images"][0].update(width=width, height=height)
    outline = [35, 20, width, 20, width, height, 35, height]
    odd["annotations"][0].update(bbox=[35, 20, width - 35, height - 20], segmentation=[outline])
    data = read(folder, odd)
    right, bottom = min(width, 40), min(height, 30)
    assert (data.images[0]["width"], data.images[0]["height"]) == (40, 30)
    assert data.annotations[0]["bbox"] == [35, 20, right - 35, bottom - 20]
    assert f"7 ({width} x {height} is 40 x 30)" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [29, 4, 10, 10], "segmentation": []},
        {"bbox": None, "segmentation": [[20, 4, 39, 4, 39, 9, 20, 9]]},
        {"bbox": None, "segmentation": [[33, 4, 38, 4, 38, 9, 33, 9]]},
        {"segmentation": {"size": [30, 40], "counts": [4, 5, 1191]}},
    ],
    ids=["box", "mask", "outside", "RLE"],
)
def test_exif_exchanges_width_and_height(folder, odd, caplog, change):
    """The JSON has the stored size; boxes tell whether they are of the picture as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "images/a.png", exif=exif)
    data = read(folder, odd)
    assert (data.images[0]["width"], data.images[0]["height"]) == (30, 40)
    assert data.annotations[0]["bbox"] == [5, 4, 10, 10]
    detection_utils.check_image_size(data.dicts[0], read_image(data.images[0]["file_name"]))
    assert "1 images have the width and height of before EXIF turns them" in caplog.text
    odd["annotations"][0].update(change)
    is_rle = isinstance(change["segmentation"], dict)
    way = "its RLE has size" if is_rle else "is of a picture as it is stored, before EXIF"
    (error,) = errors(folder, odd, masks=bool(change["segmentation"]))
    assert error.startswith(f"annotation 1: {way}")


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("box", [[10, 9, 10, 10], [5, 4, 15, 14], [0.125, 0.13, 0.25, 0.33]])
def test_boxes_that_are_not_their_masks(folder, odd, caplog, box, masks):
    """As centres, corners, parts of the image, and boxes of whole objects beside their parts."""
    every("annotations", bbox=box)(odd)
    words = r"3 of 3 boxes are not .*annotations 1, 2, 3.*COCO's are x, y, .*--boxes-from-masks ma"
    with pytest.raises(InputError, match=words):
        read(folder, odd, masks=masks)
    data = read(folder, odd, masks=masks, options=Options(boxes_from_masks=True))
    assert data.dicts == read(folder, PLAIN).dicts
    assert "3 boxes were computed from their masks: 1, 2, 3" in caplog.text
    data = read(folder, odd, masks=masks, options=Options(boxes_as_given=True))
    assert [a["bbox"] for a in data.annotations] == [box] * 3
    assert [a["segmentation"] for a in data.annotations] == [[CORNERS]] * 3
    assert "3 boxes are not those of their masks, or reach" in caplog.text


@pytest.mark.parametrize("masks", [True, False])
def test_few_boxes_that_are_wrong_are_named(folder, odd, caplog, masks):
    """With masks they are not those of their masks, without they reach beyond the image."""
    odd["annotations"] = [
        {**odd["annotations"][0], "id": n, "bbox": [5 - n / 100, 4, 10, 10]} for n in range(1, 11)
    ]
    every("annotations", segmentation=[list(CORNERS)] if masks else [])(odd)
    for annotation in odd["annotations"][:2]:
        annotation["bbox"] = [20, 10, 38, 19]
    data = read(folder, odd, masks=masks)
    assert [a["bbox"] for a in data.annotations[:3]] == [[20, 10, 20, 19]] * 2 + [[4.97, 4, 10, 10]]
    (said,) = warnings(caplog)
    assert said.startswith(
        f"{folder / 'data.json'}: 2 boxes are not those of their masks, or reach"
    )
    assert said.endswith("; they stay, clipped: 1, 2")
    odd["annotations"][2]["bbox"] = [20, 10, 38, 19]
    words = r"3 of 10 boxes .* reach beyond .*1, 2, 3\); COCO's are .*--boxes-as-given keeps and cl"
    with pytest.raises(InputError, match=words):
        read(folder, odd, masks=masks)
    data = read(folder, odd, masks=masks, options=Options(boxes_as_given=True))
    assert data.annotations[2]["bbox"] == [20, 10, 20, 19]


def test_crowds_and_what_is_counted(folder, odd, caplog):
    """As CVAT's brush and exporters of binary masks write them."""
    odd["annotations"][0].update(iscrowd=1, segmentation={"size": [30, 40], "counts": RUNS})
    every("annotations", ignore=1)(odd)  # which pycocotools overwrites
    outside = {"bbox": [90, 5, 1, 1], "segmentation": []}
    for number, change in enumerate(({}, {"image_id": 7}, {"image_id": 7}, outside), 4):
        odd["annotations"].append({**odd["annotations"][2], "id": number, **change})
    data = read(folder, odd)
    assert (data.num_crowds, [a["iscrowd"] for a in data.annotations]) == (1, [1, 0, 0, 0, 0, 0])
    assert (data.num_annotations, data.num_masks, data.num_rle, data.most_objects) == (7, 6, 1, 3)
    assert "1 annotations are crowds" in caplog.text
    assert "--crowd-as-instances" in caplog.text
    data = read(folder, odd, options=Options(crowd_as_instances=True))
    assert (data.num_crowds, data.most_objects) == (0, 4)


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


# The pictures on the disk, the names in the file, and what they are found as; None is missing.
CASES = ["train/x/D.PNG", "train/cafe\u0301.png"]
FOUND = [
    # The root holds pictures and masks; in the second case one of the masks lies in no folder.
    *(
        (
            ["images/a.jpg", "images/c.jpg", f"masks/{mask}", mask],
            [f"{prefix}{name}.jpg" for name in "abc"],
            ["images/a.jpg", None, "images/c.jpg"],
        )
        for mask in ("b.png", "b.jpg")
        for prefix in ("images/", "train/images/")
    ),
    # The third folder was not unpacked.
    *(
        (
            ["seq1/0001.jpg", "seq2/0001.jpg", "seq4/0001.jpg"],
            [f"{start}seq{n}/0001.jpg" for n in (1, 2, 3)],
            ["seq1/0001.jpg", "seq2/0001.jpg", None],
        )
        for start in ("", "data/")
    ),
    (CASES, ["train/x/d.png", "train/caf\u00e9.png"], CASES),
    # A name that can be two files is none.
    (["y/e.png", "y/E.PNG"], ["y/E.Png"], [None]),
    (["y/e.png", "y/E.PNG"], ["y/e.png"], ["y/e.png"]),
    (["sub/b.png"], ["sub/b.png", "b.png"], ["sub/b.png", None]),
    # Nor is a picture of another ending.
    (["b.png", "c.png.jpg"], ["c.png", "b.png"], [None, "b.png"]),
    *((["b.png"], [name, "b.png"], [None, "b.png"]) for name in ("a.jpg", "a.png.jpg")),
]


@pytest.mark.parametrize(("files", "names", "expected"), FOUND)
def test_names_of_pictures(folder, files, names, expected):
    add_pictures(folder, *files)
    there = [name for name in expected if name]
    if None in expected:
        missing = names[expected.index(None)]
        way = ";" if there else "$"
        message = f"1 of the {len(names)} images are not in .*: {missing}{way}"
        with pytest.raises(InputError, match=message):
            found(folder, *names)
    if there:
        assert found(folder, *names, options=Options(skip_missing=True)) == there


@pytest.mark.parametrize("names", [("a.png", "a.png"), ("x/a.png", "y/a.png")])
def test_two_images_that_can_only_be_one_file(folder, names):
    with pytest.raises(InputError, match=r"images .*a.png' and .*a.png' can only be the same file"):
        found(folder, *names)


@pytest.mark.parametrize("name", ["x" * 300, "data:image/png;base64," + "A" * 5000, "\0"])
def test_names_that_no_file_can_have(folder, name):
    with pytest.raises(InputError, match="1 of the 2 images are not in") as raised:
        found(folder, "a.png", name)
    assert len(str(raised.value)) < 700


def test_missing_images_and_their_annotations_are_left_out(folder, odd, caplog):
    odd["images"].append({"id": 1, "file_name": "lost.png"})
    odd["annotations"].append({**odd["annotations"][0], "id": 4, "image_id": 1})
    data = read(folder, odd, options=Options(skip_missing=True))
    assert (len(data.images), len(data.annotations)) == (2, 3)
    assert f"1 of 3 images are not in {folder}/images and are left out: lost.png" in caplog.text


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


def test_what_is_written_is_one_data_set_to_all_evaluations(folder, odd):
    """A file that pycocotools and hotcoco read in different ways."""
    first, second, third = odd["annotations"]
    first |= {"id": 0, "area": None}
    del first["iscrowd"]
    second |= {"id": 0, "segmentation": {"size": [30, 40], "counts": RUNS}, "bbox": None}
    third |= {"id": -4, "category_id": 4.0, "image_id": "3", "iscrowd": "1"}
    odd["annotations"].append({**first, "id": "x", "image_id": -7.0, "segmentation": []})
    every("annotations", image_id=lambda e: -7 if e["image_id"] == 7 else e["image_id"])(odd)
    odd["categories"].append(dict(odd["categories"][0]))
    odd["images"][0]["id"] = -7
    read(folder, odd, masks=False).write(folder / "written.json")
    truth = load_truth(folder / "written.json")  # which refuses what they do not read alike
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 1, 0]


# What a file of anything may hold.
SOME = [0, -1, 1, 2, 7, 0.5, 1e-300, 1e308, -1e308, 1e309, float("nan"), 2**31, 2**63, 10**400]
TEXTS = ["", " ", "7", "1e309", "nan", "[[5, 4, 9, 4, 9, 9]]", "a.png", "../b.png", "\x00", "oooo"]
LEAVES = st.none() | st.booleans() | st.sampled_from(SOME) | st.sampled_from(TEXTS)
KEYS = st.sampled_from(["x", "y", "size", "counts", "id"])
VALUES = st.recursive(
    LEAVES | st.integers(0, 45) | st.floats(0, 45),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
RICH = copy.deepcopy(PLAIN)
every("categories", keypoints=lambda e: ["left", "right"], skeleton=lambda e: [[1, 2]])(RICH)
every("annotations", keypoints=lambda e: [5, 6, 2, 7, 8, 1], num_keypoints=2)(RICH)
RICH["annotations"][1]["segmentation"] = {"size": [30, 40], "counts": RUNS}


def places(value, path=()):
    """The paths of all values inside of a value."""
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(child, (*path, key))


PLACES = st.sampled_from(list(places(RICH)))


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(st.tuples(PLACES, VALUES | PLACES), max_size=3),
    masks=st.booleans(),
    keypoints=st.booleans(),
)
def test_a_changed_file_is_read_or_refused(tmp_path_factory, changes, masks, keypoints):
    """Values are replaced by others, or by copies of those of another place."""
    folder = tmp_path_factory.getbasetemp() / "hostile"
    if not folder.exists():
        add_pictures(folder, **SIZES)
    content = copy.deepcopy(RICH)
    with suppress(LookupError, TypeError):  # a place is no longer there
        for (*path, last), new in changes:
            value = reduce(getitem, new, RICH) if isinstance(new, tuple) else new
            reduce(getitem, path, content)[last] = copy.deepcopy(value)
    with suppress(InputError):
        data = read(folder, content, masks=masks, keypoints=keypoints)
        check_readable(data, folder / "written.json")


def check_readable(data: CocoData, file: Path) -> None:
    """What is read, pycocotools reads, too."""
    data.write(file)
    assert "NaN" not in file.read_text()
    assert "Infinity" not in file.read_text()
    coco = COCO(str(file))
    assert len(coco.anns) == len(data.annotations)
    assert set(coco.cats) == set(data.categories)
    for annotation in coco.anns.values():
        assert annotation["id"] > 0
        assert annotation["category_id"] in coco.cats
        assert annotation["iscrowd"] in (0, 1)
        assert annotation["area"] >= 0
        x, y, width, height = annotation["bbox"]
        image = coco.imgs[annotation["image_id"]]
        assert width > 0 < height
        assert x + width >= 0 <= y + height
        if "segmentation" in annotation:
            rle = coco.annToRLE(annotation)
            assert rle["size"] == [image["height"], image["width"]]
            mask_util.area(rle)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"images": ' + "[" * 150 + "]" * 150 + ', "annotations": [5], "categories": [null]}',
        '{"images": [1e999], "annotations": [NaN], "categories": [Infinity]}',
        '{"images": [{"id": ' + "9" * 5000 + "}]}",
        '{"images": [{"id": 1, "file_name": "\\ud800"}], "annotations": [], "categories": []}',
    ],
)
def test_files_that_are_hardly_json(folder, text):
    file = folder / "hostile.json"
    file.write_text(text)
    with pytest.raises(InputError, match="hostile.json") as raised:
        read_coco(file, folder / "images")
    assert len(str(raised.value)) < 2000


INNER = [7, 6, 13, 6, 13, 12, 7, 12]


@pytest.mark.parametrize(
    ("polygons", "area", "is_warned"),
    [
        ([CORNERS, INNER], 64, True),
        ([INNER, CORNERS], 64, True),
        ([CORNERS, INNER], 100, False),  # as COCO means it
        ([CORNERS, [20, 4, 26, 4, 26, 10, 20, 10]], 136, False),  # two parts
        ([CORNERS], 64, False),
    ],
)
def test_a_polygon_that_is_meant_as_a_hole(folder, odd, caplog, polygons, area, is_warned):
    odd["annotations"][0] |= {"segmentation": polygons, "area": area, "bbox": [5, 4, 21, 10]}
    read(folder, odd, options=Options(boxes_as_given=True))
    words = "1 masks have a polygon inside of another and an area as if it were a hole"
    assert (words in "".join(warnings(caplog))) == is_warned


def test_pictures_behind_links_are_found(folder, odd):
    """Also where a link leads in a circle."""
    (folder / "images/sub").rename(folder / "elsewhere")
    (folder / "images/other").symlink_to(folder / "elsewhere")
    (folder / "elsewhere/circle").symlink_to(folder / "images")
    (folder / "elsewhere/self").symlink_to(folder / "elsewhere/self")
    odd["images"][1]["file_name"] = "other/B.PNG"  # by another case, so that it is searched for
    data = read(folder, odd)
    assert Path(data.images[1]["file_name"]).samefile(folder / "elsewhere/b.png")
    (folder / "images/again").symlink_to(folder / "elsewhere")  # a second way to it
    assert len(read(folder, odd).images) == 2


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def test_pointers_of_git_lfs_are_called_that(folder, odd):
    (folder / "images/a.png").write_text(POINTER)
    (error,) = errors(folder, odd)
    assert "a.png cannot be read as a picture: it is a pointer of Git LFS in place of" in error
    (folder / "lfs.json").write_text(POINTER)
    with pytest.raises(InputError, match="lfs.json is a pointer of Git LFS .*`git lfs pull`"):
        read_coco(folder / "lfs.json", folder / "images")
