"""Annotations as people make them: read, or named."""

import json
import logging
import pickle

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pycocotools.mask as mask_util
import pytest
from detectron2.data import detection_utils
from detectron2.data.datasets import load_coco_json
from PIL import Image

from resnest_d2.config import InputError
from resnest_d2.data.coco_json import read_coco
from resnest_d2.data.images import read_header
from resnest_d2.data.options import Options
from resnest_d2.data.rle import decode_counts

HEIGHT, WIDTH = 30, 40
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]
NO_POLYGON = "have no polygon of three points or more, each with x and y"
LOST = (
    "so that these objects count as background; a faster_ or cascade_box_ config takes their boxes"
)


@pytest.fixture
def write(tmp_path):
    """Write a small data set, changed by the test, and return the arguments to read it."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "images" / name)

    def make(change=lambda data: None, **annotation):
        data = {
            "images": [
                {"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
                {"id": 3, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
            ],
            "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
            "annotations": [
                {
                    **{"id": 1, "image_id": 7, "category_id": 90, "bbox": [5, 5, 10, 10]},
                    **{"segmentation": SQUARE, "area": 100, "iscrowd": 0},
                    **annotation,
                }
            ],
        }
        change(data)
        (tmp_path / "data.json").write_text(json.dumps(data))
        return tmp_path / "data.json", tmp_path / "images"

    return make


def test_what_detectron2_reads_is_read_the_same(write):
    file, images = write()
    ours = read_coco(file, images, masks=True)
    theirs = load_coco_json(str(file), str(images), "coco_json_test")
    assert ours.categories == {4: "cat", 90: "dog"}  # ids with holes, in their order
    by_id = {record["image_id"]: record for record in ours.dicts}
    for record in theirs:
        assert by_id[record["image_id"]] == record
    assert by_id[7]["annotations"][0]["category_id"] == 1
    assert by_id[3]["annotations"] == []  # an image without annotations stays


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bbox": [5, 5, 0, 10], "segmentation": []}, "have a box without area: 1"),
        ({"bbox": [5, 5, 10, -1], "segmentation": []}, "have a box without area: 1"),
        ({"bbox": [50, 5, 10, 10], "segmentation": []}, "lie outside of their image: 1"),
        ({"bbox": [-20, 5, 10, 10], "segmentation": []}, "lie outside of their image: 1"),
        ({"segmentation": [[5, 5, 15, 15]]}, f"{NO_POLYGON}, {LOST}: 1"),
        ({"segmentation": [[5, 5, 9, 9, 3]]}, f"{NO_POLYGON}, {LOST}: 1"),
        ({"segmentation": []}, f"have no 'segmentation', {LOST}: 1"),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}},
            f"have an empty RLE, {LOST}: 1",
        ),
        ({"segmentation": [], "bbox": None}, "have neither box nor mask: 1"),
    ],
)
def test_useless_annotations_are_left_out_and_named(write, caplog, change, problem):
    file, images = write(**change)
    data = read_coco(file, images, masks=True)
    assert not any(record["annotations"] for record in data.dicts)
    (warning,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert warning == f"{file}: left out 1 annotations that {problem}"


def test_boxes_alone_need_no_mask(write, caplog):
    for mask in ([], [[5, 5, 15, 15]]):
        data = read_coco(*write(segmentation=mask), masks=False)
        (instance,) = data.dicts[0]["annotations"]
        assert "segmentation" not in instance
        assert data.num_masks == 0
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_polygons_are_left_out_one_by_one(write, caplog):
    data = read_coco(*write(segmentation=[*SQUARE, [1, 2]]), masks=True)
    assert data.dicts[0]["annotations"][0]["segmentation"] == SQUARE
    assert "left out polygons of fewer than three points, of 1 annotations: 1" in caplog.text


@pytest.mark.parametrize("compressed", [True, False])
def test_rle(write, compressed):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 5:15] = 1
    if compressed:
        rle = mask_util.encode(np.asfortranarray(mask))
        rle["counts"] = rle["counts"].decode()
    else:
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, flat.size]).tolist()
        rle = {"size": [HEIGHT, WIDTH], "counts": counts}
    data = read_coco(*write(segmentation=rle, iscrowd=1), masks=True)
    (instance,) = data.dicts[0]["annotations"]
    assert (mask_util.decode(instance["segmentation"]) == mask).all()
    assert (data.num_rle, instance["iscrowd"]) == (1, 1)


def test_compressed_run_lengths_are_pycocotools():
    """Read by our own few lines, which see what is broken, from masks of many shapes."""
    generator = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.3, 0.9, 1.0):
        for shape in ((1, 1), (7, 5), (90, 200)):
            mask = np.asfortranarray(generator.random(shape) < density).astype(np.uint8)
            counts = mask_util.encode(np.asfortranarray(mask))["counts"].decode()
            flat = mask.ravel(order="F")
            edges = np.flatnonzero(np.diff(flat)) + 1
            expected = np.diff([0, *edges, flat.size]).tolist()
            if flat[0]:
                expected.insert(0, 0)
            assert decode_counts(counts) == expected


def test_images_that_are_not_what_the_file_says(write):
    file, images = write(lambda data: data["images"][1].update(height=WIDTH, width=HEIGHT))
    with pytest.raises(InputError, match="image 3 is said to be 30 x 40, but .*b.png is 40 x 30"):
        read_coco(file, images)
    # Detectron2 turns an image as its EXIF tag asks before it looks at its size.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(images / "b.png", exif=exif)
    record = read_coco(file, images).dicts[1]
    assert (record["width"], record["height"]) == (HEIGHT, WIDTH)
    pixels = detection_utils.read_image(record["file_name"], "RGB")
    detection_utils.check_image_size(record, pixels)
    (images / "b.png").write_text("<html>404</html>")
    with pytest.raises(InputError, match="1 of 2 images .* read: .*b.png cannot be read"):
        read_coco(file, images)


# What is changed in the first entry of a list, and what is then said of it.
NUMBERS = "annotation 1: 'bbox' must be four numbers"
RUNS = "annotation 1: its RLE must be 'size' .* and 'counts', a list of numbers or a string"
CONTRADICTIONS = [
    ("categories", {"id": None}, "category number 1 of the list: 'id' must be a number or a text"),
    ("categories", {"name": " "}, "category 90: 'name' must be a text that is not empty, got ' '"),
    ("categories", {"id": 4}, "category 4 is 'dog' and 'cat'"),
    ("categories", {"keypoints": "nose"}, "'keypoints' must be a list of names"),
    ("categories", {"keypoints": ["a"], "skeleton": [1, 2]}, "'skeleton' must be pairs of numbers"),
    ("categories", {"keypoints": ["a"], "skeleton": [[1, 2]]}, "'skeleton' must be pairs of num"),
    ("images", {"id": 3}, "image id 3 stands for 'a.png' and for 'b.png'"),
    ("images", {"id": [3]}, r"image number 1 of the list: 'id' must be .*, got \[3\]"),
    ("images", {"file_name": None}, "image 7 has no 'file_name'"),
    ("images", {"width": 30}, "image 7 is said to be 30 x 30, but .*a.png is 40 x 30, which"),
    ("annotations", {"image_id": 8}, "no annotation is of an image that is listed: image_id is 8"),
    ("annotations", {"category_id": 8}, "annotation 1: there is no category 8"),
    ("annotations", {"category_id": {}}, "annotation 1: 'category_id' must be .* text, got {}"),
    ("annotations", {"bbox": [1, 2, 3]}, NUMBERS),
    ("annotations", {"bbox": [1, 2, 3, None]}, NUMBERS),
    ("annotations", {"bbox": [1, 2, 3, float("nan")]}, NUMBERS),
    ("annotations", {"bbox": "[5, 4, 10, 10]"}, NUMBERS),
    ("annotations", {"bbox": {"x": 5, "y": 4, "width": 10, "height": 10}}, NUMBERS),
    ("annotations", {"bbox": [0, 0, 1e308, 1e308]}, NUMBERS),
    ("annotations", {"area": float("inf")}, "annotation 1: 'area' must be a number, got inf"),
    ("annotations", {"area": "big"}, "annotation 1: 'area' must be a number, got 'big'"),
    ("annotations", {"iscrowd": "some"}, "annotation 1: 'iscrowd' must be 0 or 1, got 'some'"),
    ("annotations", {"keypoints": [1, 2, 2]}, "'keypoints' must be 0 times x, y and visibility"),
    ("annotations", {"segmentation": ["a", 2, 3, 4, 5, 6]}, "1: 'segmentation' must be RLE or a "),
    (
        "annotations",
        {"segmentation": [{"x": 5, "y": 4}]},
        "1: 'segmentation' must be RLE or a list",
    ),
]
RLES = [
    ([4, 4], "x", r"annotation 1: its RLE has size \[4, 4\] .*, its image \[30, 40\]"),
    ([30, 40], [5, 5], "annotation 1: the counts of its RLE do not add up to 30 x 40"),
    ([30, 40], "0", "annotation 1: the counts of its RLE do not add up to 30 x 40"),
    ([30, 40], None, RUNS),
    ([30, 40], [-5, 1205], RUNS),
    ([30, 40], "zz##", "annotation 1: its RLE cannot be decoded"),
    ([30, 40], "o" * 100, "annotation 1: its RLE .*: it has a number of more than 32 bits"),
    ([30, 40], "oooo", "annotation 1: its RLE cannot be decoded: it is cut short"),
]


@pytest.mark.parametrize(("key", "change", "message"), CONTRADICTIONS)
def test_contradictions_are_errors_that_name_the_entry(write, key, change, message):
    file, images = write(lambda data: data[key][0].update(change))
    with pytest.raises(InputError, match=message):
        read_coco(file, images, masks=True, keypoints=True)


@pytest.mark.parametrize(("size", "counts", "message"), RLES)
def test_wrong_run_lengths_are_errors(write, size, counts, message):
    with pytest.raises(InputError, match=message):
        read_coco(*write(segmentation={"size": size, "counts": counts}), masks=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"annotations": {}}, "data.json is not in COCO's format: it has no list 'annotations'"),
        ({"images": ["a.png"]}, "image number 1 of the list must be an object, got 'a.png'"),
        ({"categories": []}, "'categories' is empty"),
        ({"images": [], "annotations": []}, "'images' is empty"),
    ],
)
def test_lists_that_are_none(write, values, message):
    with pytest.raises(InputError, match=message):
        read_coco(*write(lambda data: data.update(values)))


def test_all_errors_are_listed_at_once(write):
    def change(data):
        (first,) = data["annotations"]
        wrong = [{"bbox": [1, 2]}, {"category_id": 8}, {"segmentation": 5}, {"iscrowd": 2}]
        wrong = [{**first, "id": 100 + n, **w} for n, w in enumerate(12 * wrong)]
        data["annotations"] += wrong
        data["images"].append({"id": 5})

    file, images = write(change)
    with pytest.raises(InputError) as raised:
        read_coco(file, images, masks=True)
    header, *lines, last = str(raised.value).splitlines()
    assert header.endswith("data.json: 49 errors in 48 of 49 annotations:")
    assert len(lines) == 20
    assert last == "and 29 more; resnest-d2 check-data lists all"
    # As check-data does, which goes on to the pictures.
    errors = []
    data = read_coco(file, images, masks=True, errors=errors)
    assert errors[:20] == lines
    starts = {"image 5 has no 'file_name'", *(f"annotation {100 + n}" for n in range(48))}
    assert {line.partition(":")[0] for line in errors} == starts
    assert [a["id"] for a in data.annotations] == [1]
    assert (data.num_annotations, len(data.images)) == (49, 2)


def test_keypoints(write):
    def change(data):
        data["categories"][1].update(keypoints=["left_eye", "right_eye"], skeleton=[[1, 2]])

    data = read_coco(*write(change, keypoints=[5, 6, 2, 7, 8, 1], num_keypoints=2), keypoints=True)
    assert data.keypoint_names == ["left_eye", "right_eye"]
    assert data.skeleton == [(0, 1)]
    assert data.dicts[0]["annotations"][0]["keypoints"] == [5.5, 6.5, 2, 7.5, 8.5, 1]
    assert data.num_keypoints == 1
    # One that was not labelled has them all the same, invisible, so that instances can be stacked.
    data = read_coco(*write(change), keypoints=True)
    assert data.dicts[0]["annotations"][0]["keypoints"] == [0.5, 0.5, 0, 0.5, 0.5, 0]
    assert data.num_keypoints == 0


def amodal(data):
    """Boxes of whole objects, of which others hide the greater part."""
    (first,) = data["annotations"]
    part = [[5, 5, 9, 5, 9, 9, 5, 9]]
    data["annotations"] = [{**first, "id": n, "segmentation": part} for n in (1, 2, 3)]


@pytest.mark.parametrize("masks", [True, False])
def test_boxes_of_whole_objects_beside_masks_of_their_parts(write, caplog, masks):
    file, images = write(amodal)
    with pytest.raises(InputError, match=r"3 of 3 boxes are not .*annotations 1, 2, 3.*COCO's are"):
        read_coco(file, images, masks=masks)
    data = read_coco(file, images, masks=masks, options=Options(boxes_as_given=True))
    assert [a["bbox"] for a in data.annotations] == [[5, 5, 10, 10]] * 3
    assert [a["segmentation"] for a in data.annotations] == [[[5, 5, 9, 5, 9, 9, 5, 9]]] * 3
    assert "3 boxes are not those of their masks and stay: 1, 2, 3" in caplog.text
    data = read_coco(file, images, masks=masks, options=Options(boxes_from_masks=True))
    assert [a["bbox"] for a in data.annotations] == [[5, 5, 4, 4]] * 3
    with pytest.raises(InputError, match="--boxes-from-masks and --boxes-as-given exclude each"):
        Options(boxes_from_masks=True, boxes_as_given=True)


def test_what_is_counted(write):
    """In sets of boxes and masks, crowds and images with more and fewer objects."""

    def change(data):
        (first,) = data["annotations"]
        runs = [5 * HEIGHT, 10 * HEIGHT, (WIDTH - 15) * HEIGHT]  # columns 5 to 14
        rle = {"size": [HEIGHT, WIDTH], "counts": runs}
        more = [{}, {"segmentation": []}, {"iscrowd": 1}, {"image_id": 3, "segmentation": rle}]
        data["annotations"] += [{**first, "id": 10 + n, **m} for n, m in enumerate(more)]
        data["annotations"].append({**first, "id": 20, "bbox": [90, 5, 1, 1], "segmentation": []})

    data = read_coco(*write(change), options=Options(boxes_as_given=True))
    assert (data.num_annotations, len(data.annotations)) == (6, 5)
    assert (data.num_masks, data.num_rle, data.num_crowds, data.most_objects) == (4, 1, 1, 3)


@pytest.mark.parametrize(
    ("ids", "name"), [([0, 1], 1), (["a", "b"], "b"), ([5, 5], "number 2 of the list")]
)
def test_errors_name_annotations_as_the_file_does(write, ids, name):
    def change(data):
        (first,) = data["annotations"]
        data["annotations"] = [{**first, "id": n} for n in ids]
        data["annotations"][1]["bbox"] = "wide"

    with pytest.raises(InputError, match=f"\nannotation {name}: 'bbox' must be four numbers"):
        read_coco(*write(change))


def test_the_data_can_be_handed_to_another_process(write):
    data = read_coco(*write(), masks=True)
    again = pickle.loads(pickle.dumps(data))
    assert (again, again.dicts, again.to_json()) == (data, data.dicts, data.to_json())


def test_the_header_of_each_picture_is_read_once(write, monkeypatch):
    read = []

    def counted(file):
        read.append(file)
        return read_header(file)

    monkeypatch.setattr("resnest_d2.data.coco_images.read_header", counted)
    data = read_coco(*write(lambda data: data["images"].append(dict(data["images"][0]))))
    assert data.dicts
    assert sorted(map(str, read)) == sorted(image["file_name"] for image in data.images)


def odd(data):
    """A file that every evaluation reads in its own way."""
    (first,) = data["annotations"]
    runs = [5 * HEIGHT, 10 * HEIGHT, (WIDTH - 15) * HEIGHT]  # columns 5 to 14
    mask = {"size": [HEIGHT, WIDTH], "counts": runs}
    data["annotations"] = [
        {**first, "id": 0, "area": None},
        {**first, "id": 0, "image_id": "3", "segmentation": mask, "bbox": None},
        {**first, "id": -4, "category_id": 4.0, "iscrowd": 1, "segmentation": []},
        {**first, "id": "x", "bbox": [20.5, 12, 10, 10], "segmentation": []},
    ]
    del data["annotations"][0]["iscrowd"]
    data["categories"].append(dict(data["categories"][0]))
    data["images"][0]["id"] = -7
    for annotation in data["annotations"]:
        annotation["image_id"] = {7: -7}.get(annotation["image_id"], annotation["image_id"])


@pytest.mark.parametrize("ids", ["zero", "odd"])
def test_what_is_written_is_one_data_set_to_all_evaluations(write, tmp_path, ids):
    """The libraries pycocotools and hotcoco read the same, and give the same AP."""
    hotcoco = pytest.importorskip("hotcoco")
    change = odd if ids == "odd" else lambda data: data["annotations"][0].update(id=0, area="")
    data = read_coco(*write(change, area=100))
    data.write(tmp_path / "written.json")
    content = json.loads((tmp_path / "written.json").read_text())
    found = [a["id"] for a in content["annotations"]]
    assert len(set(found)) == len(found)
    assert min(found) > 0
    results = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9 - 0.1 * n}
        for n, a in enumerate(content["annotations"])
        if not a["iscrowd"]
    ]
    results.append({**results[0], "bbox": [1, 1, 3, 3], "score": 0.95})  # one that is wrong
    stats = []
    for library, load in ((hotcoco, "load_res"), (pycocotools, "loadRes")):
        truth = library.coco.COCO if library is pycocotools else library.COCO
        evaluation = library.cocoeval.COCOeval if library is pycocotools else library.COCOeval
        coco = truth(str(tmp_path / "written.json"))
        detections = getattr(coco, load)([dict(result) for result in results])
        evaluated = evaluation(coco, detections, "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
        stats.append(list(evaluated.stats))
    assert stats[0] == pytest.approx(stats[1], abs=1e-12)
    assert 0 < stats[0][0] < 1
