"""Digits on photographs: a small COCO-format instance segmentation set that needs no download.

Real handwritten digits (the UCI set that ships with scikit-learn) are blended, in several scales
and colours, into crops of real photographs (those that ship with scikit-image). Training and
validation share no digit sample and no pixel of a photograph.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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

from ..files import sha256

logger = logging.getLogger(__name__)

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
MAX_IMAGE_SIZE = 154  # 40% of coins' 384 columns
MANIFEST = "manifest.json"
SPLITS = ("train", "val")
FORMAT_VERSION = 1


@dataclass(frozen=True)
class DigitsSpec:
    """All that decides the content of the set."""

    seed: int = 0
    train_images: int = 1000
    val_images: int = 120
    image_size: int = 128
    """Side of the square images, in pixels."""
    digit_height: tuple[int, int] = (24, 52)
    """Least and greatest height of a digit, in pixels."""
    digits_per_image: tuple[int, int] = (2, 5)

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        size, height, count = self.image_size, self.digit_height, self.digits_per_image
        for name, (low, high) in (("digit_height", height), ("digits_per_image", count)):
            if not 1 <= low <= high:
                raise ValueError(f"DigitsSpec.{name} must be (least, greatest), got {(low, high)}")
        room = (size // height[1]) ** 2
        problem = ""
        if height[1] > size // 2:
            problem = f".digit_height {height} must be at most half of image_size {size}"
        elif count[0] > room:
            problem = f".digits_per_image {count}: an image of {size} pixels has room for {room} "
            problem += "digits for certain"
        elif self.train_images < 1 or self.val_images < 1:
            problem = " needs at least one image for training and for validation"
        elif size > MAX_IMAGE_SIZE:
            problem = f".image_size {size} must be at most {MAX_IMAGE_SIZE}, the width of the "
            problem += "narrowest photograph's part"
        if problem:
            raise ValueError(f"DigitsSpec{problem}")


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


def build_digits(root: str | Path | None = None, spec: DigitsSpec | None = None) -> Path:
    """Write the set unless a complete, undamaged copy of it is there.

    Processes that call this at the same time wait for the first one. The files are written to a
    temporary folder and put in place whole.

    Args:
        root: folder of the set; None for :func:`dataset_root`.
        spec: what must be there; None accepts a copy of any specification, and builds the default
            one if there is none.

    Returns:
        the folder, with ``train/*.png``, ``val/*.png`` and
        ``annotations/digits_{train,val}.json``.

    Raises:
        ImportError: scikit-learn or scikit-image is not installed.
        OSError: the folder cannot be written.
        ValueError: there is something else at that place, which is left alone.
    """
    root = dataset_root() if root is None else Path(root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(root)):
            damage = _damage(root, spec)
            if damage is None:
                return root
            if os.path.lexists(root):
                _refuse_to_replace(root)
                logger.warning("Rebuilding %s: %s", root, damage)
            _write(root, spec or DigitsSpec())
    except PermissionError as error:
        raise PermissionError(
            f"cannot write the digits data set to {root}: {error.strerror}; set "
            "DETECTRON2_DATASETS to a folder that can be written"
        ) from error
    return root


def _refuse_to_replace(root: Path) -> None:
    """Refuse a folder that holds other things: it is somebody's work, not a damaged copy."""
    if root.is_symlink() or not root.is_dir():
        raise ValueError(f"{root} is not a folder, and the digits data set will not replace it")
    others = sorted({p.name for p in root.iterdir()} - {*SPLITS, "annotations", MANIFEST})
    if others:
        raise ValueError(
            f"{root} holds {', '.join(others[:3])}, which is not of the digits data set and would "
            "be lost; move it, or set DETECTRON2_DATASETS to another folder"
        )


def _damage(root: Path, spec: DigitsSpec | None) -> str | None:
    """Say what is wrong with the copy at ``root``; None if nothing is."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        found = manifest["spec"]
        if found != _spec_json(DigitsSpec(**found["content"]) if spec is None else spec):
            return "it was built to another specification"
        images = found["content"]["train_images"] + found["content"]["val_images"]
        if len(manifest["sha256"]) != images + len(SPLITS):
            return f"{MANIFEST} does not list all files"
        damaged = sorted(manifest["sha256"].items() - _digests(root).items())
    except (KeyError, TypeError, AttributeError, ValueError, OSError):
        return f"{MANIFEST} is missing or cannot be read"
    return f"{damaged[0][0]} is missing or damaged" if damaged else None


def _digests(root: Path) -> dict[str, str]:
    """Return the SHA-256 of the set's files by their paths in it."""
    files = sorted(p for folder in (*SPLITS, "annotations") for p in (root / folder).glob("*.*"))
    return {p.relative_to(root).as_posix(): sha256(p) for p in files}


def _spec_json(spec: DigitsSpec) -> dict[str, Any]:
    # Through JSON, so that it equals what is read back (tuples become lists).
    return json.loads(json.dumps({"version": FORMAT_VERSION, "content": asdict(spec)}))


def _write(root: Path, spec: DigitsSpec) -> None:
    with TemporaryDirectory(prefix=f"{root.name}.new-", dir=root.parent) as folder:
        new = Path(folder) / root.name
        (new / "annotations").mkdir(parents=True)
        for split, scenes in _scenes(spec).items():
            (new / split).mkdir()
            _write_split(new, split, scenes)
        manifest = {"spec": _spec_json(spec), "sha256": _digests(new)}
        (new / MANIFEST).write_text(json.dumps(manifest))
        if root.exists():
            shutil.rmtree(root)
        new.rename(root)


def _scenes(spec: DigitsSpec) -> dict[str, "_Scenes"]:
    digits, labels, photos = _sources()
    rng = np.random.default_rng(spec.seed)
    samples = np.split(rng.permutation(len(digits)), [int(len(digits) * 0.8)])
    halves = [np.split(photo, [round(photo.shape[1] * TRAIN_PART)], axis=1) for photo in photos]
    counts = (spec.train_images, spec.val_images)
    parts = zip(SPLITS, counts, samples, zip(*halves, strict=True), rng.spawn(2), strict=True)
    return {
        split: _Scenes(spec, count, digits[sample], labels[sample], part, own_rng)
        for split, count, sample, part, own_rng in parts
    }


def _sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return digits (K, 8, 8) in [0, 1], labels (K,) and photographs (H, W, 3) uint8."""
    try:
        from skimage import color, data
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits data set is made from scikit-learn's digits and scikit-image's "
            "photographs: pip install scikit-learn scikit-image"
        ) from error
    photos = [getattr(data, name)() for name in PHOTOS]
    photos = [color.gray2rgb(p) if p.ndim == 2 else p for p in photos]
    bunch = load_digits()
    return bunch.images / 16.0, bunch.target, photos


@dataclass
class _Scenes:
    """Draws the scenes of one split."""

    spec: DigitsSpec
    count: int
    digits: np.ndarray
    labels: np.ndarray
    photos: Sequence[np.ndarray]
    rng: np.random.Generator

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[tuple[int, np.ndarray]]]]:
        """Yield an image (S, S, 3) uint8 and, per digit, its class and mask (S, S) bool."""
        low, high = self.spec.digits_per_image
        for _ in range(self.count):
            instances: list[tuple[int, np.ndarray]] = []
            while len(instances) < low:  # the scene is drawn again if too few found a place
                image, instances = self._draw(int(self.rng.integers(low, high + 1)))
            yield image, instances

    def _draw(self, count: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
        image = self._crop()
        owner = np.full(image.shape[:2], -1)
        classes: list[int] = []
        areas: list[int] = []
        for _ in range(count):
            sample = self.rng.integers(len(self.digits))
            alpha = self._ink(self.digits[sample])
            for _ in range(50):
                y, x = (int(self.rng.integers(self.spec.image_size - s + 1)) for s in alpha.shape)
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
        size = self.spec.image_size
        y, x = (int(self.rng.integers(side - size + 1)) for side in photo.shape[:2])
        return photo[y : y + size, x : x + size].copy()

    def _ink(self, digit: np.ndarray) -> np.ndarray:
        """Scale a digit, cropped to its ink, to a random height; values in [0, 1]."""
        ink = Image.fromarray(digit.astype(np.float32))
        ink = ink.crop(Image.fromarray(digit >= INK_THRESHOLD).getbbox())
        low, high = self.spec.digit_height
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


def _write_split(folder: Path, split: str, scenes: _Scenes) -> None:
    images, annotations = [], []
    progress = tqdm(scenes, desc=f"digits_{split}", total=scenes.count, unit="image", leave=False)
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
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
            annotations.append(annotation)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _json_file(folder, split).write_text(json.dumps(content))
