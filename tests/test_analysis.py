"""Pages about predictions: pycocotools' numbers, errors known by construction, bad input."""

import base64
import contextlib
import io
import json
import re
import sys
from collections import Counter

import numpy as np
import pycocotools.mask as mask_util
import pytest
from commands import run_tool
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnest_d2.analysis import Run, analyze, read_predictions, write_comparison, write_report
from resnest_d2.analysis.comparison import _settings
from resnest_d2.analysis.page import number, table, write_page
from resnest_d2.analysis.report import KINDS
from resnest_d2.commands import compare as compare_command
from resnest_d2.commands.analyze import main as analyze_main
from resnest_d2.commands.compare import main as compare_main
from resnest_d2.config import InputError
from resnest_d2.data.coco_json import read_coco

SIZE = (120, 160)  # height, width


@pytest.fixture(autouse=True)
def _no_handlers(monkeypatch):
    """Commands that run in this process leave its logging alone."""
    monkeypatch.setattr("resnest_d2.commands.setup_logger", lambda **_: None)


def rle(box):
    x, y, w, h = (round(v) for v in box)
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    found = mask_util.encode(mask)
    return {"size": list(SIZE), "counts": found["counts"].decode()}


def annotation(number, image, category, box, **more):
    area = box[2] * box[3]
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    found = {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area}
    return {**found, "iscrowd": 0, "segmentation": polygon, **more}


def detection(image, category, box, score, masks=False):
    found = {"image_id": image, "category_id": category, "bbox": box, "score": score}
    return {**found, "segmentation": rle(box)} if masks else found


