"""Digits on photographs: a small COCO-format instance segmentation set that needs no download.

Real handwritten digits (the UCI set that ships with scikit-learn) are blended, in several scales
and colours, into crops of real photographs (those that ship with scikit-image). Training and
validation share no digit sample and no pixel of a photograph.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import file_lock
from PIL import Image
from pycocotools import mask as mask_util
from tqdm import tqdm

from ..config import import_extra
from ..files import check_writable, make_folder

CLASSES = tuple("0123456789")
# Photographs without writing in them. Their left part is for training, the right for validation.
PHOTOS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "rocket")
TRAIN_PART = 0.6
# A digit is drawn where its ink is at least this share of the darkest possible.
INK_THRESHOLD = 0.45
# Least difference in brightness (of 255) between a digit and the mean of what lies under it.
MIN_CONTRAST = 60.0
# A digit that others cover keeps at least this share of its pixels.
MIN_VISIBLE = 0.95
IMAGE_SIZE = 128  # side of the square images, in pixels
DIGIT_HEIGHT = (24, 52)  # least and greatest height of a digit, in pixels
DIGITS_PER_IMAGE = (2, 5)
SEED = 0
SPLITS = ("train", "val")

# An image (S, S, 3) uint8 and, per digit, its class and mask (S, S) bool.
Scene = tuple[np.ndarray, list[tuple[int, np.ndarray]]]


def dataset_root() -> Path:
    """Return ``digits`` in Detectron2's root of data sets, $DETECTRON2_DATASETS or ./datasets."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))) / "digits"


def register_digits() -> None:
    """Register ``digits_train`` and ``digits_val``; their files are written at the first use."""
    for split in SPLITS:
        name, root = f"digits_{split}", dataset_root()
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, partial(_load, name))
            MetadataCatalog.get(name).set(
                thing_classes=list(CLASSES),
                evaluator_type="coco",
                json_file=str(_json_file(root, split)),
                image_root=str(root / split),
                made_on_first_use=True,
            )


def _json_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"digits_{split}.json"


def _load(name: str) -> list[dict[str, Any]]:
    metadata = MetadataCatalog.get(name)
    build_digits(Path(metadata.json_file).parents[1])
    return load_coco_json(metadata.json_file, metadata.image_root, name)


def build_digits(
    root: str | Path | None = None, train_images: int = 1000, val_images: int = 120
) -> Path:
    """Write the set, unless one is there; processes that do so at once wait for the first one.

    Args:
        root: folder of the set; None for :func:`dataset_root`.
        train_images: number of images to train on.
        val_images: number of images to validate on.

    Returns:
        the folder, with ``train/*.png``, ``val/*.png`` and
        ``annotations/digits_{train,val}.json``.

    Raises:
        MissingPackageError: scikit-learn or scikit-image is not installed.
        FileError: the folder cannot be made, or there is another one, which is left alone.
    """
    root = dataset_root() if root is None else Path(root)
    counts = {"train": train_images, "val": val_images}
    if _is_there(root):
        return root
    make_folder(root.parent)
    with file_lock(str(root)):
        if _is_there(root):
            return root
        check_writable(root)
        with TemporaryDirectory(prefix=f"{root.name}.new-", dir=root.parent) as folder:
            new = Path(folder) / root.name
            (new / "annotations").mkdir(parents=True)
            for split, scenes in _scenes().items():
                (new / split).mkdir()
                _write_split(new, split, itertools.islice(scenes, counts[split]), counts[split])
            new.rename(root)
    return root


def _is_there(root: Path) -> bool:
    return all(_json_file(root, split).is_file() for split in SPLITS)


def _scenes() -> dict[str, "_Scenes"]:
    digits, labels, photos = _sources()
    rng = np.random.default_rng(SEED)
    samples = np.split(rng.permutation(len(digits)), [int(len(digits) * 0.8)])
    halves = [np.split(photo, [round(photo.shape[1] * TRAIN_PART)], axis=1) for photo in photos]
    parts = zip(SPLITS, samples, zip(*halves, strict=True), rng.spawn(2), strict=True)
    return {
        split: _Scenes(digits[sample], labels[sample], part, own_rng)
        for split, sample, part, own_rng in parts
    }


