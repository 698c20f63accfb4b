"""hotcoco's numbers are pycocotools', on random sets with crowds, ties and empty images."""

import contextlib
import copy
import io
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BitMasks, Boxes, Instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnest_d2.engine import build_evaluator
from resnest_d2.evaluation import coco as module
from resnest_d2.evaluation.coco import FastCOCOEvaluator, choose_implementation

SIZE = (90, 120)
NAMES = ["cat", "dog", "cow", "pig"]
IDS = [3, 7, 8, 90]  # with holes, as COCO's
DATA = "random_coco"


def box_mask(box):
    mask = np.zeros(SIZE, np.uint8, order="F")
    x, y, w, h = (int(v) for v in box)
    mask[y : y + h + 1, x : x + w + 1] = 1
    rle = mask_util.encode(mask)
    return {"size": list(SIZE), "counts": rle["counts"].decode()}


class RandomSet:
    """Objects of all sizes, crowds, empty images, and detections near them with equal scores."""

    def __init__(self, seed, images, keypoints=False, crowds=0.2, detections=12):
        self.random = np.random.RandomState(seed)
        self.keypoints = keypoints
        height, width = SIZE
        self.images = [
            {"id": 5 * i + 2, "file_name": f"{i}.jpg", "width": width, "height": height}
            for i in range(images)
        ]
        self.annotations, self.detections = [], []
        for image in self.images:
            objects = [self.object(image["id"], crowds) for _ in range(self.random.randint(0, 6))]
            self.annotations += objects
            for _ in range(self.random.randint(0, detections + 1)):
                self.detections.append(self.detection(image["id"], objects))
        self.dataset = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": i, "name": n} for i, n in zip(IDS, NAMES, strict=True)],
        }

    def box(self):
        height, width = SIZE
        w, h = width * self.random.uniform(0.01, 1), height * self.random.uniform(0.01, 1)
        return [self.random.uniform(0, width - w), self.random.uniform(0, height - h), w, h]

    def object(self, image_id, crowds):
        box = self.box()
        x, y, w, h = box
        crowd = int(self.random.rand() < crowds)
        polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        found = {
            "id": len(self.annotations) + 100 * image_id + self.random.randint(10**6) * 1000,
            "image_id": image_id,
            "category_id": int(self.random.choice(IDS)),
            "bbox": box,
            "area": w * h * self.random.uniform(0.5, 1),
            "iscrowd": crowd,
            "segmentation": box_mask(box) if crowd or self.random.rand() < 0.5 else polygon,
        }
        if self.keypoints:
            points = self.random.uniform(0, 90, (17, 3))
            points[:, 2] = self.random.randint(0, 3, 17) * (self.random.rand() < 0.9)
            found["keypoints"] = points.ravel().tolist()
            found["num_keypoints"] = int((points[:, 2] > 0).sum())
        return found

    def detection(self, image_id, objects):
        near = objects[self.random.randint(len(objects))] if objects else None
        box, category = self.box(), int(self.random.choice(IDS))
        if near is not None and self.random.rand() < 0.7:
            height, width = SIZE
            x, y, w, h = near["bbox"] + self.random.normal(size=4) * 2
            x, y = np.clip(x, 0, width - 2), np.clip(y, 0, height - 2)
            w, h = np.clip(w, 1, width - 1 - x), np.clip(h, 1, height - 1 - y)
            box, category = [float(v) for v in (x, y, w, h)], near["category_id"]
        found = {
            "image_id": image_id,
            "category_id": category,
            "bbox": box,
            "score": round(float(self.random.rand()), 1),
            "segmentation": box_mask(box),
        }
        if self.keypoints:
            base = near["keypoints"] if near else np.zeros(51)
            found["keypoints"] = (np.array(base) + self.random.normal(size=51) * 3).tolist()
        return found

    def expected(self, task, max_dets=None):
        """Pycocotools' own."""
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = copy.deepcopy(self.dataset)
            truth.createIndex()
            found = copy.deepcopy(self.detections)
            if task == "segm":
                for detection in found:
                    del detection["bbox"]
            evaluation = COCOeval(truth, truth.loadRes(found), task)
            if max_dets:
                evaluation.params.maxDets = max_dets
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    file = tmp_path_factory.mktemp("coco") / "annotations.json"
    file.write_text(json.dumps(RandomSet(0, 2).dataset))
    register_coco_instances(DATA, {}, str(file), "")
    DatasetCatalog.get(DATA)
    yield FastCOCOEvaluator(DATA, output_dir=None)
    DatasetCatalog.remove(DATA)
    MetadataCatalog.remove(DATA)


