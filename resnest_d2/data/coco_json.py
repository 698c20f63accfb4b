"""Instance annotations in COCO's JSON format, read with a check of every annotation.

Detectron2's own reader (``load_coco_json``) is made for COCO; annotations that people make
themselves have holes, and trip it, or the first training step, in words that name no annotation.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from ..config import InputError
from ..files import make_folder, write_text
from .categories import match_categories, read_categories, read_keypoint_names
from .coco_images import find_images, read_images
from .instances import InstanceReader, read_keypoints
from .notes import Notes, some
from .options import Options
from .schema import LISTS, load_entries

logger = logging.getLogger(__name__)

SHOWN = 20  # so many errors are listed in a message


@dataclass
class CocoData:
    """A data set of one JSON file, repaired where that has one sensible meaning."""

    file: Path
    image_root: Path | None
    categories: dict[int, str]
    """Names of categories by their id, in the order of the ids."""
    images: list[dict[str, Any]] = field(default_factory=list)
    """Images as in COCO's format, with the paths of their files."""
    annotations: list[dict[str, Any]] = field(default_factory=list)
    """Annotations as in COCO's format, with every value that pycocotools needs."""
    keypoint_names: list[str] = field(default_factory=list)
    skeleton: list[tuple[int, int]] = field(default_factory=list)
    """Pairs of keypoints that are joined, counted from 0."""
    num_annotations: int = 0
    """Annotations of the file, with those that were left out."""
    unreadable: list[str] = field(default_factory=list)
    """Pictures that were left out, with what is wrong with them."""

    @property
    def num_masks(self) -> int:
        """Annotations with a mask."""
        return sum("segmentation" in a for a in self.annotations)

    @property
    def num_rle(self) -> int:
        """Annotations whose mask is RLE."""
        return sum(isinstance(a.get("segmentation"), dict) for a in self.annotations)

    @property
    def num_keypoints(self) -> int:
        """Annotations with a labelled keypoint."""
        return sum(bool(a.get("num_keypoints")) for a in self.annotations)

    @property
    def most_objects(self) -> int:
        """The greatest number of objects in one image, crowds set aside."""
        counts = Counter(a["image_id"] for a in self.annotations if not a["iscrowd"])
        return max(counts.values(), default=0)

    @property
    def num_crowds(self) -> int:
        """Annotations of crowds, which are not learned."""
        return sum(a["iscrowd"] for a in self.annotations)

    @property
    def dicts(self) -> list[dict[str, Any]]:
        """Images and annotations in Detectron2's dataset format."""
        contiguous = {number: index for index, number in enumerate(self.categories)}
        records = {
            image["id"]: {
                "file_name": image["file_name"],
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "annotations": [],
            }
            for image in self.images
        }
        for annotation in self.annotations:
            instance = {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": contiguous[annotation["category_id"]],
                "iscrowd": annotation["iscrowd"],
            }
            if "segmentation" in annotation:
                instance["segmentation"] = annotation["segmentation"]
            if "keypoints" in annotation:
                # COCO's keypoints are indices of pixels, Detectron2's are coordinates.
                instance["keypoints"] = [
                    v if i % 3 == 2 else v + 0.5 for i, v in enumerate(annotation["keypoints"])
                ]
            records[annotation["image_id"]]["annotations"].append(instance)
        return list(records.values())

    def to_json(self) -> str:
        """Return the repaired content in COCO's format; file names are relative to the images'."""
        categories = [{"id": number, "name": name} for number, name in self.categories.items()]
        if self.keypoint_names:
            skeleton = [[a + 1, b + 1] for a, b in self.skeleton]
            for category in categories:
                category |= {"keypoints": self.keypoint_names, "skeleton": skeleton}
        root = self.image_root or Path()
        images = [
            {**image, "file_name": os.path.relpath(image["file_name"], root)}
            for image in self.images
        ]
        content = dict(zip(LISTS, (images, self.annotations, categories), strict=True))
        return json.dumps(content)

    def write(self, file: Path) -> None:
        """Write what :meth:`to_json` returns.

        Raises:
            FileError: the file cannot be written.
        """
        make_folder(file.parent)
        write_text(file, self.to_json())


