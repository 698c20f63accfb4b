"""COCO's metrics are pycocotools' own, by hotcoco too, on random sets with crowds and ties."""

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

from resnest_d2.config import ConfigError, InputError
from resnest_d2.evaluation import CocoEvaluator
from resnest_d2.evaluation.coco import encode_mask

SIZE = (90, 120)
NAMES = ["cat", "dog", "cow", "pig"]
IDS = [3, 7, 8, 90]  # with holes, as COCO's
DATA = "random_coco"
LIBRARIES = ("hotcoco", "pycocotools")
STATS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5}
POINT_STATS = {"AP": 0, "AP50": 1, "AP75": 2, "APm": 3, "APl": 4}


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

    def expected(self, task, detections=100):
        """Pycocotools' own summary in percent, and its table of precisions."""
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = copy.deepcopy(self.dataset)
            truth.createIndex()
            found = copy.deepcopy(self.detections)
            if task == "segm":
                for detection in found:
                    del detection["bbox"]
            evaluation = COCOeval(truth, truth.loadRes(found), task)
            if task != "keypoints":
                evaluation.params.maxDets = [1, 10, detections]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.params.maxDets[-1:] = [100] if task != "keypoints" else [20]
            if detections != 100:  # pycocotools' summary knows the limit of 100 alone
                evaluation.params.maxDets = [1, 10, 100]
            evaluation.summarize()
        stats = [100 * v if v >= 0 else np.nan for v in evaluation.stats]
        return stats, evaluation.eval["precision"]


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


SETS = {
    "seed": st.integers(0, 10**6),
    "images": st.integers(1, 8),
    "crowds": st.sampled_from([0.0, 0.3, 1.0]),
    "detections": st.sampled_from([1, 12]),
}
FIXTURE = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("keypoints", [False, True])
@FIXTURE
@given(**SETS)
def test_the_numbers_are_pycocotools(
    evaluator, library, keypoints, seed, images, crowds, detections
):
    data = RandomSet(seed, images, keypoints, crowds, detections)
    if not data.detections:
        return
    actual = process(evaluator(data, library), data).evaluate()
    assert list(actual) == ["bbox", *["keypoints"] * keypoints, "segm"]
    for task, metrics in actual.items():
        stats, precision = data.expected(task)
        for name, index in (POINT_STATS if task == "keypoints" else STATS).items():
            assert metrics[name] == pytest.approx(stats[index], abs=1e-9, nan_ok=True)
        for index, name in enumerate(NAMES):
            values = precision[:, :, index, 0, -1]
            mean = 100 * values[values > -1].mean() if (values > -1).any() else np.nan
            assert metrics[f"AP-{name}"] == pytest.approx(mean, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_more_detections_than_coco_counts(evaluator, library, task):
    """Four hundred on an image, of which 300 count: the mean of pycocotools' own table."""
    data = RandomSet(5, 2, detections=800)
    assert len(data.detections) > 600
    for number, detection in enumerate(data.detections):
        detection["category_id"] = IDS[0]
        detection["score"] = 1 - number / 2000
    for annotation in data.annotations:
        annotation["category_id"] = IDS[0]
    actual = process(evaluator(data, library, detections=300), data).evaluate()[task]["AP"]
    precision = data.expected(task, 300)[1][..., 0, -1]
    assert actual == pytest.approx(100 * precision[precision > -1].mean(), abs=1e-9)
    fewer = data.expected(task, 100)[1][..., 0, -1]
    assert fewer[fewer > -1].mean() != precision[precision > -1].mean()


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
@pytest.mark.parametrize("change", [None, with_text_ids, with_odd_fields])
@pytest.mark.parametrize("keypoints", [False, True])
def test_the_results_are_detectron2s(evaluator, tmp_path, keypoints, change, library):
    """Names, per-class AP, NaN where there is nothing, and the file of predictions."""
    data = RandomSet(4, 6, keypoints)
    if change:
        change(data)
    ours = process(evaluator(data, library), data)
    plain = COCOEvaluator(DATA, output_dir=str(tmp_path / "plain"), use_fast_impl=False)
    expected, actual = process(plain, data).evaluate(), ours.evaluate()
    assert list(actual) == list(expected)
    for task, metrics in expected.items():
        assert list(actual[task]) == list(metrics)
        assert actual[task] == pytest.approx(metrics, abs=1e-7, nan_ok=True)
    assert not keypoints or "keypoints" in expected
    assert "AP-cow" in expected["bbox"]
    files = [tmp_path / folder / "coco_instances_results.json" for folder in ("plain", library)]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())


