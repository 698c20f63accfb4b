"""Instance annotations in COCO's JSON format, read with a check of every annotation.

Detectron2's own reader (``load_coco_json``) is made for COCO; annotations that people make
themselves have holes, and trip it, or the first training step, in words that name no annotation.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode
from PIL import ExifTags, Image
from tqdm import tqdm

from ..config import InputError
from .rle import decode_counts

logger = logging.getLogger(__name__)

LISTED = 5  # so many examples are named in a message
SHOW_PROGRESS = 2000  # from so many images on


@dataclass
class CocoData:
    """A data set of one JSON file."""

    file: Path
    image_root: Path
    categories: dict[int, str]
    """Names of categories by their id, in the order of the ids."""
    dicts: list[dict[str, Any]]
    """Images and annotations in Detectron2's dataset format."""
    keypoint_names: list[str] = field(default_factory=list)
    skeleton: list[tuple[int, int]] = field(default_factory=list)
    """Pairs of keypoints that are joined, counted from 0."""
    num_annotations: int = 0
    """In the file, with those that were left out."""
    num_masks: int = 0
    num_rle: int = 0
    num_keypoints: int = 0
    evaluable: bool = True
    """Whether pycocotools can evaluate on the file as it is."""


def read_coco(
    file: str | Path,
    image_root: str | Path,
    categories: Mapping[int, str] | None = None,
    masks: bool = False,
    keypoint_names: Sequence[str] | None = None,
) -> CocoData:
    """Read and check a COCO-format file.

    Boxes without an area, annotations outside of their image and, where masks are needed, ones
    without a usable mask are left out; a warning names them. Images without annotations stay.

    Args:
        file: the JSON file.
        image_root: folder that its file names are relative to.
        categories: names by id that give the classes and their order; None takes the file's own.
        masks: whether each instance needs a mask.
        keypoint_names: the keypoints that a model finds, in its order; None takes the file's own.

    Raises:
        FileNotFoundError: the file, the folder or an image is not there.
        ValueError: the file is no JSON of COCO's format, an image is broken or of another size, or
            an annotation contradicts itself or the rest of the file; the message names it.
    """
    file, image_root = Path(file), Path(image_root)
    content = _load(file)
    own, keypoints, skeleton = _read_categories(file, content["categories"])
    if categories is None:
        categories = own
    for number, name in own.items():
        if categories.get(number) != name:
            known = ", ".join(f"{i} {n}" for i, n in categories.items())
            raise InputError(
                f"{file}: category {number} {name!r} is not one of the training set's: {known}"
            )
    if keypoint_names is not None and list(keypoint_names) != keypoints:
        raise InputError(
            f"{file}: its keypoints {keypoints} are not those that the model is trained on, "
            f"{list(keypoint_names)}"
        )
    same_classes = own == dict(categories)
    contiguous = {number: index for index, number in enumerate(categories)}
    images = _read_images(file, image_root, content["images"])
    data = CocoData(file, image_root, dict(categories), list(images.values()), keypoints, skeleton)
    # pycocotools counts the classes of the file, Detectron2 those of the model.
    data.evaluable = same_classes
    data.num_annotations = len(content["annotations"])
    left_out: dict[str, list[Any]] = defaultdict(list)
    shortened: list[Any] = []  # lost some of their polygons
    seen: set[Any] = set()
    for annotation in content["annotations"]:
        name = _name(file, annotation, seen)
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if not _is_id(image_id) or image_id not in images:
            raise InputError(f"{name}: there is no image {image_id!r}")
        if not _is_id(category_id) or category_id not in contiguous:
            raise InputError(f"{name}: there is no category {category_id!r}")
        if annotation.get("iscrowd") not in (0, 1, None):
            raise InputError(f"{name}: 'iscrowd' must be 0 or 1, got {annotation['iscrowd']!r}")
        image = images[image_id]
        instance = {
            "bbox": _read_box(name, annotation),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": contiguous[category_id],
            "iscrowd": int(annotation.get("iscrowd") or 0),
        }
        problem = _box_problem(instance["bbox"], image)
        segmentation, mask_problem = _read_mask(name, annotation, image)
        if segmentation is not None:
            instance["segmentation"] = segmentation
            is_polygon = isinstance(segmentation, list)
            if is_polygon and len(segmentation) < len(annotation["segmentation"]):
                shortened.append(annotation["id"])
        elif masks:
            problem = problem or mask_problem
        if mask_problem and mask_problem != NO_MASK:
            data.evaluable = False
        if keypoints or annotation.get("keypoints"):
            instance["keypoints"] = _read_keypoints(name, annotation, len(keypoints))
            if "keypoints" not in annotation or "num_keypoints" not in annotation:
                data.evaluable = False
        if problem:
            left_out[problem].append(annotation["id"])
            continue
        # pycocotools needs both, numbers for ids, and takes 0 for "not matched".
        area, number = annotation.get("area"), annotation["id"]
        if area is not None and not _are_numbers([area]):
            raise InputError(f"{name}: 'area' must be a number, got {area!r}")
        if None in (area, annotation.get("iscrowd")) or isinstance(number, str) or not number:
            data.evaluable = False
        data.num_masks += segmentation is not None
        data.num_rle += isinstance(segmentation, dict)
        data.num_keypoints += bool(annotation.get("keypoints"))
        image["annotations"].append(instance)
    if shortened:
        data.evaluable = False
        logger.warning(
            "%s: left out polygons of fewer than three points, of annotations %s",
            file,
            _some(shortened),
        )
    _report(data, left_out)
    return data


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no annotation file {file}")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{file} is not in COCO's format: it has no list {key!r}")
        if not all(isinstance(entry, dict) for entry in content[key]):
            raise InputError(f"{file} is not in COCO's format: {key!r} holds more than objects")
    return content