def write(folder, images, annotations, found, names=("cat", "dog", "cow")):
    """Annotations, predictions and pictures."""
    height, width = SIZE
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in images
        ],
        "annotations": annotations,
        "categories": [{"id": 3 * i + 1, "name": name} for i, name in enumerate(names)],
    }
    folder.mkdir(exist_ok=True)
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps(found))
    for i in images:
        pixels = np.random.randint(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder / "truth.json", folder / "found.json"


def random_set(folder, masks, seed=0, names=("cat", "dog", "cow")):
    """Objects of all sizes with crowds, detections near them, and a class without any object."""
    random, annotations, found = np.random.RandomState(seed), [], []
    for image in range(1, 13):
        for _ in range(random.randint(0, 6)):
            least, most = ((5, 32), (32, 96), (98, 118))[random.randint(3)]
            w, h = (int(v) for v in random.randint(least, most, 2))
            box = [int(random.randint(0, 160 - w)), int(random.randint(0, 120 - h)), w, h]
            category = int(random.choice([1, 4]))
            more = {"iscrowd": 1, "segmentation": rle(box)} if random.rand() < 0.15 else {}
            annotations.append(annotation(len(annotations) + 1, image, category, box, **more))
            for _ in range(random.randint(0, 3)):
                x, y = (max(0, int(v)) for v in box[:2] + random.randint(-4, 5, 2))
                near = [x, y, min(w, 160 - x), min(h, 120 - y)]
                other = category if random.rand() < 0.8 else 7
                found.append(detection(image, other, near, round(random.rand(), 2), masks))
    return write(folder, range(1, 13), annotations, found, names)


def read(paths, images=None, **options):
    data = read_coco(paths[0], images)
    return analyze(data, read_predictions(paths[1], data), **options)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("most", [100, 11])
def test_numbers_are_those_of_pycocotools(tmp_path, task, most):
    truth_file, found_file = paths = random_set(tmp_path, masks=True)
    one = read(paths, max_detections=most)[["bbox", "segm"].index(task)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(truth_file), json.loads(found_file.read_text())
        if task == "segm":  # as Detectron2 does, so that masks have their own areas
            for entry in found:
                del entry["bbox"]
        expected = COCOeval(truth, truth.loadRes(found), task)
        expected.params.maxDets = [1, 10, most]
        expected.evaluate()
        expected.accumulate()
    precision, recall = expected.eval["precision"], expected.eval["recall"]

    def mean(values):
        defined = values[values > -1]
        return pytest.approx(100 * defined.mean(), abs=1e-6) if defined.size else None

    for index, size in enumerate(("", "s", "m", "l")):
        assert one.metrics[f"AP{size}"] == mean(precision[:, :, :, index, 2])
        assert list(one.metrics.values())[8 + index] == mean(recall[:, :, index, 2])
    assert one.metrics["AP50"] == mean(precision[0, ..., 0, 2])
    assert one.metrics["AP75"] == mean(precision[5, ..., 0, 2])
    assert one.metrics["AR1"] == mean(recall[..., 0, 0])
    objects = Counter(a["category_id"] for a in truth.anns.values() if not a["iscrowd"])
    for index, category in enumerate((1, 4)):
        row = [objects[category], *(mean(precision[t, :, index, 0, 2]) for t in (slice(10), 0, 5))]
        row += [mean(precision[:, :, index, size, 2]) for size in (1, 2, 3)]
        assert None not in row
        assert one.by_class[category] == row
    assert one.by_class[7] == [0] + 6 * [None]  # no object, so neither 0 nor -1


@pytest.fixture
def kinds(tmp_path):
    """One error of each kind and two objects missed, by construction."""
    boxes = [[40 * i, 0, 20, 20] for i in range(4)]
    annotations = [annotation(i + 1, 1, 1, box) for i, box in enumerate(boxes)]
    annotations.append(annotation(5, 2, 7, [0, 0, 20, 20]))
    found = [
        detection(1, 1, boxes[0], 0.95),  # right
        detection(1, 1, [0, 0, 20, 18], 0.85),  # duplicate
        detection(1, 4, boxes[1], 0.75),  # another class
        detection(1, 1, [80, 0, 20, 8], 0.65),  # IoU 0.4
        detection(1, 4, [120, 0, 20, 8], 0.55),  # both
        detection(1, 1, [60, 80, 20, 20], 0.55),  # background
        detection(1, 1, [0, 80, 20, 20], 0.15),  # below the threshold
    ]
    return write(tmp_path / "kinds", [1, 2, 3], annotations, found)


def test_kinds_of_errors_confusions_and_calibration(kinds):
    (one,) = read(kinds)
    errors = one.evaluation.tide_errors()
    assert errors["counts"] == {"Cls": 1, "Loc": 1, "Both": 1, "Dupe": 1, "Bkg": 2, "Miss": 2}
    assert set(KINDS) == set(errors["counts"])

    # Rows of the truth, columns of predictions, each cat, dog, cow, background.
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[0, 1] = 1
    expected[0, 3], expected[2, 3] = 2, 1
    expected[3, 0], expected[3, 1] = 3, 1
    assert (one.evaluation_shown.confusion_matrix()["matrix"] == expected).all()

    # Scores of each bin of ten less the share that is right, weighted by numbers.
    gaps = {0.95: (1, 1), 0.85: (1, 0), 0.75: (1, 0), 0.65: (1, 0), 0.55: (2, 0), 0.15: (1, 0)}
    ece = sum(n * abs(score - right) for score, (n, right) in gaps.items()) / 7
    assert one.evaluation.calibration()["ece"] == pytest.approx(ece, abs=1e-9)

    counts = {k: [v[n] for n in ("tp", "fp", "fn")] for k, v in one.images.items()}
    assert counts == {1: [1, 5, 3], 2: [0, 0, 1]}  # in image 3 there is nothing
    assert one.images[1]["f1"] == pytest.approx(2 / (2 + 5 + 3))


def section(text, title):
    match = re.search(rf"<h2[^>]*>{title}</h2>(.*?)(<h2|</body>)", text, re.DOTALL)
    assert match, f"there is no section {title}"
    return match[1]


def cells(text):
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_the_page_has_the_numbers_and_the_pictures(tmp_path):
    paths = random_set(tmp_path, masks=True, names=("cat", "<b>dog", "cow & calf"))
    analyses = read(paths, tmp_path)
    file = write_report(analyses, tmp_path / "out/deep", title="A & B <i>", max_images=5)
    assert file == tmp_path / "out/deep/report.html"
    text = file.read_text()
    rows = {row[0]: row for row in cells(section(text, "COCO's metrics".replace("'", "&#x27;")))}
    assert rows["AP"][1:3] == [f"{one.metrics['AP']:.1f}" for one in analyses]
    for one, task in zip(analyses, ("boxes", "masks"), strict=True):
        found = {row[0]: row[1:] for row in cells(section(text, f"Classes: {task}"))[1:]}
        assert found["cow &amp; calf"] == ["0"] + 6 * ["n/a"]
        assert found["cat"] == [number(value) for value in one.by_class[1]]
        assert list(found)[-1] == "cow &amp; calf"
        charts = {"Precision and recall": 2, "Confusions": 2, "Kinds of errors": 1}
        for title, many in (charts | {"Calibration": 1}).items():
            assert section(text, f"{title}: {task}").count("data:image/png") == many
    assert section(text, "Worst images").count("data:image/jpeg") == 2 * 3
    assert section(text, "Best images").count("data:image/jpeg") == 2 * 2
    f1 = sorted(value["f1"] for value in analyses[-1].images.values())
    worst, best = (cells(section(text, f"{which} images"))[1:] for which in ("Worst", "Best"))
    assert [row[1] for row in worst] == [f"{v:.2f}" for v in f1[:3]]
    assert [row[1] for row in best] == [f"{v:.2f}" for v in f1[:-3:-1]]
    assert "<b>dog" not in text
    assert "<i>" not in text
    assert len(re.findall(r"<h2", text)) == text.count('<a href="#s') == 13
    # Nothing comes from elsewhere.
    assert not re.search(r"(src|href)=(?!\"(data:image/|#))|<script|<link|url\(|@import", text)


def test_pictures_show_what_is_right_and_what_is_wrong(tmp_path, monkeypatch, kinds):
    """Colours by state, boxes where they are, names with scores; large pictures become small."""
    from detectron2.utils.visualizer import Visualizer

    calls = []
    original = Visualizer.overlay_instances
    monkeypatch.setattr(
        Visualizer,
        "overlay_instances",
        lambda self, **options: calls.append(options) or original(self, **options),
    )
    (one,) = read(kinds, kinds[0].parent)
    text = write_report([one], tmp_path, max_images=2).read_text()
    (truth,) = (c for c in calls if c["labels"] == ["cat"] * 4)
    (found,) = (c for c in calls if c["labels"] and "%" in c["labels"][0])
    assert truth["assigned_colors"] == ["tab:green"] + 3 * ["tab:orange"]
    assert found["assigned_colors"] == ["tab:green"] + 5 * ["tab:red"]
    assert found["labels"][2] == "dog 75%"
    assert found["boxes"][3] == [80, 0, 100, 8]
    assert text.count("data:image/jpeg") == 4
    for content in re.findall(r"image/jpeg;base64,([^\"]+)", text):
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert max(image.size) <= 400


@pytest.mark.parametrize("without", ["predictions", "annotations", "both"])
def test_nothing_to_evaluate(tmp_path, without):
    objects = [] if without != "predictions" else [annotation(1, 1, 1, [0, 0, 20, 20])]
    found = [] if without != "annotations" else [detection(1, 1, [0, 0, 20, 20], 0.9)]
    (one,) = read(write(tmp_path / "data", [1, 2], objects, found), tmp_path / "data")
    text = write_report([one], tmp_path).read_text()
    expected = "0.0" if without == "predictions" else "n/a"
    assert cells(section(text, "COCO&#x27;s metrics"))[1][1] == expected
    assert text.count("data:image/jpeg") == (0 if without == "both" else 2)


def test_many_classes_and_images_stay_readable(tmp_path):
    """Of 100 classes the most confused are shown, and so few pictures as asked for."""
    names = [f"class {i}" for i in range(100)]
    images, box = range(1, 301), [0, 0, 20, 20]
    annotations = [annotation(i, i, 3 * (i % 100) + 1, box) for i in images]
    found = [detection(i, 3 * ((i + i % 2) % 100) + 1, box, 0.9) for i in images]
    paths = write(tmp_path / "data", images, annotations, found, names)
    text = write_report(read(paths, tmp_path / "data"), tmp_path, max_images=4).read_text()
    assert "Of 100 classes the 20 most confused are shown" in section(text, "Confusions: boxes")
    assert len(cells(section(text, "Classes: boxes"))) == 101
    assert text.count("data:image/jpeg") == 8
    assert len(text) < 2e6


GOOD = detection(1, 1, [0, 0, 20, 20], 0.9)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("{", "is no JSON"),
        ({"images": []}, "does not hold COCO's results, a list of predictions"),
        ([[1]], "does not hold COCO's results"),
        ([GOOD, {**GOOD, "image_id": 99}], "prediction 2 has image_id 99, which .*truth.json does"),
        ([{**GOOD, "image_id": [1]}], "prediction 1 has image_id"),
        ([{**GOOD, "category_id": 2}], "prediction 1 has category_id 2, which .*truth.json does"),
        ([{**GOOD, "bbox": [0, 0, 1]}], r"must have a box of x, y, width and height, got \[0, 0"),
        ([{**GOOD, "bbox": [0, 0, -5, 5]}], "must have a box of x, y, width and height"),
        ([{**GOOD, "bbox": [0, 0, float("nan"), 5]}], "must have a box of x, y, width and height"),
        ([{**GOOD, "bbox": None}], "must have a box of x, y, width and height, got None"),
        ([{**GOOD, "score": 7}], "must have a score from 0 to 1, got 7"),
        ([{**GOOD, "score": float("nan")}], "must have a score from 0 to 1, got nan"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "must have a score .* got None"),
        ([{k: v for k, v in GOOD.items() if k != "bbox"}], "has no 'bbox' and no 'segmentation'"),
        (
            [GOOD, {**GOOD, "segmentation": rle([0, 0, 5, 5])}],
            "1 has no 'segmentation', as others have",
        ),
        (
            [{**GOOD, "segmentation": [[0, 0, 5, 0, 5, 5]]}],
            r"must have compressed RLE .* size, \[120, 160\], as a mask, got \[\[0",
        ),
        ([{**GOOD, "segmentation": {"size": [9, 9], "counts": "0"}}], "must have compressed RLE"),
        (
            [{**GOOD, "segmentation": {"size": [120, 160], "counts": "\t"}}],
            "must have compressed RLE",
        ),
        (
            [{**GOOD, "segmentation": {"size": [120, 160], "counts": ""}}],
            "must have compressed RLE",
        ),
    ],
)
def test_wrong_predictions_are_named(tmp_path, found, words):
    truth, file = write(tmp_path, [1], [annotation(1, 1, 1, [0, 0, 20, 20])], found)
    if isinstance(found, str):
        file.write_text(found)
    data = read_coco(truth, None)
    with pytest.raises(InputError, match=words):
        read_predictions(file, data)


