"""Instance annotations in COCO's JSON format, read with a check of every annotation.

Detectron2's own reader (``load_coco_json``) is made for COCO; annotations that people make
themselves have holes, and trip it, or the first training step, in words that name no annotation.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from ..config import InputError, did_you_mean
from ..files import make_folder, write_text
from .coco_images import find_images, unique_images
from .instances import InstanceReader
from .options import Options
from .schema import (
    MUST,
    AnnotationEntry,
    CategoryEntry,
    KeypointCategory,
    Notes,
    load_entries,
    plain,
    usable_ids,
)

logger = logging.getLogger(__name__)

SHOWN = 20  # so many errors are listed in a message


@dataclass
class CocoData:
    """A data set of one JSON file, repaired where that has one sensible meaning."""

    file: Path
    image_root: Path
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
    errors: list[str] = field(default_factory=list)
    """What is wrong with entries that were left out, a line each."""

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
    def num_crowds(self) -> int:
        """Annotations of crowds, which are not learned."""
        return sum(a["iscrowd"] for a in self.annotations)

    @property
    def most_objects(self) -> int:
        """The greatest number of objects in one image, crowds set aside."""
        counts = Counter(a["image_id"] for a in self.annotations if not a["iscrowd"])
        return max(counts.values(), default=0)

    @property
    def dicts(self) -> list[dict[str, Any]]:
        """Images and annotations in Detectron2's dataset format."""
        contiguous = {number: index for index, number in enumerate(self.categories)}
        records = {}
        for image in self.images:
            record = {key: image[key] for key in ("file_name", "height", "width")}
            records[image["id"]] = record | {"image_id": image["id"], "annotations": []}
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

    def write(self, file: Path) -> None:
        """Write what was read in COCO's format; file names are relative to the images' folder.

        Raises:
            FileError: the file cannot be written.
        """
        categories = [{"id": number, "name": name} for number, name in self.categories.items()]
        if self.keypoint_names:
            skeleton = [[a + 1, b + 1] for a, b in self.skeleton]
            for category in categories:
                category |= {"keypoints": self.keypoint_names, "skeleton": skeleton}
        images = [
            {**image, "file_name": os.path.relpath(image["file_name"], self.image_root)}
            for image in self.images
        ]
        content = {"images": images, "annotations": self.annotations, "categories": categories}
        make_folder(file.parent)
        write_text(file, json.dumps(content))

    def describe_errors(self, shown: int | None = SHOWN) -> str:
        """List what is wrong, a line each.

        Args:
            shown: so many lines at most, None for all.
        """
        number = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        if wrong := sum(error.startswith("annotation ") for error in self.errors):
            number += f" in {wrong} of {self.num_annotations} annotations, which training leaves "
            number += "out with --skip-bad-annotations"
        lines = [f"{self.file}: {number}:", *self.errors[:shown]]
        if shown is not None and len(self.errors) > shown:
            lines.append(f"and {len(self.errors) - shown} more; resnest-d2 check-data lists all")
        return "\n".join(lines)


def read_coco(
    file: str | Path,
    image_root: str | Path,
    categories: Mapping[int, str] | None = None,
    masks: bool = False,
    keypoints: bool = False,
    keypoint_names: Sequence[str] | None = None,
    options: Options | None = None,
    annotated: bool = True,
    refuse: bool = True,
) -> CocoData:
    """Read, check and repair a COCO-format file.

    What has one sensible meaning is repaired, and what cannot be used is left out; one warning a
    kind says how many and which. Images without annotations stay.

    Args:
        file: the JSON file.
        image_root: folder that its file names are relative to.
        categories: names by id that give the classes and their order; None takes the file's own.
        masks: whether each instance needs a mask.
        keypoints: whether keypoints are needed; else they are not looked at.
        keypoint_names: the keypoints that a model finds, in its order; None takes the file's own.
        options: the user's decisions.
        annotated: whether the file must have a list of annotations; COCO's test sets have none.
        refuse: raise if entries are wrong; else they are left out, and the data list the errors.

    Raises:
        MissingFileError: the file or the folder is not there.
        InputError: the file is not in COCO's format, or entries contradict themselves, each other
            or their pictures; the message lists them with their ids.
    """
    file, options = Path(file), options or Options()
    notes = Notes(file, options.skip_bad_annotations)
    entries = load_entries(notes, annotated, keypoints)
    used = {entry["category_id"] for _, _, entry in entries.annotations}
    own, category_ids = _read_categories(notes, entries.categories, used, options)
    if categories is not None:
        category_ids = _match_categories(notes, own, category_ids, categories, used)
    data = CocoData(file, Path(image_root), dict(categories or own), errors=notes.errors)
    data.num_annotations = entries.num_annotations
    if keypoints:
        data.keypoint_names, data.skeleton = _read_keypoint_names(
            notes, entries.categories, keypoint_names
        )
    listed = unique_images(notes, entries.images)
    images, data.unreadable = find_images(notes, data.image_root, listed, options)
    image_ids = usable_ids(notes, "images", entries.images)
    for key, image in images.items():
        size = dict(zip(("width", "height"), image.size, strict=True))
        data.images.append({"id": image_ids[key], "file_name": str(image.path), **size})
    reader = InstanceReader(notes, masks, len(data.keypoint_names), options)
    for name, number, entry in entries.annotations:
        image_key, category_key = entry["image_id"], entry["category_id"]
        try:
            _check_references(entry, entries.listed)
            if image_key not in images or category_key not in category_ids:
                continue  # what is wrong with it was noted
            found = reader.read(name, entry, images[image_key])
        except InputError as error:
            notes.error_in("annotation", name, str(error))
            continue
        if found is not None:
            ids = {"image_id": image_ids[image_key], "category_id": category_ids[category_key]}
            data.annotations.append({"id": number, **ids, **found})
    reader.finish()
    notes.report()
    empty = len(data.images) - len({a["image_id"] for a in data.annotations})
    logger.info(
        "%s: %d images, of which %d have no annotation, %d annotations, %d classes",
        *(file, len(data.images), empty, len(data.annotations), len(data.categories)),
    )
    if refuse and data.errors:
        raise InputError(data.describe_errors())
    return data


