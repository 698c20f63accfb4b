"""The annotation files and the pictures in a data set's folder, in the layouts that tools write.

Known are Roboflow's exports (``train/_annotations.coco.json`` beside its pictures), CVAT's
(``annotations/instances_default.json`` and ``images/``), COCO's own
(``annotations/instances_train2017.json`` and ``train2017/``), and ``train.json`` and ``val.json``,
or one file for all, beside ``images/`` or the pictures.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import InputError, MissingFileError
from .images import IMAGE_ENDINGS
from .schema import load_json

# Words in the name of a file, or of its folder, that say which part of a data set it describes.
PARTS = {"training": "train", "valid": "val", "validation": "val"}
WORD = re.compile(r"(?<![a-z])(train|training|val|valid|validation|test)(?:\d{4})?(?![a-z])")
# COCO's files of one set of pictures that hold no instances.
OTHERS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
# How a file in COCO's format begins: the first key of its object.
BEGINNING = re.compile(rb'\s*\{\s*"(info|licenses|type|images|annotations|categories)"')
TRIED = 20  # pictures of a file that are looked for


@dataclass(frozen=True)
class Part:
    """An annotation file, and the folder of its pictures."""

    file: Path
    images: Path
    has_masks: bool
    """Whether half or more of the annotations have a mask."""


@dataclass(frozen=True)
class Layout:
    """The parts of a data set."""

    train: Part
    val: Part | None = None

    def __str__(self) -> str:
        parts = {"train on": self.train, "evaluate on": self.val}
        return ", ".join(f"{k} {p.file} (pictures in {p.images})" for k, p in parts.items() if p)


def find_layout(root: str | Path) -> Layout:
    """Find the parts of a data set.

    A file is of the part that its name says or, where it says none, its folder's. A test part is
    left alone.

    Raises:
        MissingFileError: there is no such folder, or the pictures of a file are in none of it.
        InputError: no file is in COCO's format, or several may be meant.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"--data: there is no folder {root}")
    files = sorted(file for pattern in ("*.json", "*/*.json") for file in root.glob(pattern))
    files = [f for f in files if f.is_file() and not f.name.startswith(OTHERS) and _is_coco(f)]
    by_part: dict[str, list[Path]] = {"train": [], "val": [], "test": [], "": []}
    for file in files:
        by_part[_part_of(file.relative_to(root))].append(file)
    train, val = by_part["train"], by_part["val"]
    if not train:  # one file for all, of which some pictures are set aside
        train, val = by_part[""], []
    if not train:
        raise InputError(_nothing_found(root, files))
    for name, found in (("train", train), ("val", val)):
        if len(found) > 1:
            raise InputError(
                f"--data: {' and '.join(map(str, found))} may be the {name} part; name the right "
                f"ones by --train-json, --train-images, --val-json and --val-images"
            )
    return Layout(*(_read_part(root, file) for file in (*train, *val)))


def _is_coco(file: Path) -> bool:
    with file.open("rb") as stream:
        return bool(BEGINNING.match(stream.read(4096).removeprefix(b"\xef\xbb\xbf")))


def _part_of(name: Path) -> str:
    for text in reversed(name.with_suffix("").parts):
        for word in WORD.findall(text.lower()):
            return PARTS.get(word, word)
    return ""


def has_masks(file: Path) -> bool:
    """Whether half or more of a file's annotations have a mask.

    Raises:
        FileError, InputError: it cannot be read, or is not in COCO's format.
    """
    return _have_masks(load_json(file)["annotations"])


def _have_masks(entries: Sequence[Any]) -> bool:
    annotations = [one for one in entries if isinstance(one, dict)]
    masks = sum(bool(annotation.get("segmentation")) for annotation in annotations)
    return 2 * masks >= len(annotations) > 0


def _read_part(root: Path, file: Path) -> Part:
    content = load_json(file, annotated=False)
    images = [image for image in content["images"][:TRIED] if isinstance(image, dict)]
    names = [str(image.get("file_name")) for image in images]
    masks = _have_masks(content.get("annotations") or ())
    folders = list(_folders(root, file))
    for folder in folders:
        if any(os.path.isfile(folder / name) for name in names):
            return Part(file, folder, masks)
    # The reader of annotations knows names with other separators, folders and endings.
    for folder in folders:
        if any(path.suffix.lower() in IMAGE_ENDINGS for path in folder.rglob("*")):
            return Part(file, folder, masks)
    raise MissingFileError(f"--data: there are no pictures for {file} in {root}")


def _folders(root: Path, file: Path) -> Iterator[Path]:
    """Folders that may hold a file's pictures, the likeliest first."""
    part = file.stem.removeprefix("instances_")
    near = [file.parent, root / part, root / "images", root / "data", root]
    for folder in (file.parent / "images", root / "images" / part, *near):
        if folder.is_dir():
            yield folder


def _nothing_found(root: Path, files: Sequence[Path]) -> str:
    if files:
        return f"--data: {root} has no part to train on, only {', '.join(map(str, files))}"
    if any(root.glob("data.y*ml")):
        return (
            f"--data: {root} is a data set of YOLO's; for each part: coco convert --from yolo --to "
            f"coco --input {root}/train/labels --images-dir {root}/train/images --output "
            f"{root}/train.json"
        )
    return (
        f"--data: {root} has no annotation file in COCO's format, as train/_annotations.coco.json, "
        "train.json or annotations/instances_default.json are; docs/own_data.md has commands that "
        "convert other formats"
    )
