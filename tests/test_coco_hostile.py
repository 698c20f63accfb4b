"""Annotation files with anything in them: read, or refused in a list of what is wrong."""

import copy
import json
from contextlib import suppress

import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from resnest_d2.config import InputError
from resnest_d2.data.coco_json import CocoData, read_coco

# Rows 4 to 13 of columns 5 to 14.
RLE = {"size": [30, 40], "counts": [154, *[10, 20] * 9, 10, 766]}
PLAIN = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "categories": [
        {"id": 4, "name": "cat", "keypoints": ["left", "right"], "skeleton": [[1, 2]]},
        {"id": 9, "name": "dog", "keypoints": ["left", "right"], "skeleton": [[1, 2]]},
    ],
    "annotations": [
        {
            **{"id": index + 1, "image_id": image, "category_id": category, "area": 100},
            **{"bbox": [5, 4, 10, 10], "segmentation": mask, "iscrowd": 0},
            **{"keypoints": [5, 6, 2, 7, 8, 1], "num_keypoints": 2},
        }
        for index, (image, category, mask) in enumerate(
            [(7, 4, [[5, 4, 15, 4, 15, 14, 5, 14]]), (7, 9, RLE), (3, 9, [[5, 4, 15, 4, 15, 14]])]
        )
    ],
}
NUMBERS = [0, -1, 1, 2, 7, 0.5, 1e-300, 1e308, -1e308, 1e309, float("nan"), 2**31, 2**63, 10**400]
TEXTS = ["", " ", "7", "1e309", "nan", "[[5, 4, 9, 4, 9, 9]]", "a.png", "../b.png", "\x00", "oooo"]
LEAVES = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.sampled_from(["x", "y", "size", "counts", "id"]), inner, max_size=3)
    ),
    max_leaves=8,
)
SMALL = st.integers(0, 45) | st.floats(0, 45)
DELETED = object()


def places(value, path=()):
    """The paths of all values inside of a value."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(child, (*path, key))


@st.composite
def mutated(draw):
    """The plain file with some values replaced, taken away or exchanged."""
    content = copy.deepcopy(PLAIN)
    for _ in range(draw(st.integers(1, 3))):
        if not content:
            break
        path = draw(st.sampled_from(list(places(content))))
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        plain = st.sampled_from([str, lambda value: [value], lambda value: f" {value}.0"])
        new = draw(
            st.just(DELETED) | plain | SMALL | VALUES | st.sampled_from(list(places(content)))
        )
        if new is DELETED:
            del parent[path[-1]]
            continue
        if callable(new):  # the same in another way
            new = new(parent[path[-1]])
        elif isinstance(new, tuple):  # a copy of another value of the file
            found = content
            for key in new:
                found = found[key]
            new = copy.deepcopy(found)
        parent[path[-1]] = new
    return content


@pytest.mark.parametrize("masks", [True, False])
def test_the_plain_file_is_read(tmp_path, masks):
    file = tmp_path / "plain.json"
    file.write_text(json.dumps(PLAIN))
    data = read_coco(file, None, masks=masks, keypoints=True)
    assert len(data.annotations) == 3
    check_readable(data, tmp_path / "written.json")


@settings(max_examples=300, deadline=None)
@given(content=mutated(), masks=st.booleans(), keypoints=st.booleans())
def test_a_changed_file_is_read_or_refused(tmp_path_factory, content, masks, keypoints):
    folder = tmp_path_factory.getbasetemp()
    file = folder / "mutated.json"
    file.write_text(json.dumps(content))
    with suppress(InputError):
        data = read_coco(file, None, masks=masks, keypoints=keypoints)
        check_readable(data, folder / "written.json")


def check_readable(data: CocoData, file) -> None:
    """See that pycocotools reads all that was read."""
    data.write(file)
    assert "NaN" not in file.read_text()
    assert "Infinity" not in file.read_text()
    coco = COCO(str(file))
    assert len(coco.anns) == len(data.annotations)
    assert set(coco.cats) == set(data.categories)
    for annotation in coco.anns.values():
        assert annotation["id"] > 0
        assert annotation["image_id"] in coco.imgs
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
        "",
        "null",
        '"images"',
    ],
)
def test_files_that_are_hardly_json(tmp_path, text):
    file = tmp_path / "hostile.json"
    file.write_text(text)
    with pytest.raises(InputError, match="hostile.json") as raised:
        read_coco(file, None)
    assert len(str(raised.value)) < 2000