def _check_references(entry: AnnotationEntry, listed: Mapping[str, Collection[Any]]) -> None:
    keys = {"category_id": "categories", "image_id": "images"}
    if wrong := [key for key, kind in keys.items() if entry[key] not in listed[keys[key]]]:
        raise InputError("; ".join(f"{k} {entry[k]!r} is none of the {keys[k]}" for k in wrong))


def _read_categories(
    notes: Notes, entries: Sequence[CategoryEntry], used: Collection[Any], options: Options
) -> tuple[dict[int, str], dict[Any, int]]:
    """Return names by id, in the order of the ids, and the id that stands for each of the file."""
    names: dict[Any, str] = {}
    for entry in entries:
        key, name = entry["id"], entry["name"]
        if key in names and names[key] == name:
            notes.add("{n} categories are listed twice", key)
        elif names.setdefault(key, name) != name:
            notes.error(f"category {key} is {names[key]!r} and {name!r}")
    usable = usable_ids(notes, "categories", entries)
    phantom = _phantom(entries, names, used)
    if phantom is not None:
        kind = "left out {n} category that no annotation has and that stands for all others"
        notes.add(kind, repr(names.pop(phantom)))
    ids: dict[Any, int] = {}
    first: dict[str, int] = {}
    for key, name in sorted(names.items(), key=lambda item: usable[item[0]]):
        ids[key] = usable[key]
        if first.setdefault(name, ids[key]) == ids[key]:
            continue
        listed = f"{name!r} ({first[name]} and {ids[key]})"
        if options.merge_classes:
            ids[key] = first[name]
            notes.add("{n} categories of the same name became one class", listed)
        else:
            notes.add("{n} classes have another's name; --merge-classes makes them one", listed)
    return {number: names[key] for key, number in ids.items()}, ids


def _phantom(
    entries: Sequence[CategoryEntry], names: Mapping[Any, str], used: Collection[Any]
) -> Any:
    """The id of Roboflow's category 0: without annotations, the supercategory of all others."""
    for key, name in names.items():
        others = [entry.get("supercategory") for entry in entries if entry["id"] != key]
        if key not in used and others and all(other == name for other in others):
            return key
    return None


def _match_categories(
    notes: Notes,
    own: Mapping[int, str],
    ids: Mapping[Any, int],
    theirs: Mapping[int, str],
    used: Collection[Any],
) -> dict[Any, int]:
    """Return the training set's id for each id of the file, whose classes are matched by name.

    A class with annotations that the training set (``theirs``) has not, or has twice, is an error.
    """
    used = {ids[key] for key in used if key in ids}
    matched = {}
    for key, name in own.items():
        exact = [other for other, known in theirs.items() if known == name]
        same = exact or [other for other, known in theirs.items() if plain(known) == plain(name)]
        if key in exact:
            matched[key] = key
        elif len(same) == 1:
            matched[key] = same[0]
            kind = "{n} categories were matched to the training set's by their names"
            notes.add(kind, f"{key} {name!r} to {matched[key]} {theirs[matched[key]]!r}")
        elif key not in used:
            notes.add("left out {n} categories that the training set does not have", repr(name))
        else:
            known = ", ".join(f"{i} {n}" for i, n in theirs.items())
            hint = did_you_mean(name, theirs.values())
            which = "can be several" if same else "is not one"
            notes.error(f"category {key} {name!r} {which} of the training set's: {known}{hint}")
    return {key: matched[number] for key, number in ids.items() if number in matched}


def _read_keypoint_names(
    notes: Notes, categories: Sequence[KeypointCategory], wanted: Sequence[str] | None
) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the names of keypoints that the categories share, and joined pairs, counted from 0."""
    first, *others = [entry for entry in categories if entry.get("keypoints")] or [{}]
    names, skeleton = first.get("keypoints") or [], first.get("skeleton") or []
    for other in others:
        if other["keypoints"] != names:
            notes.error(
                f"categories {first['name']!r} and {other['name']!r} have different keypoints, "
                "and a model finds one set of them"
            )
            return [], []
    if wanted is not None and list(wanted) != names:
        notes.error(
            f"its keypoints {names} are not those that the model is trained on, {list(wanted)}"
        )
    if any(not 1 <= at <= len(names) for pair in skeleton for at in pair):
        notes.error(
            f"category {first['id']}: 'skeleton' must be {MUST['skeleton']}, got {skeleton}"
        )
    return names, [(a - 1, b - 1) for a, b in skeleton]