def test_predictions_as_other_tools_write_them(tmp_path):
    truth, file = write(tmp_path, [1], [annotation(1, 1, 1, [0, 0, 20, 20])], [GOOD])
    plain = read_predictions(file, read_coco(truth, None))
    text = {"image_id": "1", "category_id": 1.0, "score": "0.9", "bbox": list("0099")}
    file.write_text(json.dumps([{**GOOD, **text}]))
    data = read_coco(truth, None)
    assert read_predictions(file, data) == [{**plain[0], "bbox": [0, 0, 9, 9]}]
    assert analyze(data, read_predictions(file, data))
    content = json.loads(truth.read_text())
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = "img1"
    truth.write_text(json.dumps(content))
    file.write_text(json.dumps([{**GOOD, "image_id": "img1"}]))
    (one,) = read((truth, file))
    assert one.metrics["AP"] == pytest.approx(100)


def test_what_can_be_left_out_is_told(tmp_path, caplog):
    """Keypoints, masks that annotations lack, and more predictions than count."""
    box = [0, 0, 20, 20]
    bare = annotation(1, 1, 1, box)
    del bare["segmentation"]
    found = [detection(1, 1, box, 0.9, masks=True) | {"keypoints": [0, 0, 1]}] * 12
    paths = write(tmp_path, [1], [bare], found)
    (one,) = read(paths, max_detections=11)
    assert (one.task, one.metrics["AP"]) == ("bbox", pytest.approx(100))
    assert "keypoints are left out" in caplog.text
    assert "masks cannot be evaluated: 1 annotations" in caplog.text
    assert "an image has 12 predictions, of which 11 count; --max-detections" in caplog.text
    only_masks = [{k: v for k, v in one.items() if k != "bbox"} for one in found]
    with pytest.raises(InputError, match="masks cannot be evaluated: 1 annotations of .*truth"):
        read(write(tmp_path, [1], [bare], only_masks))


