"""Drawings: colours of classes, holes, thresholds, segments, keypoints, names that are text."""

import logging
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import supervision
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from matplotlib.font_manager import findSystemFonts

from resnest_d2.config import InputError
from resnest_d2.inference.drawing import class_color
from resnest_d2.inference.result import Result

THINGS = Metadata(name="test", thing_classes=["cat", "dog"], stuff_classes=["things", "sky", "sea"])
GREY = np.full((120, 200, 3), 100, np.uint8)


def instances_of(numbers, scores=None, size=(120, 200)):
    """One box of 30 x 30 pixels a class number, side by side, whose masks are rings."""
    instances = Instances(size)
    lefts = [10 + 45 * index for index in range(len(numbers))]
    instances.pred_boxes = Boxes(torch.tensor([[x, 50.0, x + 30, 80] for x in lefts]))
    instances.pred_classes = torch.tensor(numbers)
    masks = torch.zeros(len(numbers), *size, dtype=torch.bool)
    for mask, left in zip(masks, lefts, strict=True):
        mask[50:80, left : left + 30] = True
        mask[60:70, left + 10 : left + 20] = False
    instances.pred_masks = masks
    if scores is not None:
        instances.scores = torch.tensor(scores)
    return instances


def mixed(number):
    """The colour of a class over grey, each by half."""
    return (np.array(class_color(number)) + 100) / 2


def test_masks_have_their_class_colour_and_keep_their_holes():
    drawn = Result({"instances": instances_of([1, 0, 1], [0.9, 0.8, 0.7])}, GREY, THINGS).plot()
    for left, number in ((10, 1), (55, 0), (100, 1)):
        ring = drawn[74:78, left + 4 : left + 26].reshape(-1, 3)
        assert np.abs(ring - mixed(number)).max() <= 1
        assert (drawn[62:68, left + 12 : left + 18] == 100).all()
    assert (drawn[100:] == 100).all()


@pytest.fixture
def written(monkeypatch):
    """The labels of each drawing, and the boxes that they are written at."""
    seen = []

    def annotate(self, scene, detections, labels):
        seen.append((labels, detections.xyxy.tolist()))
        return scene

    monkeypatch.setattr(supervision.RichLabelAnnotator, "annotate", annotate)
    return seen


def test_labels_have_name_and_score(written):
    Result({"instances": instances_of([1, 7], [0.875, 0.5])}, GREY, THINGS).plot(2)
    assert written == [(["dog 88%", "7 50%"], [[20, 100, 80, 160], [110, 100, 170, 160]])]


def test_labels_of_a_crowded_picture_make_way_for_their_numbers(written):
    """One label a class in the corner, where the labels would cover the objects."""
    names = Metadata(name="long names", thing_classes=["domestic cat", "domestic dog"])
    result = Result({"instances": instances_of([1, 0, 1, 1], [0.9] * 4)}, GREY, names)
    result.plot()
    result.plot(4)  # room for all of them
    (crowded, corners), (all_of_them, _) = written
    assert crowded == ["3 x domestic dog", "1 x domestic cat"]
    assert [left for left, *_ in corners] == [0, 0]
    assert all_of_them == [f"domestic {name} 90%" for name in ("dog", "cat", "dog", "dog")]


def test_truth_and_prediction_have_the_same_colours():
    """Also where other classes are in the picture, and without scores."""
    predicted = Result({"instances": instances_of([1], [0.9])}, GREY, THINGS).plot()
    true = Result({"instances": instances_of([1, 0])}, GREY, THINGS).plot()
    assert np.array_equal(predicted[50:81, 10:41], true[50:81, 10:41])


def test_eighty_classes_have_eighty_colours():
    colors = [class_color(number) for number in range(80)]
    assert len(set(colors)) == 80
    neighbours = [np.abs(np.subtract(a, b)).sum() for a, b in pairwise(colors)]
    assert min(neighbours) > 100


def test_a_box_is_a_line_around_its_object():
    instances = instances_of([0], [0.5])
    instances.remove("pred_masks")
    drawn = Result({"instances": instances}, GREY, THINGS).plot()
    assert tuple(drawn[70, 10]) == class_color(0)
    assert tuple(drawn[80, 25]) == class_color(0)
    assert (drawn[55:78, 13:38] == 100).all()


@pytest.mark.parametrize("scale", [1, 2.5, 0.5])
def test_a_drawing_is_as_large_as_it_is_asked_for(scale):
    drawn = Result({"instances": instances_of([0], [0.9])}, GREY, THINGS).plot(scale)
    assert drawn.shape == (120 * scale, 200 * scale, 3)
    inside = drawn[int(75 * scale) : int(77 * scale), int(20 * scale) : int(30 * scale)]
    assert np.abs(inside - mixed(0)).max() <= 6


