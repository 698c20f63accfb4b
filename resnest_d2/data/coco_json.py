"""Instance annotations in COCO's JSON format, read with a check of every annotation.

Detectron2's own reader (``load_coco_json``) is made for COCO; annotations that people make
themselves have holes, and trip it, or the first training step, in words that name no annotation.
"""

import codecs
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from ..config import InputError
from ..files import write_text
from .annotations import AnnotationReader
from .formats import describe_file, describe_json
from .image_files import find_images
from .notes import Notes, some
from .repair import Options, match_categories, read_categories, read_images
from .values import identity, numbers

logger = logging.getLogger(__name__)

LISTS = ("images", "annotations", "categories")


@dataclass
class CocoData:
    """A data set of one JSON file, repaired where that has one sensible meaning."""

    file: Path
    image_root: Path | None
    categories: dict[int, str]
    """Names of categories by their id, in the order of the ids."""
    images: list[dict[str, Any]]
    """Images as in COCO's format, with the paths of their files."""
    annotations: list[dict[str, Any]]
    """Annotations as in COCO's format, with every value that pycocotools needs."""
    keypoint_names: list[str] = field(default_factory=list)
    skeleton: list[tuple[int, int]] = field(default_factory=list)
    """Pairs of keypoints that are joined, counted from 0."""
    num_annotations: int = 0
    """Annotations of the file, with those that were left out."""
    evaluable: bool = True
    """Whether pycocotools can evaluate on the file as it is."""
    image_ids: dict[Any, int] = field(default_factory=dict)
    """The id of an image by what the file calls it."""
    category_ids: dict[Any, int] = field(default_factory=dict)
    """The id of a category by what the file calls it."""
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
            image["id"]: {**image, "image_id": image["id"], "annotations": []}
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
        for record in records.values():
            del record["id"]
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
        """Write what :meth:`to_json` returns."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, self.to_json())


def read_coco(
    file: str | Path,
    image_root: str | Path | None,
    categories: Mapping[int, str] | None = None,
    masks: bool = False,
    keypoints: bool = False,
    keypoint_names: Sequence[str] | None = None,
    options: Options | None = None,
    named_in_val: Callable[[], Collection[str]] = tuple,
    annotated: bool = True,
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
        named_in_val: returns the names of classes that the validation set uses; those stay.
        annotated: whether the file must have a list of annotations; COCO's test sets have none.

    Raises:
        FileNotFoundError: the file, the folder or an image is not there.
        InputError: the file is not in COCO's format, an image is broken or of another shape, or an
            annotation contradicts itself or the rest of the file; the message names it.
    """
    file, options = Path(file), options or Options()
    root = None if image_root is None else Path(image_root)
    content = load_json(file, annotated)
    notes = Notes(file)
    entries = content["annotations"]
    classes = [identity(entry.get("category_id")) for entry in entries]
    own, to_own = read_categories(notes, content["categories"], set(classes), options, named_in_val)
    to_id = to_own
    if categories is not None:
        used = {to_own[key] for key in classes if key in to_own}
        matched = match_categories(notes, own, categories, used)
        to_id = {key: matched[number] for key, number in to_own.items() if number in matched}
    names, skeleton = _read_keypoint_names(notes, content["categories"]) if keypoints else ([], [])
    if keypoint_names is not None and list(keypoint_names) != names:
        raise InputError(
            f"{file}: its keypoints {names} are not those that the model is trained on, "
            f"{list(keypoint_names)}"
        )
    listed, to_image = read_images(notes, content["images"])
    images, unreadable = find_images(notes, root, listed, options)
    by_name = {entry["file_name"]: key for key, entry in listed.items()}
    names_as_ids = by_name.keys() - to_image.keys()
    to_image = by_name | to_image
    reader = AnnotationReader(notes, masks, options)
    ids = _annotation_ids(notes, entries)
    annotations = []
    for index, (entry, key, number) in enumerate(zip(entries, classes, ids, strict=True)):
        name = number if number == identity(entry.get("id")) else f"number {index + 1} of the list"
        image = identity(entry.get("image_id"))
        if image in names_as_ids:
            notes.add("{n} annotations name their image in place of its id", name)
        if image not in to_image:
            kind = "left out {n} annotations of images that are not listed"
            notes.add(kind, f"{name} (image_id {entry.get('image_id')!r})")
            continue
        if to_image[image] not in images:
            continue  # its file is missing, and was noted
        if key not in to_id:
            raise InputError(
                f"{file}: annotation {name}: there is no category {entry.get('category_id')!r}"
            )
        found = reader.read(name, entry, images[to_image[image]])
        if found is None:
            continue
        if keypoints:
            scale = images[to_image[image]].scale
            found |= _read_keypoints(f"{file}: annotation {name}", entry, len(names), scale)
        found |= {"id": number, "image_id": to_image[image], "category_id": to_id[key]}
        annotations.append(found)
    reader.check_boxes()
    if entries and all(identity(entry.get("image_id")) not in to_image for entry in entries):
        given, known = [entry.get("image_id") for entry in entries], list(by_name.values())
        raise InputError(
            f"{file}: no annotation is of an image that is listed: image_id is {some(given)}, ids "
            f"are {some(known)}"
        )
    records = [
        {"id": n, "file_name": str(i.path), "width": i.size[0], "height": i.size[1]}
        for n, i in images.items()
    ]
    data = CocoData(file, root, dict(categories or own), records, annotations, names, skeleton)
    data.num_annotations, data.evaluable = len(entries), _is_as_written(data, content)
    data.image_ids, data.category_ids, data.unreadable = to_image, to_id, unreadable
    notes.report()
    _report(data, options)
    return data