def test_names_with_formulas_and_very_thin_pictures_are_drawn(tmp_path):
    box, thin = [0, 0, 4, 4], tmp_path / "1.png"
    paths = write(
        *(tmp_path, [1], [annotation(1, 1, 1, box)], [detection(1, 1, box, 0.9)]),
        ["$a_^$", "long " * 60],
    )
    Image.new("RGB", (4000, 5)).save(thin)
    content = json.loads(paths[0].read_text())
    content["images"][0] |= {"width": 4000, "height": 5}
    paths[0].write_text(json.dumps(content))
    text = write_report(read(paths, tmp_path), tmp_path).read_text()
    assert text.count("data:image/jpeg") == 2
    assert "<td class=text>$a_^$</td>" in text


def test_masks_without_boxes_are_evaluated_and_drawn(tmp_path):
    box = [10, 10, 40, 40]
    found = [{k: v for k, v in detection(1, 1, box, 0.9, True).items() if k != "bbox"}]
    (one,) = read(write(tmp_path, [1], [annotation(1, 1, 1, box)], found), tmp_path)
    assert (one.task, one.metrics["AP50"]) == ("segm", pytest.approx(100))
    assert write_report([one], tmp_path).read_text().count("data:image/jpeg") == 2


def test_images_without_size_need_their_folder(tmp_path):
    truth, _ = write(tmp_path, [1], [annotation(1, 1, 1, [0, 0, 20, 20])], [])
    content = json.loads(truth.read_text())
    del content["images"][0]["width"]
    truth.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"image 1 has no width and height, and without .*--images"
    ):
        read_coco(truth, None)
    assert read_coco(truth, tmp_path).images[0]["width"] == 160