def _read_categories(
    file: Path, entries: Sequence[dict[str, Any]]
) -> tuple[dict[int, str], list[str], list[tuple[int, int]]]:
    if not entries:
        raise InputError(f"{file}: 'categories' is empty")
    names: dict[int, str] = {}
    for entry in entries:
        if not isinstance(entry.get("id"), int) or not isinstance(entry.get("name"), str):
            raise InputError(f"{file}: a category needs an integer 'id' and a 'name', got {entry}")
        if entry["id"] in names:
            raise InputError(f"{file}: category id {entry['id']} is there twice")
        names[entry["id"]] = entry["name"]
    keypoints = next((entry["keypoints"] for entry in entries if entry.get("keypoints")), [])
    skeleton = next((entry["skeleton"] for entry in entries if entry.get("skeleton")), [])
    joined = isinstance(skeleton, list) and all(
        _are_numbers(pair) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
        for pair in skeleton
    )
    in_range = joined and all(1 <= number <= len(keypoints) for pair in skeleton for number in pair)
    if not isinstance(keypoints, list) or not in_range:
        raise InputError(
            f"{file}: a category's 'keypoints' must be a list of names, and its 'skeleton' pairs "
            "of their numbers, from 1 on"
        )
    return dict(sorted(names.items())), keypoints, [(a - 1, b - 1) for a, b in skeleton]


def _read_images(
    file: Path, image_root: Path, entries: Sequence[dict[str, Any]]
) -> dict[Any, dict[str, Any]]:
    if not image_root.is_dir():
        raise FileNotFoundError(f"there is no folder of images {image_root}")
    images: dict[Any, dict[str, Any]] = {}
    missing = []
    for entry in tqdm(entries, f"images of {file.name}", disable=len(entries) < SHOW_PROGRESS):
        if not _is_id(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            raise InputError(f"{file}: an image needs an 'id' and a 'file_name', got {entry}")
        if entry["id"] in images:
            raise InputError(f"{file}: image id {entry['id']} is there twice")
        path = image_root / entry["file_name"]
        images[entry["id"]] = record = {"file_name": str(path), "image_id": entry["id"]}
        if path.is_file():
            width, height = _image_size(file, entry, path)
            record |= {"height": height, "width": width, "annotations": []}
        else:
            missing.append(entry["file_name"])
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(entries)} images of {file} are not in {image_root}: "
            f"{_some(missing)}"
        )
    return images


def _image_size(file: Path, entry: dict[str, Any], path: Path) -> tuple[int, int]:
    """Width and height of an image; only the beginning of its file is read.

    Raises:
        ValueError: it is no image, or of another size than the annotations say.
    """
    try:
        with Image.open(path) as image:
            size = image.size
            if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # Detectron2 turns it
                size = size[::-1]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: image {entry['id']}, {path}, cannot be read: {error}") from None
    named = (entry.get("width", size[0]), entry.get("height", size[1]))
    if named != size:
        raise InputError(
            f"{file}: image {entry['id']} is said to be {named[0]!r} x {named[1]!r}, but {path} is "
            f"{size[0]} x {size[1]}"
        )
    return size