@pytest.mark.parametrize("name", ["$x$", "a_b^{c", "\\alpha", "Größe", "%s {0}", "two\nlines"])
def test_names_are_text(name):
    metadata = Metadata(name=f"of {name}", thing_classes=[name])
    named = Result({"instances": instances_of([0], [0.9])}, GREY, metadata).plot()
    other = Result({"instances": instances_of([0], [0.9])}, GREY, THINGS).plot()
    assert named.shape == GREY.shape
    assert (named != other).any()


def test_what_is_drawn_can_be_chosen():
    result = Result({"instances": instances_of([0, 1], [0.9, 0.4])}, GREY, THINGS)
    drawn, without, masks, wide = (
        result.plot(**style)
        for style in ({}, {"labels": False}, {"masks_only": True}, {"line_width": 5})
    )
    assert (drawn[30:49, 10:40] != without[30:49, 10:40]).any()
    assert np.array_equal(drawn[52:], without[52:])
    assert tuple(without[80, 25]) == class_color(0)  # of the box
    assert (masks[82:] == 100).all()
    assert (masks[:50] == 100).all()
    assert np.abs(masks[50:60, 10:40] - mixed(0)).max() <= 1
    assert (wide[82, 10:40] == class_color(0)).all()
    assert (drawn[40:, 50:] == 100).all()  # below the threshold
    result["instances"].remove("pred_masks")
    with pytest.raises(InputError, match="finds no masks"):
        result.plot(masks_only=True)


def test_names_are_drawn_by_a_font_that_has_them(caplog, monkeypatch):
    """Matplotlib brings a font with Greek and Cyrillic; Pillow's own has neither."""

    def label(name):
        metadata = Metadata(name=f"of {name}", thing_classes=[name])
        return Result({"instances": instances_of([0])}, GREY, metadata).plot()[:50]

    assert (label("кот") != label("пёс")).any()
    assert caplog.text == ""
    fonts = [file for file in findSystemFonts(matplotlib.get_data_path()) if "DejaVu" in file]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda *_: fonts)
    assert (label("кот 猫") != label("пёс 猫")).any()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all(text.startswith("No font here has 猫: install one") for text in warnings)


def panoptic(scores=(0.9, 0.3)):
    """Two cats of these scores above the sea."""
    segments = torch.zeros(120, 200, dtype=torch.int32)
    segments[10:50, 10:50], segments[10:50, 100:140], segments[80:] = 1, 2, 3
    info = [
        {"id": 1, "isthing": True, "score": scores[0], "category_id": 0, "instance_id": 0},
        {"id": 2, "isthing": True, "score": scores[1], "category_id": 0, "instance_id": 1},
        {"id": 3, "isthing": False, "category_id": 2, "area": 8000},
    ]
    return {"panoptic_seg": (segments, info), "instances": instances_of([0, 0], list(scores))}


def test_a_panoptic_drawing_keeps_to_the_threshold():
    result = Result(panoptic(), GREY, THINGS)
    drawn, low = result.plot(threshold=0), result.above(0.5)
    assert np.abs(drawn[12:20, 12:48] - mixed(0)).max() <= 1
    assert np.abs(drawn[12:20, 102:138] - mixed(0)).max() <= 1
    assert np.abs(drawn[110:, :60] - mixed(2 + 2)).max() <= 1  # the sea, behind the two things
    above = result.plot()
    assert np.array_equal(above[12:20, 12:48], drawn[12:20, 12:48])
    assert (above[:50, 95:145] == 100).all()
    assert np.abs(above[110:, :60] - mixed(4)).max() <= 1
    segments, info = low["panoptic_seg"]
    assert segments.unique().tolist() == [0, 1, 3]
    assert [one["id"] for one in info] == [1, 3]
    assert len(low) == 1
    assert result["panoptic_seg"][0].unique().tolist() == [0, 1, 2, 3]  # as it was


def test_semantic_segments():
    scores = torch.zeros(3, 120, 200)
    scores[1, :60] = 1
    scores[2, 60:] = 1
    metadata = Metadata(name="semantic", stuff_classes=["a", "b", "c"])
    drawn = Result({"sem_seg": scores}, GREY, metadata).plot()
    assert np.abs(drawn[:20] - mixed(1)).max() <= 1
    assert np.abs(drawn[100:] - mixed(2)).max() <= 1


def test_keypoints_and_the_lines_between_them():
    instances = instances_of([0], [0.9])
    instances.remove("pred_masks")
    instances.pred_keypoints = torch.tensor([[[60.0, 100, 1], [180, 100, 1], [180, 20, 0.01]]])
    rules = [("a", "b", (0, 0, 0)), ("b", "c", (0, 0, 0))]
    metadata = Metadata(
        name="keypoints",
        thing_classes=["cat"],
        keypoint_names=["a", "b", "c"],
        keypoint_connection_rules=rules,
    )
    drawn = Result({"instances": instances}, GREY, metadata).plot()
    assert tuple(drawn[100, 120]) == (255, 255, 255)
    assert tuple(drawn[100, 60]) == tuple(drawn[100, 180]) == (255, 0, 0)
    assert (drawn[15:60, 170:190] == 100).all()  # that of little confidence, and its line