def test_without_hotcoco_a_sentence_names_it(kinds, monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(ImportError, match=r"hotcoco, which is not installed: pip install 'resnest"):
        read(kinds)


def test_the_analyze_command(kinds, tmp_path):
    options = ["--predictions", kinds[1], "--json", kinds[0], "--output", tmp_path / "new folder"]
    result = run_tool("analyze.py", *options, "--images", kinds[0].parent, "--title", "Mine")
    assert result.returncode == 0, result.stderr
    (one,) = read(kinds)
    file = tmp_path / "new folder/report.html"
    assert result.stdout.endswith(f"AP of boxes {one.metrics['AP']:.1f}\n{file}\n")
    assert "<h1>Mine</h1>" in file.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--predictions": "absent.json"}, "there is no file of predictions absent.json"),
        ({"--json": "absent.json"}, "there is no annotation file absent.json"),
        ({"--images": "absent"}, "there is no folder of images absent"),
        ({"--confidence-threshold": "1.5"}, "--confidence-threshold must be between 0 and 1"),
        ({"--max-images": "-1"}, "--max-images must be at least 0, got -1"),
        ({"--max-detections": "10"}, "--max-detections must be at least 11, got 10"),
        ({"--output": __file__}, "File exists"),
    ],
)
def test_wrong_arguments_end_in_a_sentence(kinds, tmp_path, capsys, change, words):
    options = {"--predictions": kinds[1], "--json": kinds[0], "--output": tmp_path / "o"} | change
    with pytest.raises(SystemExit) as end:
        analyze_main([str(part) for pair in options.items() for part in pair])
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def with_run(folder, source, found, **config):
    """An output folder of training."""
    (folder / "inference").mkdir(parents=True)
    (folder / compare_command.PREDICTIONS).write_text(json.dumps(found))
    (folder / compare_command.ANNOTATIONS).write_text(source.read_text())
    config = {"DATASETS": {"TEST": ["mine"]}, "OUTPUT_DIR": str(folder), **config}
    (folder / "config.yaml").write_text(json.dumps(config))
    lines = [{"iteration": 1, "total_loss": 2.0, "bbox/AP": float("nan")}]
    lines += [{"iteration": 2, "total_loss": 1.0, "bbox/AP": 10.0}]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def two_runs(tmp_path):
    truth, found = random_set(tmp_path / "data", masks=True)
    found = json.loads(found.read_text())
    first = with_run(tmp_path / "a", truth, found[::2], SOLVER={"BASE_LR": 0.1, "GAMMA": 0.1})
    second = with_run(tmp_path / "b", truth, found, SOLVER={"BASE_LR": 0.2, "GAMMA": 0.1})
    return first, second