def read_coco(
    file: str | Path,
    image_root: str | Path | None,
    categories: Mapping[int, str] | None = None,
    masks: bool = False,
    keypoints: bool = False,
    keypoint_names: Sequence[str] | None = None,
    options: Options | None = None,
    annotated: bool = True,
    errors: list[str] | None = None,
) -> CocoData:
    """Read, check and repair a COCO-format file.

    What has one sensible meaning is repaired, and what cannot be used is left out; one warning a
    kind says how many and which. Images without annotations stay.

    Args:
        file: the JSON file.
        image_root: folder that its file names are relative to; None opens no picture.
        categories: names by id that give the classes and their order; None takes the file's own.
        masks: whether each instance needs a mask.
        keypoints: whether keypoints are needed; else they are not looked at.
        keypoint_names: the keypoints that a model finds, in its order; None takes the file's own.
        options: the user's decisions.
        annotated: whether the file must have a list of annotations; COCO's test sets have none.
        errors: gets what is wrong with entries, a line each, which are then left out; None raises.

    Raises:
        MissingFileError: the file or the folder is not there.
        InputError: the file is not in COCO's format, or entries contradict themselves, each other
            or their pictures; the message lists them with their ids.
    """
    file, options = Path(file), options or Options()
    notes = Notes(file)
    entries = load_entries(notes, annotated)
    own, category_ids = read_categories(notes, entries, options)
    if categories is not None:
        category_ids = match_categories(notes, own, category_ids, categories, entries.used)
    data = CocoData(file, None if image_root is None else Path(image_root), dict(categories or own))
    if keypoints:
        data.keypoint_names, data.skeleton = read_keypoint_names(notes, entries.categories)
        if keypoint_names is not None and list(keypoint_names) != data.keypoint_names:
            notes.error(
                f"its keypoints {data.keypoint_names} are not those that the model is trained on, "
                f"{list(keypoint_names)}"
            )
    listed, image_ids = read_images(notes, entries)
    images, data.unreadable = find_images(notes, data.image_root, listed, options)
    for number, image in images.items():
        width, height = image.size
        data.images.append(
            {"id": number, "file_name": str(image.path), "width": width, "height": height}
        )
    data.num_annotations = len(entries.annotations)
    reader = InstanceReader(notes, masks, options)
    unlisted = []
    for at, (number, name) in enumerate(zip(entries.annotation_ids, entries.names, strict=True)):
        entry, entries.annotations[at] = entries.annotations[at], None  # its memory is free again
        if entry is None:
            continue
        image, category = image_ids.get(entry["image_id"]), category_ids.get(entry["category_id"])
        if category is None:
            notes.error(f"annotation {name}: there is no category {entry['category_id']!r}")
            continue
        if image is None:
            kind = "left out {n} annotations of images that are not listed"
            notes.add(kind, f"{name} (image_id {entry['image_id']!r})")
            unlisted.append(entry["image_id"])
            continue
        if image not in images:
            continue  # its file is missing, and was noted
        try:
            found = reader.read(name, entry, images[image])
            if found is not None and keypoints:
                found |= read_keypoints(entry, len(data.keypoint_names), images[image].scale)
        except InputError as error:
            notes.error(f"annotation {name}: {error}")
            continue
        if found is not None:
            found |= {"id": number, "image_id": image, "category_id": category}
            data.annotations.append(found)
    reader.finish()
    if listed and len(unlisted) == data.num_annotations > 0:
        notes.error(
            f"no annotation is of an image that is listed: image_id is {some(unlisted)}, ids are "
            f"{some(list(image_ids))}"
        )
    notes.report()
    empty = len(data.images) - len({a["image_id"] for a in data.annotations})
    logger.info(
        "%s: %d images, of which %d have no annotation, %d annotations, %d classes",
        *(file, len(data.images), empty, len(data.annotations), len(data.categories)),
    )
    if errors is not None:
        errors += notes.errors
    elif notes.errors:
        raise InputError(describe_errors(data, notes.errors))
    return data


def describe_errors(data: CocoData, errors: Sequence[str], shown: int | None = SHOWN) -> str:
    """List what is wrong with a file, a line each.

    Args:
        data: what was read of the file.
        errors: what is wrong.
        shown: so many lines at most; None shows all.
    """
    number = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    wrong = {line.partition(":")[0] for line in errors if line.startswith("annotation ")}
    share = f" in {len(wrong)} of {data.num_annotations} annotations" if wrong else ""
    lines = [f"{data.file}: {number}{share}:", *errors[:shown]]
    if shown is not None and len(errors) > shown:
        lines.append(f"and {len(errors) - shown} more; resnest-d2 check-data lists all")
    return "\n".join(lines)