@pytest.mark.parametrize("masks", [torch.Tensor.bool, BitMasks, torch.Tensor.numpy, None])
def test_the_models_output_is_not_changed(evaluator, masks):
    found = instances(RandomSet(4, 1).detections[:4])
    del found._fields["pred_masks"]
    if masks:
        found.pred_masks = masks(torch.rand(len(found), *SIZE) < 0.3)
    one = evaluator(RandomSet(4, 6))
    one.process([{"image_id": 7}, {"image_id": 12}], [{"instances": found}, {"sem_seg": None}])
    assert found.has("pred_masks") == (masks is not None)
    assert set(one.evaluate()) == ({"bbox", "segm"} if masks else {"bbox"})


def test_nothing_that_is_found_is_no_number(evaluator):
    metrics = evaluator(RandomSet(4, 6)).evaluate()["bbox"]
    assert list(metrics) == list(STATS)
    assert np.isnan(list(metrics.values())).all()


def test_a_data_set_without_annotations_gives_a_file(evaluator, tmp_path):
    data = RandomSet(4, 6)
    del data.dataset["annotations"]
    assert process(evaluator(data), data).evaluate() == {}
    written = json.loads((tmp_path / "pycocotools/coco_instances_results.json").read_text())
    assert len(written) == len(data.detections)


def test_predictions_that_the_data_set_does_not_have(evaluator):
    data = RandomSet(4, 6)
    one = process(evaluator(data), data)
    one.process([{"image_id": 4}], [{"instances": instances(data.detections[:1])}])
    with pytest.raises(InputError, match="a prediction is of image 4, which .*json lacks"):
        one.evaluate()
    wrong = instances(data.detections[:1])
    wrong.pred_classes[:] = 4
    one.reset()
    one.process([{"image_id": 2}], [{"instances": wrong}])
    with pytest.raises(InputError, match="a prediction is of class 4, but .* classes 0 to 3"):
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


def double_ids(content):
    for annotation in content["annotations"]:
        annotation["id"] = 1 + annotation["id"] % 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (double_ids, "annotations have an id that is below 1 or that others have ("),
        (change("annotations", id=0), "annotations have an id that is below 1 or that others hav"),
        (change("annotations", id="7"), "1 annotations have no usable 'id' (7)"),
        (change("annotations", id=7, area=None), "1 annotations have no usable 'area' (7)"),
        (change("annotations", id=7, iscrowd=None), "1 annotations have no usable 'iscrowd' (7)"),
        (change("annotations", id=7, image_id=[2]), "1 annotations have no usable 'image_id' (7)"),
        (change("categories", id="3"), "1 categories have no usable 'id' (3)"),
        (change("categories", name=None), "1 categories have no usable 'name' (3)"),
        (change("images", id=None), "1 images have no usable 'id' (at 1)"),
        (change("images", width="120"), "1 images have no usable 'width' (2)"),
        (lambda content: content["images"].append(5), "1 images have no usable 'id' (at 7); 1 ima"),
    ],
)
def test_what_libraries_read_differently_is_refused(evaluator, change, message):
    content = RandomSet(4, 6).dataset
    change(content)
    with pytest.raises(ConfigError) as raised:
        evaluator(content)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*annotations.json: Is a directory"),
        ("", "annotations.json is no JSON"),
        ("[]", "annotations.json is not in COCO's format: it has no list 'images'"),
        ('{"annotations": [], "categories": []}', "it has no list 'images'"),
        ('{"images": [], "annotations": []}', "it has no list 'categories'"),
        ('{"images": [], "categories": [], "annotations": 5}', "it has no list 'annotations'"),
    ],
)
def test_a_truth_that_is_none_is_refused(evaluator, tmp_path, content, message):
    evaluator(RandomSet(4, 6))
    file = tmp_path / "annotations.json"
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    with pytest.raises(InputError, match=message):
        CocoEvaluator(DATA, str(tmp_path))


def test_only_the_first_process_reads_the_truth(evaluator, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    one = evaluator({})
    assert process(one, RandomSet(4, 6)).evaluate() is None


def test_a_mask_that_is_missing_is_said(evaluator):
    data = RandomSet(4, 6)
    data.annotations[0].update(id=9, segmentation=[])
    one = process(evaluator(data), data)
    with pytest.raises(InputError, match="annotations 9 of .* have no 'segmentation', which task"):
        one.evaluate()


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_masks_are_encoded_as_by_pycocotools(height, width, share, seed):
    mask = np.random.RandomState(seed).rand(height, width) < share
    expected = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask) == {**expected, "counts": expected["counts"].decode()}