def test_compare_prints_a_table_and_writes_the_page(two_runs, tmp_path, capsys):
    names, images = ["ResNet-50", "ResNeSt-50"], tmp_path / "data"
    options = ["--names", *names, "--images", images, "--output", tmp_path, "--max-images", 3]
    assert compare_main([str(part) for part in (*two_runs, *options)]) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "comparison.html").read_text()
    both = [
        read((r / "annotations_val.json", r / "inference/coco_instances_results.json"))
        for r in two_runs
    ]
    for index, task in enumerate(("boxes", "masks")):
        first, second = (analyses[index].metrics["AP"] for analyses in both)
        row = cells(section(text, f"COCO&#x27;s metrics: {task}"))[1]
        assert row[:4] == ["AP", f"{first:.1f}", f"{second:.1f}", f"{second - first:+.1f}"]
        low, high = map(float, re.match(r"(\S+) to (\S+)", row[4]).groups())
        assert low <= second - first <= high
        assert row[4].endswith("*") == (low > 0 or high < 0)
        assert re.search(rf"AP +\| {first:.1f} +\| {second:.1f} ", printed)
        classes = {row[0]: row[2:] for row in cells(section(text, f"Classes: {task}"))[1:]}
        assert classes["cow"] == 3 * ["n/a"]
        assert classes["cat"][0] == number(both[0][index].by_class[1][1])
        kinds = {row[0]: row[2:] for row in cells(section(text, f"Kinds of errors: {task}"))[1:]}
        counts = [a[index].evaluation.tide_errors()["counts"]["Miss"] for a in both]
        assert kinds["missed"][::2] == [str(count) for count in counts]
    assert cells(section(text, "Settings that differ"))[1:] == [["SOLVER.BASE_LR", "0.1", "0.2"]]
    assert section(text, "Training").count("data:image/png") == 1
    scores = [{k: v["f1"] for k, v in analyses[-1].images.items()} for analyses in both]
    differ = sum(scores[0].get(i, 1) != scores[1].get(i, 1) for i in range(1, 13))
    drawn = section(text, "Images that differ most")
    assert drawn.count("data:image/jpeg") == 3 * min(3, differ) > 0
    assert printed.endswith("comparison.html\n")