def _sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return digits (K, 8, 8) in [0, 1], labels (K,) and photographs (H, W, 3) uint8."""
    purpose = "the digits data set, which is made of their digits and photographs,"
    load_digits = import_extra("sklearn.datasets", "demo", purpose).load_digits
    data = import_extra("skimage.data", "demo", purpose)
    color = import_extra("skimage.color", "demo", purpose)
    photos = [getattr(data, name)() for name in PHOTOS]
    photos = [color.gray2rgb(p) if p.ndim == 2 else p for p in photos]
    bunch = load_digits()
    return bunch.images / 16.0, bunch.target, photos


@dataclass
class _Scenes:
    """Draws the scenes of one split, one after the other without an end."""

    digits: np.ndarray
    labels: np.ndarray
    photos: Sequence[np.ndarray]
    rng: np.random.Generator

    def __iter__(self) -> Iterator[Scene]:
        low, high = DIGITS_PER_IMAGE
        while True:
            image, instances = self._draw(int(self.rng.integers(low, high + 1)))
            if len(instances) >= low:  # else too few found a place
                yield image, instances

    def _draw(self, count: int) -> Scene:
        image = self._crop()
        owner = np.full(image.shape[:2], -1)
        classes: list[int] = []
        areas: list[int] = []
        for _ in range(count):
            sample = self.rng.integers(len(self.digits))
            alpha = self._ink(self.digits[sample])
            for _ in range(50):
                y, x = (int(self.rng.integers(IMAGE_SIZE - s + 1)) for s in alpha.shape)
                window = np.s_[y : y + alpha.shape[0], x : x + alpha.shape[1]]
                trial = owner.copy()
                trial[window][alpha >= INK_THRESHOLD] = len(classes)
                kept = np.bincount(trial[trial >= 0], minlength=len(classes) + 1)[:-1]
                if all(k >= MIN_VISIBLE * a for k, a in zip(kept, areas, strict=True)):
                    owner = trial
                    areas.append(int((alpha >= INK_THRESHOLD).sum()))
                    classes.append(int(self.labels[sample]))
                    self._blend(image[window], alpha)
                    break
        return image, [(c, owner == i) for i, c in enumerate(classes)]

    def _crop(self) -> np.ndarray:
        photo = self.photos[self.rng.integers(len(self.photos))]
        size = IMAGE_SIZE
        y, x = (int(self.rng.integers(side - size + 1)) for side in photo.shape[:2])
        return photo[y : y + size, x : x + size].copy()

    def _ink(self, digit: np.ndarray) -> np.ndarray:
        """Scale a digit, cropped to its ink, to a random height; values in [0, 1]."""
        ink = Image.fromarray(digit.astype(np.float32))
        ink = ink.crop(Image.fromarray(digit >= INK_THRESHOLD).getbbox())
        low, high = DIGIT_HEIGHT
        height = int(self.rng.integers(low, high + 1))
        width = max(round(height * ink.width / ink.height), 2)
        scaled = ink.resize((width, height), Image.Resampling.BICUBIC)
        return np.clip(np.asarray(scaled), 0.0, 1.0)

    def _blend(self, window: np.ndarray, alpha: np.ndarray) -> None:
        """Paint the digit into ``window`` (h, w, 3) in a colour that stands out from it."""
        while True:
            colour = self.rng.uniform(0, 255, 3)
            if abs(colour.mean() - window[alpha >= INK_THRESHOLD].mean()) >= MIN_CONTRAST:
                break
        # A steep edge at the threshold, so that mask and picture agree.
        opacity = np.clip((alpha - INK_THRESHOLD) * 3 + 0.5, 0, 1)[..., None]
        window[:] = np.round(window * (1 - opacity) + colour * opacity).astype(np.uint8)


def _write_split(folder: Path, split: str, scenes: Iterable[Scene], count: int) -> None:
    images, annotations = [], []
    progress = tqdm(scenes, desc=f"digits_{split}", total=count, unit="image", leave=False)
    for index, (image, instances) in enumerate(progress, start=1):
        name = f"{index:06d}.png"
        Image.fromarray(image).save(folder / split / name)
        height, width = image.shape[:2]
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        for category, mask in instances:
            rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": index,
                "category_id": category + 1,
                "bbox": mask_util.toBbox(rle).tolist(),
                "area": int(mask_util.area(rle)),
                "iscrowd": 0,
                "segmentation": {**rle, "counts": rle["counts"].decode("ascii")},
            }
            annotations.append(annotation)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _json_file(folder, split).write_text(json.dumps(content))
