"""The digits data set: valid COCO, disjoint splits, determinism, and repair."""

import dataclasses
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from commands import run_python
from conftest import TINY_DIGITS
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from resnest_d2.data import build_digits, digits

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Enough images for statistics."""
    root = tmp_path_factory.mktemp("digits") / "digits"
    return build_digits(root, dataclasses.replace(TINY_DIGITS, train_images=60, val_images=40))


def fingerprint(root):
    return json.loads((root / digits.MANIFEST).read_text())["sha256"]


@pytest.mark.parametrize("split", SPLITS)
def test_is_valid_coco_with_exact_masks(built, split):
    coco = COCO(str(built / f"annotations/digits_{split}.json"))
    assert [c["name"] for c in coco.cats.values()] == [str(i) for i in range(10)]
    for image in coco.imgs.values():
        pixels = np.asarray(Image.open(built / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        annotations = coco.imgToAnns[image["id"]]
        assert 2 <= len(annotations) <= 5
        masks = np.stack([coco.annToMask(a) for a in annotations])
        assert masks.sum(0).max() == 1  # of two overlapping digits the upper owns the pixels
        for annotation, mask in zip(annotations, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
            assert annotation["bbox"] == [columns[0], rows[0], width, height]
            assert annotation["area"] == mask.sum() > 0
            assert mask_util.area(annotation["segmentation"]) == annotation["area"]
            assert height <= 52


def test_digits_are_24_pixels_and_more_in_several_sizes_colours_and_all_classes(built):
    coco = COCO(str(built / "annotations/digits_train.json"))
    heights = [a["bbox"][3] for a in coco.anns.values()]
    # Only a digit that another covers in part can be lower.
    assert np.mean(np.array(heights) >= 24) > 0.95
    assert max(heights) >= 48
    assert {a["category_id"] for a in coco.anns.values()} == set(range(1, 11))
    colours = []
    for annotation in coco.anns.values():
        file = built / "train" / coco.imgs[annotation["image_id"]]["file_name"]
        colours.append(np.median(np.asarray(Image.open(file))[coco.annToMask(annotation) > 0], 0))
    assert np.std(colours, axis=0).min() > 40


def test_train_and_val_share_no_digit_and_no_pixel():
    scenes = digits._scenes(TINY_DIGITS)
    samples = {s: {d.tobytes() for d in scenes[s].digits} for s in SPLITS}
    total = len(scenes["train"].digits) + len(scenes["val"].digits)
    assert total == 1797  # all of scikit-learn's
    assert len(samples["train"]) + len(samples["val"]) == len(samples["train"] | samples["val"])
    for photo, train, val in zip(
        digits._sources()[2], scenes["train"].photos, scenes["val"].photos, strict=True
    ):
        # Left and right of a cut: together they are the photograph, so no column is in both.
        assert np.array_equal(np.concatenate([train, val], axis=1), photo)
        assert min(train.shape[:2] + val.shape[:2]) >= TINY_DIGITS.image_size


def test_same_seed_same_files_other_seed_others(tmp_path, tiny_digits):
    again = build_digits(tmp_path / "again", TINY_DIGITS)
    assert fingerprint(again) == fingerprint(tiny_digits / "digits")
    other = build_digits(tmp_path / "other", dataclasses.replace(TINY_DIGITS, seed=1))
    assert fingerprint(other) != fingerprint(again)


def damage_image(root):
    file = root / "val/000002.png"
    file.write_bytes(file.read_bytes()[:-20])


def damage_annotations(root):
    file = root / "annotations/digits_train.json"
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))


DAMAGES = {
    "image truncated": damage_image,
    "annotations changed": damage_annotations,
    "image missing": lambda root: (root / "train/000001.png").unlink(),
    "manifest missing": lambda root: (root / digits.MANIFEST).unlink(),
    "manifest broken": lambda root: (root / digits.MANIFEST).write_text('{"spec"'),
    "manifest is a list": lambda root: (root / digits.MANIFEST).write_text("[]"),
    "folder emptied": lambda root: (shutil.rmtree(root), root.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_copy_is_noticed_and_rebuilt(tmp_path, tiny_digits, caplog, damage):
    root = tmp_path / "digits"
    shutil.copytree(tiny_digits / "digits", root)
    damage(root)
    build_digits(root, TINY_DIGITS)
    assert f"Rebuilding {root}" in caplog.text
    assert fingerprint(root) == fingerprint(tiny_digits / "digits")
    for name, digest in fingerprint(root).items():
        assert digits.sha256(root / name) == digest


def test_a_manifest_that_lists_too_little_is_no_proof(tmp_path, tiny_digits):
    root = tmp_path / "digits"
    shutil.copytree(tiny_digits / "digits", root)
    manifest = json.loads((root / digits.MANIFEST).read_text())
    manifest["sha256"] = {}
    (root / digits.MANIFEST).write_text(json.dumps(manifest))
    shutil.rmtree(root / "train")
    build_digits(root, TINY_DIGITS)
    assert (root / "train/000001.png").exists()


def test_what_is_somebody_elses_is_not_replaced(tmp_path):
    root = tmp_path / "digits"
    (root / "mine").mkdir(parents=True)
    (root / "mine/labels.csv").write_text("precious")
    with pytest.raises(ValueError, match=f"{root} holds mine, which is not of the digits data"):
        build_digits(root, TINY_DIGITS)
    assert (root / "mine/labels.csv").read_text() == "precious"

    file = tmp_path / "file"
    file.touch()
    link = tmp_path / "link"
    link.symlink_to(root)
    for path in (file, link):
        with pytest.raises(ValueError, match=f"{path} is not a folder"):
            build_digits(path, TINY_DIGITS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digits_per_image": (5, 2)}, r"digits_per_image must be \(least, greatest\), got \(5, 2"),
        (
            {"digits_per_image": (40, 40)},
            r"\(40, 40\): an image of 128 pixels has room for 4 digits",
        ),
        (
            {"digit_height": (24, 80)},
            r"digit_height \(24, 80\) must be at most half of .* 128",
        ),
        ({"image_size": 200}, "image_size 200 must be at most 154"),
        ({"val_images": 0}, "DigitsSpec needs at least one image for training and for validation"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY_DIGITS, **options)


def test_a_good_copy_is_left_alone(tmp_path, tiny_digits, monkeypatch):
    monkeypatch.setattr(digits, "_write", lambda *args: 1 / 0)
    root = tmp_path / "digits"
    shutil.copytree(tiny_digits / "digits", root)
    assert build_digits(root, TINY_DIGITS) == root
    assert build_digits(root) == root  # an undamaged set of any specification will do
    with pytest.raises(ZeroDivisionError):
        build_digits(root, dataclasses.replace(TINY_DIGITS, seed=5))


def test_an_interrupted_build_leaves_nothing_half(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_write_split", fail)
    with pytest.raises(KeyboardInterrupt):
        build_digits(tmp_path / "digits", TINY_DIGITS)
    assert [p.name for p in tmp_path.iterdir()] == ["digits.lock"]


def test_processes_that_build_at_once_agree(tmp_path, tiny_digits):
    with ThreadPoolExecutor(3) as pool:
        roots = list(pool.map(lambda _: build_digits(tmp_path / "d", TINY_DIGITS), range(3)))
    assert len(set(roots)) == 1
    assert fingerprint(roots[0]) == fingerprint(tiny_digits / "digits")


def test_is_registered_on_import_and_made_at_the_first_use(tmp_path):
    code = (
        "import resnest_d2.data, os; from detectron2.data import DatasetCatalog, MetadataCatalog;"
        "assert {'digits_train', 'digits_val'} <= set(DatasetCatalog.list());"
        "m = MetadataCatalog.get('digits_val'); print(m.evaluator_type, m.image_root);"
        "assert not os.path.exists(m.image_root)"
    )
    result = run_python(code, DETECTRON2_DATASETS=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["coco", str(tmp_path / "digits/val")]


def test_detectron2_reads_it(built, monkeypatch):
    name = "digits_val"
    metadata = MetadataCatalog.get(name)
    monkeypatch.setitem(metadata.__dict__, "json_file", str(built / f"annotations/{name}.json"))
    monkeypatch.setitem(metadata.__dict__, "image_root", str(built / "val"))
    monkeypatch.setattr(digits, "build_digits", lambda root: root)
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == 40
    assert {a["category_id"] for d in dicts for a in d["annotations"]} == set(range(10))
    assert all("counts" in a["segmentation"] for d in dicts for a in d["annotations"])


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(digits, "file_lock", refuse)
    with pytest.raises(PermissionError, match=f"{tmp_path}/x: Permission denied; set DETECTRON2_D"):
        build_digits(tmp_path / "x", TINY_DIGITS)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="made from .*: pip install scikit-learn scikit-image"):
        digits._sources()
