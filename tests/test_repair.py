"""Annotations as tools write them: what is odd is repaired or refused."""

import copy
import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from pycocotools.coco import COCO

from resnest_d2.config import InputError
from resnest_d2.data.coco_json import CocoData, read_coco
from resnest_d2.data.options import Options

SIZES = {"a.png": (40, 30), "sub/b.png": (50, 20)}
CORNERS = [5, 4, 15, 4, 15, 14, 5, 14]
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


def rle(height=30, width=40):
    mask = np.zeros((height, width), np.uint8)
    mask[4:14, 5:15] = 1
    return mask


def points(pairs):
    return [list(pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]


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
    "area is nothing": every("annotations", area=None),
    "area is zero": every("annotations", area=0),
    "boxes are lists of text": every("annotations", bbox=["5", "4", "10.0", "1e1"]),
    "boxes are text": every("annotations", bbox="[5, 4, 10, 10]"),
    "boxes are text with spaces": every("annotations", bbox="5 4 10 10"),
    "boxes are objects": every("annotations", bbox={"x": 5, "y": 4, "width": 10, "height": 10}),
    "boxes are absent": lambda d: [a.pop("bbox") for a in d["annotations"]],
    "boxes are nothing": every("annotations", bbox=None),
    "boxes are empty": every("annotations", bbox=[]),
    "boxes have no area": every("annotations", bbox=[5, 4, 0, 0]),
    "flat polygons": every("annotations", segmentation=list(CORNERS)),
    "points": every("annotations", segmentation=points(CORNERS)),
    "points in a list": every("annotations", segmentation=[points(CORNERS)]),
    "points are objects": every(
        "annotations", segmentation=[{"x": x, "y": y} for x, y in points(CORNERS)]
    ),
    "polygons are text": every("annotations", segmentation=json.dumps([CORNERS])),
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
    "path in place of the name": lambda d: [i.update(path=i.pop("file_name")) for i in d["images"]],
    "an image twice": lambda d: d["images"].append(dict(d["images"][0])),
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
def test_what_has_one_meaning_is_read_as_the_plain_file(folder, change):
    plain = read(folder, PLAIN)
    odd = copy.deepcopy(PLAIN)
    change(odd)
    data = read(folder, odd)
    assert data.categories == plain.categories
    assert data.dicts == plain.dicts
    assert data.annotations == plain.annotations
    # What is written for pycocotools is plain again.
    data.write(folder / "written.json")
    assert sorted(COCO(folder / "written.json").cats) == [4, 90]
    for entries in json.loads((folder / "written.json").read_text()).values():
        assert len({entry["id"] for entry in entries}) == len(entries)
    (folder / "data.json").write_bytes((folder / "written.json").read_bytes())
    again = read_coco(folder / "data.json", folder / "images", masks=True)
    assert again.dicts == plain.dicts


@pytest.mark.parametrize("ids", [[None] * 3, [1, 1, 2], [5, 5, 5], ["a", "b", "c"], [[1], 2, 3]])
def test_annotations_whose_ids_are_none_are_numbered(folder, caplog, ids):
    odd = copy.deepcopy(PLAIN)
    for annotation, number in zip(odd["annotations"], ids, strict=True):
        annotation["id"] = number
    data = read(folder, odd)
    assert data.dicts == read(folder, PLAIN).dicts
    assert [a["id"] for a in data.annotations] == [1, 2, 3]
    assert any("annotations were numbered anew" in w for w in warnings(caplog))


def test_names_that_are_numbers_or_ids_that_are_names(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    odd["categories"] = [{"id": "c", "name": 4}, {"id": "d", "name": 7.5}]
    for annotation in odd["annotations"]:
        annotation["category_id"] = {4: "c", 90: "d"}[annotation["category_id"]]
        annotation["image_id"] = f"image {annotation['image_id']}"
    for image in odd["images"]:
        image["id"] = f"image {image['id']}"
    data = read(folder, odd)
    assert data.categories == {1: "4", 2: "7.5"}
    assert [i["id"] for i in data.images] == [1, 2]
    assert [(a["image_id"], a["category_id"]) for a in data.annotations] == [(1, 2), (1, 1), (2, 2)]
    text = "\n".join(warnings(caplog))
    for part in ("2 categories have ids that are no numbers", "2 image ids are no numbers"):
        assert part in text


def test_one_class_under_two_ids(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    odd["categories"][1]["name"] = "cat"
    data = read(folder, odd)
    assert data.categories == {4: "cat", 90: "cat"}
    (said,) = warnings(caplog)
    assert "'cat' (4 and 90)" in said
    assert "--merge-classes" in said
    data = read(folder, odd, options=Options(merge_classes=True))
    assert data.categories == {4: "cat"}
    assert {a["category_id"] for a in data.annotations} == {4}


def test_a_phantom_that_is_used_in_val_stays(folder):
    odd = copy.deepcopy(PLAIN)
    every("categories", supercategory="pets")(odd)
    odd["categories"].append({"id": 1, "name": "pets", "supercategory": "none"})
    assert list(read(folder, odd).categories.values()) == ["cat", "dog"]
    data = read(folder, odd, named_in_val={"pets"})
    assert list(data.categories.values()) == ["pets", "cat", "dog"]
    odd["annotations"][0]["category_id"] = 1
    assert list(read(folder, odd).categories.values()) == ["pets", "cat", "dog"]


def test_classes_are_matched_by_name(folder, caplog):
    theirs = {1: "dog", 2: "Cat ", 3: "cow"}
    data = read(folder, PLAIN, categories=theirs)
    assert data.categories == theirs
    assert [a["category_id"] for a in data.annotations] == [1, 2, 1]
    assert "2 categories were matched to the training set's by their names" in caplog.text
    odd = copy.deepcopy(PLAIN)
    odd["categories"].append({"id": 5, "name": "unused"})
    assert read(folder, odd, categories=theirs).categories == theirs
    assert "left out 1 categories that the training set does not have: 'unused'" in caplog.text
    with pytest.raises(InputError, match="category 90 'dog' is not one of .*did you mean dogs"):
        read(folder, PLAIN, categories={1: "cat", 2: "dogs"})


@pytest.mark.parametrize("ids", [(7, 9), (9, 7)])
def test_one_file_under_two_ids_is_one_image(folder, caplog, ids):
    odd = copy.deepcopy(PLAIN)
    odd["images"] = [{**odd["images"][0], "id": n} for n in ids] + odd["images"][1:]
    odd["annotations"][1]["image_id"] = 9
    data = read(folder, odd)
    assert len(data.images) == 2
    assert [len(r["annotations"]) for r in data.dicts] == [2, 1]
    assert "1 images are listed twice" in caplog.text


@pytest.mark.parametrize(("width", "height"), [(41, 30), (40, 32), (39, 28)])
def test_a_size_that_is_a_pixel_off_clips(folder, caplog, width, height):
    odd = copy.deepcopy(PLAIN)
    odd["images"][0].update(width=width, height=height)
    far = [35, 20, width - 35, height - 20]
    outline = [35, 20, width, 20, width, height, 35, height]
    odd["annotations"][0].update(bbox=far, segmentation=[outline], area=12)
    data = read(folder, odd)
    image, annotation = data.images[0], data.annotations[0]
    assert (image["width"], image["height"]) == (40, 30)
    assert annotation["bbox"] == [35, 20, min(width, 40) - 35, min(height, 30) - 20]
    assert max(annotation["segmentation"][0][::2]) == min(width, 40)
    assert max(annotation["segmentation"][0][1::2]) == min(height, 30)
    assert f"7 ({width} x {height} is 40 x 30)" in caplog.text
    # A mask of the size that the file names is cut and filled.
    pixels = np.ones((height, width), np.uint8)
    counts = {"size": [height, width], "counts": [0, height * width]}
    odd["annotations"][0]["segmentation"] = counts
    odd["annotations"][0]["bbox"] = [0, 0, width, height]
    mask = mask_util.decode(read(folder, odd).annotations[0]["segmentation"])
    assert mask.shape == (30, 40)
    assert (mask[:height, :width] == pixels[:30, :40]).all()
    assert mask.sum() == min(height, 30) * min(width, 40)


def test_annotations_at_another_size_are_scaled(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    odd["images"][0].update(width=80, height=60)
    mask = mask_util.encode(np.asfortranarray(np.kron(rle(), np.ones((2, 2), np.uint8))))
    mask["counts"] = mask["counts"].decode()
    odd["annotations"][0].update(bbox=[10, 8, 20, 20], segmentation=[[2 * c for c in CORNERS]])
    odd["annotations"][1].update(bbox=[10, 8, 20, 20], segmentation=mask, area=400)
    data = read(folder, odd)
    first, second, _ = data.annotations
    assert first["bbox"] == second["bbox"] == [5, 4, 10, 10]
    assert first["segmentation"] == [CORNERS]
    assert (mask_util.decode(second["segmentation"]) == rle()).all()
    assert (first["area"], second["area"]) == (25, 100)
    assert "1 images were annotated at another size; their annotations are scaled: 7 (80 x 60" in (
        caplog.text
    )


@pytest.mark.parametrize("parts", [1, 2])
def test_masks_in_pieces(folder, parts):
    pieces = np.array_split(np.arange(5, 15), parts)
    found = []
    for piece in pieces:
        mask = np.zeros((30, 40), np.uint8)
        mask[4:14, piece] = 1
        encoded = mask_util.encode(np.asfortranarray(mask))
        found.append({"size": ["30", "40"], "counts": encoded["counts"].decode()})
    odd = copy.deepcopy(PLAIN)
    odd["annotations"][0]["segmentation"] = found
    mask = read(folder, odd).annotations[0]["segmentation"]
    assert (mask_util.decode(mask) == rle()).all()


def test_exif_exchanges_width_and_height(folder, caplog):
    """The JSON has the stored size; boxes tell whether they are of the picture as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "images/a.png", exif=exif)
    data = read(folder, PLAIN)
    assert (data.images[0]["width"], data.images[0]["height"]) == (30, 40)
    assert data.annotations == read(folder, PLAIN).annotations
    assert "1 images have the width and height of before EXIF turns them" in caplog.text
    odd = copy.deepcopy(PLAIN)
    odd["annotations"][0].update(bbox=[29, 4, 10, 10], segmentation=[[29, 4, 39, 4, 39, 14]])
    with pytest.raises(InputError, match="annotation 1: is of a picture as it is stored, before"):
        read(folder, odd)
    plain = {"size": [30, 40], "counts": [4, 5, 30 * 40 - 9]}
    odd["annotations"][0].update(bbox=[0, 4, 1, 5], segmentation=plain)
    with pytest.raises(InputError, match="its RLE is of a picture as it is stored"):
        read(folder, odd)


PATTERNS = {
    "centre x, centre y, width, height": [10, 9, 10, 10],
    "x1, y1, x2, y2": [5, 4, 15, 14],
    "y, x, height, width": [4, 5, 10, 10],
}


@pytest.mark.parametrize("pattern", ["centre x, centre y, width, height", "x1, y1, x2, y2"])
def test_boxes_that_are_not_their_masks(folder, caplog, pattern):
    odd = copy.deepcopy(PLAIN)
    every("annotations", bbox=PATTERNS[pattern])(odd)
    with pytest.raises(
        InputError, match=r"3 of 3 boxes .*COCO's are x, y, width, height; --boxes-from-"
    ):
        read(folder, odd)
    data = read(folder, odd, options=Options(boxes_from_masks=True))
    assert data.dicts == read(folder, PLAIN).dicts
    assert "3 boxes were computed from their masks, as asked for: 1, 2, 3" in caplog.text


def test_few_boxes_that_are_not_their_masks_are_named(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    odd["annotations"] = [
        {**odd["annotations"][0], "id": n, "bbox": [5 - n / 100, 4, 10, 10]} for n in range(1, 11)
    ]
    odd["annotations"][4]["bbox"] = [25, 20, 10, 10]
    assert read(folder, odd).annotations[4]["bbox"] == [25, 20, 10, 10]
    assert warnings(caplog) == [
        f"{folder / 'data.json'}: 1 boxes are not those of their masks and stay as they are: 5"
    ]


def test_boxes_that_are_corners_are_seen_by_their_images(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    every("annotations", bbox=[20, 10, 38, 19], segmentation=[])(odd)
    with pytest.raises(InputError, match=r"3 of 3 boxes reach beyond .*not as \(x1, y1, x2, y2\)"):
        read(folder, odd, masks=False)
    every("annotations", bbox=[30, 10, 20, 40])(odd)  # nor do they fit as corners
    data = read(folder, odd, masks=False)
    assert data.annotations[0]["bbox"] == [30, 10, 10, 20]
    assert "3 boxes reach beyond their images and were clipped" in caplog.text


def test_crowds(folder, caplog):
    """As CVAT's brush and exporters of binary masks write them."""
    odd = copy.deepcopy(PLAIN)
    encoded = mask_util.encode(np.asfortranarray(rle()))
    mask = {"size": [30, 40], "counts": encoded["counts"].decode()}
    odd["annotations"] = [{**a, "iscrowd": 1, "segmentation": mask} for a in odd["annotations"][:2]]
    data = read(folder, odd)
    assert data.num_crowds == 2
    assert "2 of 2 annotations are crowds" in caplog.text
    assert "--crowd-as-instances" in caplog.text
    data = read(folder, odd, options=Options(crowd_as_instances=True))
    assert (data.num_crowds, [a["iscrowd"] for a in data.annotations]) == (0, [0, 0])


def test_a_box_config_takes_masks_of_any_kind(folder, caplog):
    for mask in ("nonsense", {"size": [4, 4], "counts": "x"}, [["a"]], {"counts": []}, 5):
        odd = copy.deepcopy(PLAIN)
        every("annotations", segmentation=mask)(odd)
        data = read(folder, odd, masks=False)
        assert [a["bbox"] for a in data.annotations] == [[5, 4, 10, 10]] * 3
        assert data.num_masks == 0
        with pytest.raises(InputError, match="annotation 1: "):
            read(folder, odd)


def test_keypoints_of_models_without_them_are_not_looked_at(folder):
    odd = copy.deepcopy(PLAIN)
    odd["categories"][0].update(keypoints=["a", "b"], skeleton=[[0, 1]])
    odd["categories"][1].update(keypoints="many", skeleton=[[7]])
    odd["annotations"][0]["keypoints"] = [1]
    assert read(folder, odd).dicts == read(folder, PLAIN).dicts
    odd["categories"][1].update(keypoints=["c"], skeleton=[])
    with pytest.raises(InputError, match="'cat' and 'dog' have different keypoints"):
        read(folder, odd, keypoints=True)


@pytest.mark.parametrize("skeleton", [[[0, 1], [1, 2]], [[1, 2], [2, 3]], [[1.0, 2.0], [2, 3.0]]])
def test_skeletons_from_0(folder, skeleton):
    odd = copy.deepcopy(PLAIN)
    every("categories", keypoints=["a", "b", "c"], skeleton=skeleton)(odd)
    read_pairs = read(folder, odd, keypoints=True).skeleton
    assert read_pairs == [(0, 1), (1, 2)]
    assert {type(at) for pair in read_pairs for at in pair} == {int}


def test_missing_images(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    odd["images"].append({"id": 1, "file_name": "lost.png"})
    odd["annotations"].append({**odd["annotations"][0], "id": 4, "image_id": 1})
    with pytest.raises(InputError, match="1 of the 3 images .*lost.png; --skip-missing"):
        read(folder, odd)
    data = read(folder, odd, options=Options(skip_missing=True))
    assert data.dicts == read(folder, PLAIN).dicts
    assert "1 of 3 images are not in" in caplog.text
    every("images", file_name=lambda e: f"lost{e['id']}")(odd)
    with pytest.raises(InputError, match="3 of the 3 images"):
        read(folder, odd, options=Options(skip_missing=True))


def add_pictures(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(file)


def named(*names: str) -> dict:
    """A data set of one object on each picture of these names."""
    odd = copy.deepcopy(PLAIN)
    odd["images"] = [{**odd["images"][0], "id": n, "file_name": f} for n, f in enumerate(names)]
    first = odd["annotations"][0]
    odd["annotations"] = [{**first, "id": n + 1, "image_id": n} for n in range(len(names))]
    return odd


def found(folder: Path, *names: str, **arguments) -> list[str]:
    """The files that the names are read from, relative to the folder of images."""
    images = read(folder, named(*names), **arguments).images
    return [Path(i["file_name"]).relative_to(folder / "images").as_posix() for i in images]


def test_a_name_that_can_be_two_files(folder):
    add_pictures(folder, "x/c.png", "y/c.png", "z/e.png", "z/E.PNG")
    for name, paths in (("c.png", "x/c.png, .*y/c.png"), ("e.Png", "z/E.PNG, .*z/e.png")):
        with pytest.raises(InputError, match=rf"image '{name}' can be any of .*{paths}"):
            read(folder, named(name))
    assert found(folder, "train/Y/C.png", "a.png") == ["y/c.png", "a.png"]  # its folder tells
    assert found(folder, "e.png") == ["z/e.png"]
    # A file that another image names is not found for this one.
    with pytest.raises(InputError, match="1 of the 2 images .*: b.png"):
        read(folder, named("b.png", "sub/b.png"))


@pytest.mark.parametrize("mask", ["b.png", "b.jpg"])
def test_a_mask_is_no_picture(folder, mask):
    """The root holds pictures and masks, and one picture is not there."""
    add_pictures(folder, "images/a.jpg", "images/c.jpg", f"masks/{mask}")
    for prefix in ("", "images/", "train/images/"):
        names = [f"{prefix}{name}.jpg" for name in "abc"]
        with pytest.raises(InputError, match=rf"1 of the 3 images are not in .*: {names[1]};"):
            read(folder, named(*names))
        there = found(folder, *names, options=Options(skip_missing=True))
        assert there == ["images/a.jpg", "images/c.jpg"]


def test_pictures_and_masks_of_the_same_names(folder):
    add_pictures(folder, "images/x.jpg", "masks/x.jpg", "images/y.jpg", "masks/y.jpg")
    with pytest.raises(InputError, match="image 'x.jpg' can be any of .*\n.*'y.jpg' can be any"):
        read(folder, named("x.jpg", "y.jpg"))
    assert found(folder, "images/x.jpg", "y.jpg") == ["images/x.jpg", "images/y.jpg"]


@pytest.mark.parametrize("name", ["a.jpg", "a.png.jpg", "a.tiff"])
def test_a_picture_of_another_ending_is_another_one(folder, name):
    with pytest.raises(InputError, match=f"1 of the 2 images are not in .*: {name};"):
        read(folder, named(name, "sub/b.png"))


def test_folders_too_few(folder):
    """All pictures are in one folder below the root, which their names leave out."""
    add_pictures(folder, "deep/train/c.png", "deep/train/D.PNG")
    expected = ["deep/train/c.png", "deep/train/D.PNG"]
    assert found(folder, "c.png", "d.png") == expected
    assert found(folder, "train/c.png", "train/d.png") == expected


@pytest.mark.parametrize("names", [("a.png", "./a.png"), ("x/a.png", "y/a.png")])
def test_two_images_that_can_only_be_one_file(folder, names):
    odd = copy.deepcopy(PLAIN)
    for image, name in zip(odd["images"], names, strict=True):
        image.update(file_name=name, width=40, height=30)
    with pytest.raises(InputError, match=r"images .*a.png' and .*a.png' can only be the same file"):
        read(folder, odd)


def test_an_only_class_is_no_phantom(folder):
    odd = copy.deepcopy(PLAIN)
    odd["categories"] = [{"id": 1, "name": "cat", "supercategory": "cat"}]
    odd["annotations"] = []
    assert read(folder, odd).categories == {1: "cat"}


def written(data: CocoData, file: Path) -> dict:
    data.write(file)
    return json.loads(file.read_text())


@pytest.mark.parametrize("kind", ["a list of runs", "pieces", "another size"])
def test_masks_of_every_kind_are_written(folder, kind):
    """The encodings of pycocotools are bytes, which JSON does not hold."""
    odd = copy.deepcopy(PLAIN)
    encoded = mask_util.encode(np.asfortranarray(rle()))
    mask = {"size": [30, 40], "counts": encoded["counts"].decode()}
    if kind == "a list of runs":
        flat = rle().T.ravel()
        changes = np.flatnonzero(np.diff(flat)) + 1
        edges = [0, *changes.tolist(), flat.size]
        mask["counts"] = [b - a for a, b in itertools.pairwise(edges)]
    elif kind == "pieces":
        mask = [mask, mask]
    else:
        odd["images"][0].update(width=41)
        wide = mask_util.encode(np.asfortranarray(np.pad(rle(), ((0, 0), (0, 1)))))
        mask = {"size": [30, 41], "counts": wide["counts"].decode()}
    odd["annotations"][0]["segmentation"] = mask
    content = written(read(folder, odd), folder / "out.json")
    assert (mask_util.decode(content["annotations"][0]["segmentation"]) == rle()).all()


def test_a_file_with_a_byte_order_mark_is_read(folder):
    file = folder / "data.json"
    file.write_text(json.dumps(PLAIN), encoding="utf-8-sig")
    data = read_coco(file, folder / "images", masks=True)
    assert data.dicts == read(folder, PLAIN).dicts


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("boxes", [False, True])
def test_coordinates_in_parts_of_the_image_are_refused(folder, masks, boxes):
    odd = copy.deepcopy(PLAIN)
    every("images", width=0.0, height=0.0)(odd)
    parts = [[c / (40, 30)[i % 2] for i, c in enumerate(CORNERS)]]
    box = [5 / 40, 4 / 30, 10 / 40, 10 / 30] if boxes else None
    every("annotations", bbox=box, segmentation=parts if masks or not boxes else [], area=None)(odd)
    with pytest.raises(InputError, match="3 of 3 annotations lie in the first pixel of .*multiply"):
        read(folder, odd, masks=masks)


def test_keypoints_are_scaled_like_boxes(folder):
    odd = copy.deepcopy(PLAIN)
    every("categories", keypoints=["a", "b"], skeleton=[])(odd)
    every("annotations", keypoints=[12, 10, 2, 28, 26, 1], num_keypoints=2)(odd)
    odd["images"][0].update(width=80, height=60)
    for annotation in odd["annotations"][:2]:
        annotation.update(bbox=[10, 8, 20, 20], segmentation=[[2 * c for c in CORNERS]])
    first, _, third = read(folder, odd, keypoints=True).annotations
    assert first["keypoints"] == [6, 5, 2, 14, 13, 1]
    assert third["keypoints"] == [12, 10, 2, 28, 26, 1]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("size", [(20, 15), (1, 1), (2, 2)])
def test_a_size_that_annotations_contradict_is_refused(folder, size, masks):
    odd = copy.deepcopy(PLAIN)
    odd["images"][0].update(width=size[0], height=size[1])
    box = [25, 18, 10, 10]
    mask = [[25, 18, 35, 18, 35, 28]]
    odd["annotations"][0].update(bbox=None if masks else box, segmentation=mask if masks else [])
    words = "annotation 1: reaches beyond the size .*: 20 x 15 and 40 x 30 of .*a.png; correct"
    if size != (20, 15):
        words = f"image 7 is said to be {size[0]} x {size[1]}, but .*a.png is 40 x 30"
    with pytest.raises(InputError, match=words):
        read(folder, odd, masks=masks)


def test_one_image_of_two_sizes_is_refused(folder):
    odd = copy.deepcopy(PLAIN)
    odd["images"].append({**odd["images"][0], "id": 8, "width": 80, "height": 60})
    with pytest.raises(InputError, match=r"'a.png' is listed twice, as \[40, 30\] and \[80, 60\]"):
        read(folder, odd)
    odd["images"][-1].update(width=None)
    assert read(folder, odd).dicts == read(folder, PLAIN).dicts


@pytest.mark.parametrize("asked", [False, True])
def test_boxes_from_masks_are_clipped_and_looked_at_too(folder, caplog, asked):
    odd = copy.deepcopy(PLAIN)
    odd["annotations"][0]["segmentation"] = [[30, 20, 60, 20, 60, 50]]
    odd["annotations"][1]["segmentation"] = [[60, 20, 90, 20, 90, 50]]
    odd["annotations"][2]["segmentation"] = [[5, 5, 20, 5, 10, 5]]
    every("annotations", bbox=[5, 4, 10, 10] if asked else None)(odd)
    data = read(folder, odd, options=Options(boxes_from_masks=asked))
    (annotation,) = data.annotations
    assert annotation["bbox"] == [30, 20, 10, 10]
    again = read(folder, written(data, folder / "out.json"))
    assert [a["bbox"] for a in again.annotations] == [a["bbox"] for a in data.annotations]


def test_masks_without_a_pixel_are_none(folder, caplog):
    nothing = {"size": [30, 40], "counts": [1200]}
    for mask, words in (
        ([nothing, nothing], "have an empty RLE, so that these objects count as background"),
        ([[50, 5, 60, 5, 60, 9]], "have a mask outside of their image, so that"),
    ):
        odd = copy.deepcopy(PLAIN)
        odd["annotations"][0]["segmentation"] = mask
        assert len(read(folder, odd).annotations) == 2
        assert f"left out 1 annotations that {words}" in caplog.text
        assert len(read(folder, odd, masks=False).annotations) == 3


def test_a_class_that_can_be_two_of_the_training_sets_is_refused(folder):
    odd = copy.deepcopy(PLAIN)
    every("categories", name="cat")(odd)
    assert read(folder, odd, categories={4: "cat", 90: "cat"}).num_annotations == 3
    with pytest.raises(InputError, match="4 'cat' can be any of the training set's 1 and 2, .*mer"):
        read(folder, odd, categories={1: "cat", 2: "cat"})


@pytest.mark.parametrize("names", [("cat", "Cat"), ("cat", "cat "), ("caf\u00e9", "cafe\u0301")])
def test_names_that_differ_by_their_form_alone(folder, caplog, names):
    odd = copy.deepcopy(PLAIN)
    for category, name in zip(odd["categories"], names, strict=True):
        category["name"] = name
    assert list(read(folder, odd).categories.values()) == list(names)
    assert "1 classes differ from another by case, spaces or Unicode's form alone" in caplog.text
    odd["categories"].pop()
    every("annotations", category_id=4)(odd)
    assert read(folder, odd, categories={1: names[1], 2: "dog"}).annotations[0]["category_id"] == 1


def test_a_file_name_in_another_form_of_unicode_is_found(folder):
    (folder / "images/a.png").rename(folder / "images/cafe\u0301.png")
    odd = copy.deepcopy(PLAIN)
    odd["images"][0]["file_name"] = "caf\u00e9.png"
    assert read(folder, odd).images[0]["file_name"].endswith("cafe\u0301.png")


def test_what_is_odd_and_stays_is_named(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    odd["annotations"][1].update(area=1e9)
    odd["annotations"][2].update(area=0.08)
    odd["annotations"].append(
        {
            **{**odd["annotations"][0], "id": 6, "bbox": [1, 1, 5, 5], "area": 25},
            **{"segmentation": [], "attributes": {"rotation": 45.0}},
        }
    )
    data = read(folder, odd, masks=False, options=Options())
    assert "2 areas do not fit their boxes and were computed anew: 2, 3" in caplog.text
    assert [a["area"] for a in data.annotations[:3]] == [100, 100, 100]
    assert "1 boxes are rotated, which is not looked at: 6" in caplog.text


def test_images_by_address_and_annotations_by_name(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    every("images", coco_url=lambda e: f"http://images.cocodataset.org/x/{e['file_name']}")(odd)
    every("images", file_name=None)(odd)
    assert read(folder, odd).dicts == read(folder, PLAIN).dicts
    odd = copy.deepcopy(PLAIN)
    names = {image["id"]: image["file_name"] for image in odd["images"]}
    every("annotations", image_id=lambda e: names[e["image_id"]])(odd)
    assert read(folder, odd).dicts == read(folder, PLAIN).dicts
    assert "3 annotations name their image in place of its id" in caplog.text
    every("annotations", image_id="lost.png")(odd)
    with pytest.raises(
        InputError, match="no annotation is of .*: image_id is lost.png, .*ids are 7"
    ):
        read(folder, odd)


def test_links_and_names_that_no_file_can_have(folder):
    images = folder / "images"
    (images / "link.png").symlink_to(images / "a.png")
    (images / "lost.png").symlink_to(images / "nowhere.png")
    odd = copy.deepcopy(PLAIN)
    odd["images"][1].update(file_name="link.png", width=40, height=30)
    assert len(read(folder, odd).images) == 2
    for name in ("lost.png", "x" * 300 + ".png", "data:image/png;base64," + "A" * 5000):
        odd["images"][1].update(file_name=name)
        with pytest.raises(InputError, match="1 of the 2 images are not in") as raised:
            read(folder, odd)
        assert len(str(raised.value)) < 700
        assert len(read(folder, odd, options=Options(skip_missing=True)).images) == 1


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


def test_every_id_that_is_no_number_is_counted(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    every("images", id=lambda e: f"x{e['id']}")(odd)
    every("categories", id=lambda e: f"c{e['id']}")(odd)
    every("annotations", image_id=lambda e: f"x{e['image_id']}")(odd)
    every("annotations", category_id=lambda e: f"c{e['category_id']}", id=1.5)(odd)
    read(folder, odd)
    assert "2 image ids are no numbers; all images were numbered: x7, x3" in caplog.text
    assert "2 categories have ids that are no numbers; all were numbered: c4, c90" in caplog.text
    assert "because 3 of their 3 ids are no numbers: 1.5" in caplog.text
    odd = copy.deepcopy(PLAIN)
    every("annotations", image_id=lambda e: f"{e['image_id']}.0")(odd)
    assert read(folder, odd).dicts == read(folder, PLAIN).dicts


@pytest.mark.parametrize("start", ["", "data/"])
def test_a_picture_that_is_not_there_is_no_other_folders(folder, caplog, start):
    names = [f"{start}seq{n}/0001.jpg" for n in (1, 2, 3)]
    there = [f"seq{n}/0001.jpg" for n in (1, 2, 4)]  # the third was not unpacked
    add_pictures(folder, *there)
    odd = named(*names)
    with pytest.raises(InputError, match="1 of the 3 images .*seq3/0001.jpg; --skip-miss"):
        read(folder, odd)
    data = read(folder, odd, options=Options(skip_missing=True))
    assert [image["id"] for image in data.images] == [0, 1]
    # Where no folder is right, they are those of another machine.
    add_pictures(folder, "frames/c.jpg", "frames/d.jpg")
    odd = named("mine/c.jpg", "mine/d.jpg")
    assert len(read(folder, odd).images) == 2
    assert "2 images were found under other names" in caplog.text


def test_pictures_of_one_name_are_told_apart_by_their_paths(folder):
    """COCO Annotator writes the name alone, and beside it the path on its server."""
    add_pictures(folder, "x/1.jpg", "x/sub/1.jpg")
    odd = named("1.jpg", "1.jpg")
    for image, path in zip(odd["images"], ("x/1.jpg", "x/sub/1.jpg"), strict=True):
        image["path"] = f"/datasets/{path}"
    data = read(folder, odd)
    there = [Path(image["file_name"]).relative_to(folder / "images") for image in data.images]
    assert there == [Path("x/1.jpg"), Path("x/sub/1.jpg")]
    assert [len(record["annotations"]) for record in data.dicts] == [1, 1]
    odd["images"][0]["file_name"] = odd["images"][1]["file_name"] = "x/1.jpg"  # one, listed twice
    del odd["images"][1]["path"]
    assert [len(record["annotations"]) for record in read(folder, odd).dicts] == [2]


@pytest.mark.parametrize("crowds", [False, True])
def test_what_is_to_be_ignored_is_a_crowd(folder, caplog, crowds):
    odd = copy.deepcopy(PLAIN)
    odd["annotations"][0]["ignore"] = 1
    every("annotations", difficult=1)(odd)  # which is no reason
    data = read(folder, odd, options=Options(crowd_as_instances=crowds))
    assert [a["iscrowd"] for a in data.annotations] == [int(not crowds), 0, 0]
    assert "1 annotations to ignore ('ignore' 1) count as crowds: 1" in caplog.text
    odd["annotations"][0]["ignore"] = "maybe"
    with pytest.raises(InputError, match="annotation 1: 'ignore' must be 0 or 1, got 'maybe'"):
        read(folder, odd)


@pytest.mark.parametrize("boxes", [True, False])
def test_annotations_outside_of_a_turned_picture_tell_too(folder, boxes):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "images/a.png", exif=exif)
    odd = copy.deepcopy(PLAIN)
    outline = [[33, 4, 38, 4, 38, 9, 33, 9]]  # the picture is 30 wide as it is shown
    odd["annotations"][0].update(bbox=[33, 4, 5, 5] if boxes else None, segmentation=outline)
    for masks in (True, False):
        with pytest.raises(InputError, match="annotation 1: is of a picture as it is stored"):
            read(folder, odd, masks=masks)
    odd["annotations"][0].update(bbox=None, segmentation=[[20, 4, 39, 4, 39, 9, 20, 9]])
    with pytest.raises(InputError, match="annotation 1: is of a picture as it is stored"):
        read(folder, odd)


def test_one_box_does_not_hide_that_the_others_are_corners(folder):
    odd = copy.deepcopy(PLAIN)
    box = [20, 10, 38, 19]
    first = {**odd["annotations"][0], "bbox": box, "segmentation": []}
    odd["annotations"] = [{**first, "id": n} for n in range(1, 21)]
    odd["annotations"][7]["bbox"] = [38, 10, 38, 19]  # without width, as corners
    with pytest.raises(InputError, match=r"20 of 20 boxes reach .*not as \(x1, y1, x2, y2\)"):
        read(folder, odd, masks=False)


def test_boxes_of_a_picture_that_was_made_smaller(folder):
    """Picture and boxes are of one size, and width and height are those of before."""
    odd = copy.deepcopy(PLAIN)
    odd["images"][0].update(width=80, height=60)
    first = {**odd["annotations"][0], "bbox": [25, 15, 14, 14], "segmentation": []}
    odd["annotations"] = [{**first, "id": n} for n in range(1, 21)]
    words = r"are smaller than the file says \(.*a.png is 40 x 30, not 80 x 60\), and all 20 "
    with pytest.raises(InputError, match=words):
        read(folder, odd, masks=False)
    odd["annotations"][3]["bbox"] = [50, 15, 20, 20]  # which is beyond the smaller size
    assert read(folder, odd, masks=False).annotations[0]["bbox"] == [12.5, 7.5, 7, 7]


def test_polygons_with_half_a_point_are_named(folder, caplog):
    odd = copy.deepcopy(PLAIN)
    odd["annotations"][0]["segmentation"].append([1, 2, 3, 4, 5, 6, 7])
    assert read(folder, odd).annotations[0]["segmentation"] == [CORNERS]
    assert "left out polygons with an x that has no y, of 1 annotations: 1" in caplog.text


def test_a_folder_with_braces(folder, caplog):
    (folder / "images").rename(folder / "{a}")
    odd = copy.deepcopy(PLAIN)
    odd["images"].append({**odd["images"][0], "id": 1, "file_name": "lost.png"})
    (folder / "data.json").write_text(json.dumps(odd))
    options = Options(skip_missing=True)
    read_coco(folder / "data.json", folder / "{a}", masks=True, options=options)
    assert f"1 of 3 images are not in {folder}/{{a}} and are left out: lost.png" in caplog.text