def put(evaluator, data):
    """Let an evaluator be of another set."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator._coco_api = COCO()
        evaluator._coco_api.dataset = copy.deepcopy(data.dataset)
        evaluator._coco_api.createIndex()
    if hasattr(evaluator, "_ground_truth"):
        del evaluator._ground_truth
    if isinstance(evaluator, FastCOCOEvaluator):
        evaluator._read_ground_truth()
    return evaluator


SETS = {
    "seed": st.integers(0, 10**6),
    "images": st.integers(1, 8),
    "crowds": st.sampled_from([0.0, 0.3, 1.0]),
    "detections": st.sampled_from([1, 12]),
}
FIXTURE = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
@FIXTURE
@given(**SETS)
def test_the_same_numbers(evaluator, task, seed, images, crowds, detections):
    data = RandomSet(seed, images, task == "keypoints", crowds, detections)
    if not data.detections:
        return
    expected = data.expected(task)
    actual = put(evaluator, data)._evaluate(copy.deepcopy(data.detections), task, None)
    assert len(expected.stats) == (10 if task == "keypoints" else 12)
    assert np.abs(np.asarray(actual.stats) - expected.stats).max() <= 1e-9
    for part in ("precision", "recall"):  # of every class, area and number of detections
        assert np.abs(np.asarray(actual.eval[part]) - expected.eval[part]).max() <= 1e-9


def as_predictions(data):
    """As ``process`` collects them: contiguous classes, by image."""
    return [
        {
            "image_id": image["id"],
            "instances": [
                {**d, "category_id": IDS.index(d["category_id"])}
                for d in copy.deepcopy(data.detections)
                if d["image_id"] == image["id"]
            ],
        }
        for image in data.images
    ]


def with_text_ids(data):
    """Image ids that JSON and pycocotools take, but not hotcoco."""
    for group, key in ((data.images, "id"), (data.annotations, "image_id")):
        for one in group:
            one[key] = f"image {one[key]}"
    for detection in data.detections:
        detection["image_id"] = f"image {detection['image_id']}"


def with_odd_fields(data):
    for image in data.images:
        image |= {"license": "CC-BY", "file_name": 7}
    data.dataset |= {"info": "none", "licenses": "CC-BY"}


@pytest.mark.parametrize("change", [None, with_text_ids, with_odd_fields])
@pytest.mark.parametrize("max_dets", [None, [1, 2, 5], [1, 10, 0], [1, 10, 1], [1, 10, 5]])
@pytest.mark.parametrize("keypoints", [False, True])
def test_the_results_are_detectron2s(evaluator, tmp_path, max_dets, keypoints, change):
    """Names, per-class AP, NaN where there is nothing, and the file of predictions."""
    data = RandomSet(4, 6, keypoints)
    if change:
        change(data)
    plain = COCOEvaluator(DATA, output_dir=str(tmp_path / "plain"), use_fast_impl=False)
    plain._max_dets_per_image = max_dets
    fast = FastCOCOEvaluator(DATA, output_dir=str(tmp_path / "fast"))
    fast._max_dets_per_image = max_dets
    results = []
    for one in (plain, fast):
        put(one, data).reset()
        one._predictions = as_predictions(data)
        results.append(one.evaluate())
    expected, actual = results
    assert list(actual) == list(expected)
    for task, metrics in expected.items():
        assert list(actual[task]) == list(metrics)
        assert actual[task] == pytest.approx(metrics, abs=1e-7, nan_ok=True)
    assert not keypoints or "keypoints" in expected
    assert "AP-cow" in expected["bbox"]
    assert (fast._ground_truth is None) == (change is with_text_ids)
    files = [tmp_path / folder / "coco_instances_results.json" for folder in ("plain", "fast")]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())


@pytest.mark.parametrize("masks", [torch.Tensor.bool, BitMasks, torch.Tensor.numpy, None])
def test_what_is_kept_of_an_image(evaluator, masks):
    """As Detectron2 keeps it; the model's output is not changed."""
    plain = COCOEvaluator(DATA, output_dir=None, use_fast_impl=False)
    instances = Instances(SIZE)
    instances.pred_boxes = Boxes(torch.rand(4, 4) * 50)
    instances.scores, instances.pred_classes = torch.rand(4), torch.tensor([0, 3, 1, 1])
    if masks:
        instances.pred_masks = masks(torch.rand(4, *SIZE) < 0.3)
    inputs = [{"image_id": 7}, {"image_id": 12}]
    outputs = [{"instances": instances}, {"instances": instances[:0]}]
    for one in (plain, evaluator):
        one.reset()
        one.process(inputs, outputs)
    assert evaluator._predictions == plain._predictions
    assert instances.has("pred_masks") == (masks is not None)