def _name(file: Path, annotation: dict[str, Any], seen: set[Any]) -> str:
    """What to call an annotation in a message."""
    number = annotation.get("id")
    if not _is_id(number):
        raise InputError(f"{file}: an annotation has no 'id': {annotation}"[:200])
    if number in seen:
        raise InputError(f"{file}: annotation id {number} is there twice")
    seen.add(number)
    return f"{file}: annotation {number}"


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def _read_box(name: str, annotation: dict[str, Any]) -> list[float]:
    box = annotation.get("bbox")
    if not _are_numbers(box) or len(box) != 4:
        raise InputError(f"{name}: 'bbox' must be four numbers (x, y, width, height), got {box}")
    return box


def _box_problem(box: list[float], image: dict[str, Any]) -> str | None:
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "have a box without area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return "lie outside of their image"
    return None


NO_MASK = "have no 'segmentation'"


def _read_mask(
    name: str, annotation: dict[str, Any], image: dict[str, Any]
) -> tuple[list | dict | None, str | None]:
    """The mask in Detectron2's format, or what is wrong with it."""
    mask = annotation.get("segmentation")
    if not mask:
        return None, NO_MASK
    if isinstance(mask, dict):
        return _read_rle(name, mask, image)
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        raise InputError(
            f"{name}: 'segmentation' must be RLE or a list of polygons, [[x1, y1, x2, ...], ...]"
        )
    polygons = [p for p in mask if _are_numbers(p) and len(p) >= 6 and len(p) % 2 == 0]
    # Detectron2's readers, and pycocotools, refuse these.
    return (polygons, None) if polygons else (None, "have no polygon of three points or more")


def _read_rle(
    name: str, mask: dict[str, Any], image: dict[str, Any]
) -> tuple[dict | None, str | None]:
    size, counts = mask.get("size"), mask.get("counts")
    if size != [image["height"], image["width"]]:
        raise InputError(
            f"{name}: its RLE has size {size} (height, width), its image "
            f"[{image['height']}, {image['width']}]"
        )
    if isinstance(counts, str):
        is_string = True
        try:
            counts = decode_counts(counts)
        except ValueError as error:
            raise InputError(f"{name}: its RLE cannot be decoded: {error}") from error
    else:
        is_string = False
    if isinstance(counts, list):
        whole = _are_numbers(counts) and all(isinstance(c, int) and c >= 0 for c in counts)
        if not whole or sum(counts) != size[0] * size[1]:
            raise InputError(
                f"{name}: the counts of its RLE do not add up to {size[0]} x {size[1]}"
            )
        if not is_string:
            mask = mask_util.frPyObjects(mask, *size)
    else:
        raise InputError(f"{name}: 'counts' of its RLE must be a list of numbers or a string")
    if not sum(counts[1::2]):
        return None, "have an empty RLE"
    return mask, None


def _read_keypoints(name: str, annotation: dict[str, Any], number: int) -> list[float]:
    # All instances must have as many; without a label they count for nothing.
    values = annotation.get("keypoints") or [0] * 3 * number
    if not _are_numbers(values) or len(values) != 3 * number:
        raise InputError(
            f"{name}: 'keypoints' must be {number} times x, y and visibility, as many as its "
            "category names"
        )
    # COCO's keypoints are indices of pixels, Detectron2's are coordinates.
    return [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(values)]


def _report(data: CocoData, left_out: Mapping[str, Sequence[Any]]) -> None:
    for problem, ids in left_out.items():
        data.evaluable = False
        logger.warning(
            "%s: left out %d annotations that %s: %s", data.file, len(ids), problem, _some(ids)
        )
    empty = sum(not record["annotations"] for record in data.dicts)
    logger.info(
        "%s: %d images, of which %d have no annotation, %d annotations, %d classes",
        data.file,
        len(data.dicts),
        empty,
        sum(len(record["annotations"]) for record in data.dicts),
        len(data.categories),
    )


def _some(values: Sequence[Any]) -> str:
    listed = ", ".join(map(str, values[:LISTED]))
    return f"{listed}, ..." if len(values) > LISTED else listed
