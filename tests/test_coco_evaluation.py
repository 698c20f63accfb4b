"""COCO's metrics are Detectron2's own, by hotcoco too, on random sets with crowds and ties."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnest_d2.config import ConfigError, InputError
from resnest_d2.evaluation import CocoEvaluator

SIZE = (90, 120)
NAMES = ["cat", "dog", "cow", "pig"]
IDS = [3, 7, 8, 90]  # with holes, as COCO's
DATA = "random_coco"
LIBRARIES = ("hotcoco", "pycocotools")


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
        self.images = [
            {"id": 5 * i + 2, "file_name": f"{i}.jpg", "width": SIZE[1], "height": SIZE[0]}
            for i in range(images)
        ]
        self.annotations, self.detections = [], []
        for image in self.images:
            objects = [self.object(image["id"], crowds) for _ in range(self.random.randint(0, 6))]
            for one in objects:
                self.annotations.append({**one, "id": 7 * len(self.annotations) + 3})
            for _ in range(self.random.randint(0, detections + 1)):
                self.detections.append(self.detection(image["id"], objects))
        self.dataset = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": i, "name": n} for i, n in zip(IDS, NAMES, strict=True)],
        }

    def instance(self, image_id, box):
        return {
            "image_id": image_id,
            "category_id": int(self.random.choice(IDS)),
            "bbox": [float(side) for side in box],
            "segmentation": box_mask(box),
        }

    def box(self):
        w, h = (side * self.random.uniform(0.01, 1) for side in SIZE[::-1])
        return [self.random.uniform(0, SIZE[1] - w), self.random.uniform(0, SIZE[0] - h), w, h]

    def object(self, image_id, crowds):
        x, y, w, h = box = self.box()
        found = self.instance(image_id, box)
        found["iscrowd"] = int(self.random.rand() < crowds)
        if not found["iscrowd"] and self.random.rand() < 0.5:
            found["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        found["area"] = w * h * self.random.uniform(0.5, 1)
        if self.keypoints:
            points = self.random.uniform(0, 90, (17, 3))
            points[:, 2] = self.random.randint(0, 3, 17) * (self.random.rand() < 0.9)
            found["keypoints"] = points.ravel().tolist()
            found["num_keypoints"] = int((points[:, 2] > 0).sum())
        return found

    def detection(self, image_id, objects):
        near = objects[self.random.randint(len(objects))] if objects else None
        if near is None or self.random.rand() < 0.3:
            found = self.instance(image_id, self.box())
        else:
            x, y, w, h = near["bbox"] + self.random.normal(size=4) * 2
            x, y = np.clip(x, 0, SIZE[1] - 2), np.clip(y, 0, SIZE[0] - 2)
            w, h = np.clip(w, 1, SIZE[1] - 1 - x), np.clip(h, 1, SIZE[0] - 1 - y)
            found = self.instance(image_id, [x, y, w, h])
            found["category_id"] = near["category_id"]
        found["score"] = round(float(self.random.rand()), 1)
        if self.keypoints:
            base = near["keypoints"] if near else np.zeros(51)
            found["keypoints"] = (np.array(base) + self.random.normal(size=51) * 3).tolist()
        return found


@pytest.fixture
def evaluator(tmp_path):
    """Make an evaluator of a set, and register it."""

    def make(data, library="pycocotools", **options):
        forget()
        file = tmp_path / "annotations.json"
        file.write_text(json.dumps(data.dataset if isinstance(data, RandomSet) else data))
        register_coco_instances(DATA, {}, str(file), "")
        MetadataCatalog.get(DATA).set(
            thing_classes=NAMES, thing_dataset_id_to_contiguous_id={n: i for i, n in enumerate(IDS)}
        )
        return CocoEvaluator(DATA, str(tmp_path / library), library=library, **options)

    yield make
    forget()


def forget():
    if DATA in DatasetCatalog:
        DatasetCatalog.remove(DATA)
        MetadataCatalog.remove(DATA)


def instances(detections):
    """As models find them."""
    found = Instances(SIZE)
    boxes = torch.tensor([d["bbox"] for d in detections], dtype=torch.double).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found.pred_boxes = Boxes(boxes)
    found.pred_boxes.tensor = boxes  # in double precision, which Boxes rounds
    found.scores = torch.tensor([d["score"] for d in detections], dtype=torch.double)
    found.pred_classes = torch.tensor([IDS.index(d["category_id"]) for d in detections]).long()
    if masks := [d["segmentation"] for d in detections if "segmentation" in d]:
        found.pred_masks = torch.as_tensor(mask_util.decode(masks)).permute(2, 0, 1).bool()
    if detections and "keypoints" in detections[0]:
        points = torch.tensor([d["keypoints"] for d in detections], dtype=torch.double)
        found.pred_keypoints = points.reshape(len(detections), -1, 3)
        found.pred_keypoints[..., :2] += 0.5  # Detectron2's are coordinates, COCO's pixels
    return found


def process(one, data):
    one.reset()
    for image in data.images:
        found = [d for d in data.detections if d["image_id"] == image["id"]]
        one.process([{"image_id": image["id"]}], [{"instances": instances(found)}])
    return one


def assert_as_detectron2s(actual, data, folder, **options):
    """Its own evaluator calls pycocotools."""
    plain = COCOEvaluator(DATA, output_dir=str(folder), use_fast_impl=False, **options)
    expected = process(plain, data).evaluate()
    assert list(actual) == list(expected)
    for task, metrics in expected.items():
        assert list(actual[task]) == list(metrics)
        assert actual[task] == pytest.approx(metrics, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("keypoints", [False, True])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 8),
    crowds=st.sampled_from([0.0, 0.3, 1.0]),
    detections=st.sampled_from([1, 12]),
)
def test_the_numbers_are_detectron2s(
    evaluator, tmp_path, library, keypoints, seed, images, crowds, detections
):
    data = RandomSet(seed, images, keypoints, crowds, detections)
    if data.detections and data.annotations:  # else Detectron2's fails
        actual = process(evaluator(data, library), data).evaluate()
        assert_as_detectron2s(actual, data, tmp_path)


@pytest.mark.parametrize("library", LIBRARIES)
def test_more_detections_than_coco_counts(evaluator, tmp_path, library):
    """On two images more than the 300 that count."""
    data = RandomSet(7, 2, detections=800)
    assert len(data.detections) > 600
    for number, detection in enumerate(data.detections):
        detection["category_id"] = IDS[0]
        detection["score"] = 1 - number / 2000
    for annotation in data.annotations:
        annotation["category_id"] = IDS[0]
    actual = process(evaluator(data, library, detections=300), data).evaluate()
    assert_as_detectron2s(actual, data, tmp_path, max_dets_per_image=300)
    fewer = process(evaluator(data, library), data).evaluate()
    assert fewer["bbox"]["AP"] != actual["bbox"]["AP"]


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


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("change", [with_text_ids, with_odd_fields])
def test_odd_files_and_the_file_of_predictions(evaluator, tmp_path, change, library):
    data = RandomSet(4, 6)
    change(data)
    assert_as_detectron2s(process(evaluator(data, library), data).evaluate(), data, tmp_path)
    files = [tmp_path / folder / "coco_instances_results.json" for folder in ("", library)]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_model_that_finds_nothing_has_an_ap_of_zero(evaluator, library):
    """As pycocotools says; of sizes and data sets without objects it is no number."""
    data = RandomSet(4, 6)
    nothing = instances([])
    nothing.pred_masks = torch.zeros(0, 10, 10, dtype=torch.bool)
    for annotation in data.dataset["annotations"]:
        annotation |= {"area": 40**2, "iscrowd": 0, "segmentation": [[0, 0, 40, 0, 40, 40, 0, 40]]}
    one = evaluator(data, library)
    one.process([{"image_id": data.images[0]["id"]}], [{"instances": nothing}])
    results = one.evaluate()
    assert list(results) == ["bbox", "segm"]
    for metrics in results.values():
        overall = {name: value for name, value in metrics.items() if not name.startswith("AP-")}
        assert np.isnan([overall.pop("APs"), overall.pop("APl")]).all()
        assert set(overall.values()) == {0}
    data.dataset["annotations"].clear()
    one = evaluator(data, library)
    one.process([{"image_id": data.images[0]["id"]}], [{"instances": nothing}])
    assert np.isnan(list(one.evaluate()["segm"].values())).all()


def test_a_data_set_without_annotations_gives_a_file(evaluator, tmp_path):
    data = RandomSet(4, 6)
    del data.dataset["annotations"]
    assert process(evaluator(data), data).evaluate() == {}
    written = json.loads((tmp_path / "pycocotools/coco_instances_results.json").read_text())
    assert len(written) == len(data.detections)


@pytest.mark.parametrize(("image", "category"), [(4, 3), (2, 4)])
def test_predictions_that_the_data_set_does_not_have(evaluator, image, category):
    one, found = evaluator(RandomSet(4, 6)), instances(RandomSet(4, 6).detections[:1])
    found.pred_classes[:] = category
    one.process([{"image_id": image}], [{"instances": found}])
    with pytest.raises(InputError, match=f"is of image {image} and class {category}, which data"):
        one.evaluate()


def test_numbers_of_keypoints_that_differ(evaluator):
    data = RandomSet(4, 6, keypoints=True)
    for detection in data.detections:
        detection["keypoints"] = detection["keypoints"][:30]
    message = "OKS_SIGMAS has 17 values, the annotations 17 keypoints and the predictions 10"
    with pytest.raises(ConfigError, match=message):
        process(evaluator(data), data).evaluate()


def change(key, **values):
    """Change the first entry of a list; None takes a field away."""

    def changed(content):
        content[key][0].update(values)
        content[key][0] = {k: v for k, v in content[key][0].items() if v is not None}

    return changed


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("key", [lambda at: at, lambda at: 1 + at % 3, lambda at: f"x{at}"])
def test_ids_of_annotations_do_not_count(evaluator, library, key):
    """Neither from 0 on, nor double, nor text."""
    data = RandomSet(4, 6)
    expected = process(evaluator(data, library), data).evaluate()
    for at, annotation in enumerate(data.annotations):
        annotation["id"] = key(at)
    found = process(evaluator(data, library), data).evaluate()
    for task in expected:
        assert found[task] == pytest.approx(expected[task], abs=0, nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change("annotations", area=None), "are 'area' of annotations number 1. AP would depend"),
        (change("annotations", iscrowd=None), "are 'iscrowd' of annotations number 1"),
        (change("annotations", category_id="3"), "are 'category_id' of annotations number 1"),
        (change("categories", id="3"), "are 'id' of categories number 1"),
        (change("categories", name=None), "are 'name' of categories number 1"),
        (change("images", id=None), "are 'id' of images number 1"),
        (change("images", width="120"), "are 'width' of images number 1"),
        (lambda content: content["images"].append(5), "are 'id' of images number 7, 'width' of"),
    ],
)
def test_what_libraries_read_differently_is_refused(evaluator, change, message):
    content = RandomSet(4, 6).dataset
    change(content)
    with pytest.raises(ConfigError, match=message):
        evaluator(content)


def test_only_the_first_process_reads_the_truth(evaluator, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    one = evaluator({})
    assert process(one, RandomSet(4, 6)).evaluate() is None


def test_a_mask_that_is_missing_is_said(evaluator):
    data = RandomSet(4, 6)
    data.annotations[0].update(image_id=7, segmentation=[])
    one = process(evaluator(data), data)
    with pytest.raises(InputError, match="1 annotations of .* no 'segmentation', .* of images 7"):
        one.evaluate()