def test_some_images_only(evaluator):
    data = RandomSet(4, 6)
    put(evaluator, data)
    half = [image["id"] for image in data.images[:3]]
    part = RandomSet(4, 6)
    part.dataset["images"] = part.images[:3]
    part.dataset["annotations"] = [a for a in part.annotations if a["image_id"] in half]
    part.detections = [d for d in part.detections if d["image_id"] in half]
    actual = evaluator._evaluate(copy.deepcopy(data.detections), "bbox", half)
    assert np.abs(np.asarray(actual.stats) - part.expected("bbox").stats).max() <= 1e-9


def test_nothing_found(evaluator):
    put(evaluator, RandomSet(1, 3)).reset()
    evaluator._predictions = [{"image_id": 2, "instances": []}]
    results = evaluator.evaluate()
    assert np.isnan(results["bbox"]["AP"])


def test_a_class_that_the_data_do_not_have(evaluator):
    data = RandomSet(4, 6)
    put(evaluator, data).reset()
    evaluator._predictions = as_predictions(data)
    evaluator._predictions[0]["instances"] = [
        {"image_id": 2, "category_id": 4, "bbox": [0, 0, 9, 9], "score": 0.5}
    ]
    with pytest.raises(ValueError, match="a prediction is of class 4, but .* classes 0 to 3"):
        evaluator.evaluate()


def test_no_images(evaluator):
    data = RandomSet(4, 6)
    put(evaluator, data).reset()
    evaluator._predictions = as_predictions(data)
    assert np.isnan(evaluator.evaluate(img_ids=[])["bbox"]["AP"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data.detections[0].pop("segmentation"),
            "the predictions have no 'segmentation', which task 'segm' evaluates",
        ),
        (
            lambda data: data.annotations[0].update(id=9, segmentation=[]),
            "annotation 9 of data set 'random_coco' has no 'segmentation', which task 'segm'",
        ),
        (
            lambda data: data.detections[0].update(image_id=4),
            "a prediction is of image 4, which data set 'random_coco' does not have",
        ),
    ],
)
def test_what_would_count_as_a_miss(evaluator, change, message):
    data = RandomSet(4, 6)
    change(data)
    put(evaluator, data).reset()
    evaluator._predictions = [{"image_id": 2, "instances": data.detections}]
    evaluator._to_dataset_categories = lambda found: None
    try:
        with pytest.raises(ValueError, match=message):
            evaluator.evaluate()
    finally:
        del evaluator._to_dataset_categories


def test_numbers_of_keypoints_that_differ(evaluator):
    data = RandomSet(4, 6, keypoints=True)
    for detection in data.detections:
        detection["keypoints"] = detection["keypoints"][:30]
    message = "OKS_SIGMAS has 17 values, the annotations 17 keypoints and the predictions 10"
    with pytest.raises(ValueError, match=message):
        put(evaluator, data)._evaluate(data.detections, "keypoints", None)


def test_the_choice(evaluator, tmp_path, monkeypatch):
    assert type(build_evaluator(DATA, str(tmp_path))) is FastCOCOEvaluator
    monkeypatch.setattr(module, "_chosen", "")  # so that the choice below is undone
    assert choose_implementation("pycocotools") == choose_implementation() == "pycocotools"
    assert type(build_evaluator(DATA, str(tmp_path))) is COCOEvaluator
    with pytest.raises(ValueError, match="--coco-eval must be one of hotcoco, pycocotools, got 'x"):
        choose_implementation("x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(module, "_chosen", "")
    assert choose_implementation() == "pycocotools"
    with pytest.raises(ValueError, match="--coco-eval hotcoco: it is not installed: pip install"):
        choose_implementation("hotcoco")