def load_json(file: Path, annotated: bool = True) -> dict[str, Any]:
    """Load a file in COCO's format.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is in another format, which the message names if it is known.
    """
    if not file.exists():
        raise FileNotFoundError(f"there is no annotation file {file}")
    other = describe_file(file)
    if other:
        raise InputError(f"{file} {other}")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}") from None
    other = describe_json(content)
    if other:
        raise InputError(f"{file} {other}")
    if not annotated and isinstance(content, dict):
        content = {"annotations": [], **content}
    for key in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{file} is not in COCO's format: it has no list {key!r}")
        if not all(isinstance(entry, dict) for entry in content[key]):
            raise InputError(f"{file} is not in COCO's format: {key!r} holds more than objects")
    return content


def names_in_use(file: str | Path) -> set[str]:
    """Return the names of categories that have annotations in a file."""
    content = load_json(Path(file))
    used = {identity(annotation.get("category_id")) for annotation in content["annotations"]}
    return {str(c.get("name")) for c in content["categories"] if identity(c.get("id")) in used}


def _annotation_ids(notes: Notes, entries: Sequence[dict[str, Any]]) -> list[int]:
    """Ids of annotations; all are numbered if some are no different positive integers."""
    ids = [identity(entry.get("id")) for entry in entries]
    problems = {
        "are absent": sum(number is None for number in ids),
        "are no numbers": sum(isinstance(number, str) for number in ids),
        "are there twice": len(ids) - len(set(ids)) if None not in ids else 0,
    }
    for problem, count in problems.items():
        if count:
            kind = f"annotations were numbered anew, because {count} of their {{n}} ids {problem}"
            for number in ids:
                notes.add(kind, number)
            return list(range(1, len(ids) + 1))
    # pycocotools takes 0 for "not matched".
    return [n + 1 - min(ids) for n in ids] if ids and min(ids) <= 0 else ids


def _read_keypoint_names(
    notes: Notes, entries: Sequence[dict[str, Any]]
) -> tuple[list[str], list[tuple[int, int]]]:
    file = notes.file
    found = [entry for entry in entries if entry.get("keypoints")]
    if not found:
        return [], []
    names, pairs = found[0]["keypoints"], found[0].get("skeleton") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{file}: a category's 'keypoints' must be a list of names, got {names}")
    other = next((entry for entry in found if entry["keypoints"] != names), None)
    if other:
        raise InputError(
            f"{file}: categories {found[0]['name']!r} and {other['name']!r} have different "
            "keypoints, and a model finds one set of them"
        )
    skeleton = [numbers(pair) for pair in pairs] if isinstance(pairs, list) else [None]
    flat = [number for pair in skeleton for number in pair or [-1]]
    first = 0 if 0 in flat else 1
    if first == 0:
        notes.add("{n} skeleton counts keypoints from 0, where COCO counts from 1", pairs)
    if any(n not in range(first, len(names) + first) for n in flat) or len(flat) != 2 * len(pairs):
        raise InputError(
            f"{file}: a category's 'skeleton' must be pairs of numbers of its keypoints, from 1 on"
        )
    return names, [(int(a) - first, int(b) - first) for a, b in skeleton]


def _read_keypoints(
    name: str, entry: dict[str, Any], number: int, scale: tuple[float, float]
) -> dict[str, Any]:
    # All instances must have as many; without a label they count for nothing.
    values = numbers(entry.get("keypoints") or [0] * 3 * number)
    if values is None or len(values) != 3 * number:
        raise InputError(
            f"{name}: 'keypoints' must be {number} times x, y and visibility, as many as its "
            "category names"
        )
    if scale != (1, 1):
        values = [value * (*scale, 1)[at % 3] for at, value in enumerate(values)]
    return {"keypoints": values, "num_keypoints": sum(v > 0 for v in values[2::3])}


def _is_as_written(data: CocoData, content: Mapping[str, Any]) -> bool:
    """Whether pycocotools would read from the file what was read here."""
    with data.file.open("rb") as stream:
        if stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            return False
    written = {c.get("id"): c.get("name") for c in content["categories"]}
    sizes = {i.get("id"): (i.get("width"), i.get("height")) for i in content["images"]}
    return (
        len(data.annotations) == len(content["annotations"])
        and len(data.images) == len(content["images"])
        and written == data.categories
        and all(sizes.get(i["id"]) == (i["width"], i["height"]) for i in data.images)
        and all(
            bool(entry.get("segmentation")) == ("segmentation" in a)
            and all(
                _is_rle_as_written(a[k], entry[k])
                if k == "segmentation" and isinstance(a[k], dict)
                else a[k] == entry.get(k)
                for k in a
            )
            for a, entry in zip(data.annotations, content["annotations"], strict=True)
        )
    )


def _is_rle_as_written(mask: Mapping[str, Any], written: Any) -> bool:
    """Whether RLE, which is read as text, stands in the file as pycocotools takes it."""
    if not isinstance(written, dict) or written["size"] != mask["size"]:
        return False
    counts = written["counts"]
    return isinstance(counts, str) or set(map(type, counts)) == {int}


def _report(data: CocoData, options: Options) -> None:
    empty = len(data.images) - len({a["image_id"] for a in data.annotations})
    logger.info(
        "%s: %d images, of which %d have no annotation, %d annotations, %d classes",
        data.file,
        len(data.images),
        empty,
        len(data.annotations),
        len(data.categories),
    )
    if data.num_crowds:
        logger.warning(
            "%s: %d of %d annotations are crowds (iscrowd 1), which are not learned, and on which "
            "detections do not count%s",
            *(data.file, data.num_crowds, len(data.annotations)),
            options.hint("--crowd-as-instances takes them as objects"),
        )