def test_a_config_that_is_no_plain_yaml_costs_the_settings_alone(two_runs, tmp_path, caplog):
    (two_runs[0] / "config.yaml").write_text("model: !!python/name:torch.nn.LayerNorm ''\n")
    assert compare_main([*map(str, two_runs), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "comparison.html").read_text()
    assert "Settings that differ" not in text
    assert "config.yaml" in caplog.text
    assert "the page compares no settings" in caplog.text


def test_settings_of_any_depth():
    one = {"A": {"B": {"C": 1, "D": [1, 2], "F": (1, 2)}}, "OUTPUT_DIR": "x"}
    other = {"A": {"B": {"C": 1, "D": [1, 3], "F": [1, 2]}}, "E": True, "OUTPUT_DIR": "y"}
    assert _settings(one, other) == [["A.B.D", "[1, 2]", "[1, 3]"], ["E", "not set", "True"]]


def test_the_interval_is_that_of_a_bootstrap_over_images(tmp_path):
    """Half the images are hit by one model only, so AP over samples follows from their number."""
    images, box = range(1, 41), [0, 0, 20, 20]
    annotations = [annotation(i, i, 1, box) for i in images]
    found = [detection(i, 1, box, 0.9) for i in images]
    truth, every = write(tmp_path / "a", images, annotations, found)
    _, half = write(tmp_path / "b", images, annotations, found[:20])
    runs = [Run(n, read((truth, f))) for n, f in (("half", half), ("every", every))]
    _, metrics = write_comparison(*runs, tmp_path, max_images=0)
    row = metrics["bbox"][1]
    low, high = map(float, re.match(r"(\S+) to (\S+)", row[4]).groups())
    # A sample's recall without the second half is binomial; AP50 is it, on a grid of 101 points.
    recalls = np.random.RandomState(0).binomial(40, 0.5, 100_000) / 40
    lost = 100 - 100 * (np.floor(recalls * 100 + 1e-9) + 1) / 101
    expected = np.percentile(lost, [2.5, 97.5])
    assert row[0] == "AP50"
    assert [low, high] == pytest.approx(expected, abs=4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("images", "are on different data: the images of .* are not the same"),
        ("classes", "are on different data: the categories of"),
        ("boxes", "are on different data: the annotations of"),
        ("tests", "are on different data: DATASETS.TEST is"),
        ("annotations", "has no annotations_val.json; --json names the annotations"),
        ("predictions", "there is no file of predictions"),
        ("file", "is no output folder of training; its annotations need --json"),
        ("names", "both runs are called 'x'; --names tells them apart"),
    ],
)
def test_runs_that_cannot_be_compared(two_runs, tmp_path, capsys, change, words):
    first, second = two_runs
    file = second / "annotations_val.json"
    content, options = json.loads(file.read_text()), []
    if change == "images":
        content["images"].append({"id": 77, "file_name": "77.png", "width": 5, "height": 5})
    elif change == "classes":
        content["categories"][0]["name"] = "lion"
    elif change == "boxes":
        content["annotations"][0]["bbox"][2] += 1
    elif change == "tests":
        (second / "config.yaml").write_text(json.dumps({"DATASETS": {"TEST": ["other"]}}))
    file.write_text(json.dumps(content))
    if change == "annotations":
        file.unlink()
    elif change == "predictions":
        (second / compare_command.PREDICTIONS).unlink()
    elif change == "file":
        second = tmp_path / "data/found.json"
    elif change == "names":
        options = ["--names", "x", "x"]
    with pytest.raises(SystemExit) as end:
        compare_main([str(first), str(second), "--output", str(tmp_path), *options])
    assert end.value.code == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert re.search(words, error)


def test_tables_and_titles_are_escaped(tmp_path):
    text = table(["<x>"], [["<y>"], [1.25], [None], ["+0.5"]])
    assert re.findall(r"<td class=(\w+)>(.*?)</td>", text) == [
        *(("text", "&lt;y&gt;"), ("number", "1.2"), ("number", "n/a"), ("number", "+0.5"))
    ]
    page = write_page(tmp_path / "p.html", "$title & <", "$body", [("a $b", "<p>$5</p>")])
    assert "<h1>$title &amp; &lt;</h1>" in page.read_text()
    assert "<p>$5</p>" in page.read_text()
