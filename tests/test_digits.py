"""The digits data set: valid COCO, disjoint splits, the same files on every machine."""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from commands import run_python
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from resnest_d2.config import FileError, MissingPackageError
from resnest_d2.data import build_digits, digits

SPLITS = ("train", "val")
# SHA-256 of the content of six images to train on and three to validate on.
TINY = "d04b6c3a5c7b9f993f28c494c5b308407bfe7f811fd6509a412a73c469b68812"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Enough images for statistics."""
    root = tmp_path_factory.mktemp("digits") / "digits"
    return build_digits(root, train_images=60, val_images=40)


def content(root):
    """Pixels and annotations; PNG's compression may differ between versions of Pillow."""
    found = hashlib.sha256()
    for file in sorted(root.glob("*/*.*")):
        is_picture = file.suffix == ".png"
        found.update(np.asarray(Image.open(file)).tobytes() if is_picture else file.read_bytes())
    return found.hexdigest()


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


def test_train_and_val_share_no_digit_and_no_pixel():
    scenes = digits._scenes()
    samples = {s: {d.tobytes() for d in scenes[s].digits} for s in SPLITS}
    total = len(scenes["train"].digits) + len(scenes["val"].digits)
    assert total == 1797  # all of scikit-learn's
    assert len(samples["train"]) + len(samples["val"]) == len(samples["train"] | samples["val"])
    for photo, train, val in zip(
        digits._sources()[2], scenes["train"].photos, scenes["val"].photos, strict=True
    ):
        # Left and right of a cut: together they are the photograph, so no column is in both.
        assert np.array_equal(np.concatenate([train, val], axis=1), photo)
        assert min(train.shape[:2] + val.shape[:2]) >= 128


def test_the_same_files_everywhere(tmp_path, tiny_digits):
    again = build_digits(tmp_path / "again", train_images=6, val_images=3)
    assert content(again) == content(tiny_digits / "digits") == TINY
    assert len(list(again.glob("train/*.png"))) == 6
    assert len(list(again.glob("val/*.png"))) == 3


def test_what_is_somebody_elses_is_not_replaced(tmp_path):
    root = tmp_path / "digits"
    (root / "mine").mkdir(parents=True)
    with pytest.raises(FileError, match=f"cannot write {root}: it is a folder"):
        build_digits(root, 6, 3)
    assert (root / "mine").is_dir()


def test_a_set_that_is_there_is_left_alone(tiny_digits, tmp_path, monkeypatch):
    """And a build that is interrupted leaves nothing half."""
    monkeypatch.setattr(digits, "_write_split", lambda *args: 1 / 0)
    root = tiny_digits / "digits"
    assert build_digits(root) == root
    with pytest.raises(ZeroDivisionError):
        build_digits(tmp_path / "digits", 6, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["digits.lock"]


def test_processes_that_build_at_once_agree(tmp_path, tiny_digits):
    with ThreadPoolExecutor(3) as pool:
        roots = list(pool.map(lambda _: build_digits(tmp_path / "d", 6, 3), range(3)))
    assert len(set(roots)) == 1
    assert content(roots[0]) == content(tiny_digits / "digits")


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


def test_detectron2_reads_it(registered_digits):
    dicts = DatasetCatalog.get("digits_val")
    assert len(dicts) == 3
    assert {a["category_id"] for d in dicts for a in d["annotations"]} <= set(range(10))
    assert all("counts" in a["segmentation"] for d in dicts for a in d["annotations"])


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match="made of .* needs sklearn.*resnest_d2.demo"):
        digits._sources()
