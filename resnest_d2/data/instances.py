"""Boxes, masks and keypoints of annotations: repaired where they have one meaning, or refused."""

import re
from typing import Any

import pycocotools.mask as mask_util

from ..config import InputError
from .coco_images import CLIPPED, ImageFile
from .options import Options
from .schema import MOST_PIXELS, AnnotationEntry, Notes, Rle, some

Box = list[float]  # x, y, width, height
Size = tuple[int, int]  # width, height
Polygons = list[list[float]]
Mask = Polygons | Rle

STRANGE = 0.2  # from this share on, boxes that mean something else are no single mistakes
ARE_STRANGE = "are not those of their masks, or reach beyond their images"
NO_MASK = (
    "left out {n} annotations that have no mask, neither a polygon of three points nor RLE with "
    "pixels, so that these objects count as background; a faster_ or cascade_box_ config takes "
    "their boxes"
)
BEFORE_EXIF = (
    "is of a picture as it is stored, before EXIF turns it; remove the tag from the files: "
    "exiftool -Orientation= FOLDER"
)


class InstanceReader:
    """Reads a file's annotations, one after the other.

    Args:
        notes: of the file.
        masks: whether annotations without a mask are left out.
        num_keypoints: that each gets; 0 reads none.
        options: the user's decisions.
    """

    def __init__(self, notes: Notes, masks: bool, num_keypoints: int, options: Options) -> None:
        self.notes, self.masks, self.options = notes, masks, options
        self.num_keypoints = num_keypoints
        self._num_boxes = 0
        self._strange: list[Any] = []
        """Annotations whose boxes are not their masks' or, without one, leave their images."""

    def read(
        self, name: int | str, entry: AnnotationEntry, image: ImageFile
    ) -> dict[str, Any] | None:
        """Return all but the ids of an annotation; None if it is left out.

        Raises:
            InputError: it contradicts itself or its picture; the message does not name it.
        """
        mask = _read_mask(entry.get("segmentation"), image.size)
        of_mask = mask_box(mask) if mask else None
        for bounds in (entry.get("bbox"), of_mask):
            if bounds and image.is_exchanged and _excess(bounds, image.size) > CLIPPED:
                raise InputError(BEFORE_EXIF)
        box = self._box(name, entry.get("bbox"), image.size, of_mask)
        if box is None:
            return None
        if self.masks and mask is None:
            self.notes.add(NO_MASK, name)
            return None
        area = entry.get("area") or 0
        if isinstance(mask, list) and area > 0 and _has_hole(mask, area, image.size):
            kind = "{n} masks have a polygon inside of another and an area as if it were a hole"
            self.notes.add(f"{kind}, which COCO's format fills; RLE has holes", name)
        if not 0 < area < MOST_PIXELS:
            area = mask_area(mask, image.size) if mask else box[2] * box[3]
        found = {"bbox": box, "area": area, "iscrowd": self._is_crowd(name, entry)}
        if mask:
            found["segmentation"] = mask
        if self.num_keypoints:
            found |= read_keypoints(entry, self.num_keypoints)
        return found

    def _is_crowd(self, name: int | str, entry: AnnotationEntry) -> int:
        if not entry.get("iscrowd"):
            return 0
        if self.options.crowd_as_instances:
            self.notes.add("{n} crowds were taken as objects", name)
            return 0
        kind = "{n} annotations are crowds (iscrowd 1), which are not learned, and on which "
        kind += "detections do not count; in training --crowd-as-instances takes them as objects"
        self.notes.add(kind, name)
        return 1

    def _box(
        self, name: int | str, given: Box | None, size: Size, of_mask: Box | None
    ) -> Box | None:
        """The part of the box that lies in the picture; None if there is none."""
        box = given
        if of_mask and (given is None or self.options.boxes_from_masks or min(given[2:]) <= 0):
            self.notes.add("{n} boxes were computed from their masks", name)
            box = of_mask
        if box is None or min(box[2:]) <= 0 or min(_clip(box, size)[2:]) <= 0:
            kind = "left out {n} annotations that have neither box nor mask in their image"
            self.notes.add(kind, name)
            return None
        excess = _excess(box, size)
        is_strange = is_beyond = excess > CLIPPED
        if box is given:
            self._num_boxes += 1
            if of_mask:
                is_strange = mask_util.iou([box], [of_mask], [False])[0, 0] < 0.5
            if is_strange:
                self._strange.append(name)
            elif is_beyond:
                self.notes.add("{n} boxes reach beyond their images and were clipped", name)
        return _clip(box, size) if excess > 0 else box

    def finish(self) -> None:
        """See that the boxes of the file mean what COCO's mean; note an error if many do not."""
        number = len(self._strange)
        if number > STRANGE * self._num_boxes and not self.options.boxes_as_given:
            self.notes.error(
                f"{number} of {self._num_boxes} boxes {ARE_STRANGE} (annotations "
                f"{some(self._strange)}); COCO's are x, y, width, height in pixels; in training "
                "--boxes-from-masks makes new ones, --boxes-as-given keeps and clips them"
            )
            return
        for name in self._strange:
            self.notes.add(f"{{n}} boxes {ARE_STRANGE}; they stay, clipped", name)


def read_keypoints(entry: dict[str, Any], number: int) -> dict[str, Any]:
    """Return so many "keypoints" of an annotation, and "num_keypoints".

    Raises:
        InputError: it has another number of them.
    """
    # All instances must have as many; without a label they count for nothing.
    values = entry.get("keypoints") or [0] * 3 * number
    if len(values) != 3 * number:
        raise InputError(
            f"'keypoints' must be {number} times x, y and visibility, as many as its category "
            f"names, got {len(values)} numbers"
        )
    return {"keypoints": values, "num_keypoints": sum(v > 0 for v in values[2::3])}


def _excess(box: Box, size: Size) -> float:
    """By how many pixels a box reaches beyond an image."""
    x, y, width, height = box
    return max(-x, -y, x + width - size[0], y + height - size[1])


def _clip(box: Box, size: Size) -> Box:
    """The part of a box that lies in an image; outside of it its sides are not above 0."""
    x, y, width, height = box
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + width, size[0]) - left, min(y + height, size[1]) - top]


def _read_mask(value: Mask | None, size: Size) -> Mask | None:
    """Return polygons, or a compressed RLE of the picture's size; None if nothing is in it."""
    if isinstance(value, dict):
        rle = _read_rle(value, size)
        return rle if mask_util.area(rle) else None
    # Detectron2's readers, and pycocotools, refuse the others.
    return [p for p in value or () if len(p) >= 6 and len(p) % 2 == 0] or None


def mask_box(mask: Mask) -> Box:
    """Return the box of polygons or a compressed RLE."""
    if isinstance(mask, dict):
        return mask_util.toBbox(mask).tolist()
    xs = [x for polygon in mask for x in polygon[::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def mask_area(mask: Mask, size: Size) -> float:
    """Return a mask's pixels in an image."""
    if isinstance(mask, list):
        mask = mask_util.merge(mask_util.frPyObjects(mask, size[1], size[0]))
    return float(mask_util.area(mask))


def _has_hole(polygons: Polygons, area: float, size: Size) -> bool:
    """Whether an area is that of the largest polygon without the others, which lie inside of it."""
    # First by boxes, of which one must be that of all: pixels take long.
    if len(polygons) == 1 or mask_box(polygons) not in [mask_box([one]) for one in polygons]:
        return False
    areas = mask_util.area(mask_util.frPyObjects(polygons, size[1], size[0])).astype(float)
    inside = areas.sum() - areas.max()
    lie_inside = mask_area(polygons, size) == areas.max()
    return bool(inside > 0 and lie_inside and abs(areas.max() - inside - area) < inside / 2)


def _read_rle(rle: Rle, size: Size) -> Rle:
    """Return a compressed RLE of a picture."""
    (width, height), counts = size, rle["counts"]
    if rle["size"] != (height, width):
        given = [*rle["size"]]
        raise InputError(f"its RLE has size {given} (height, width), its image [{height}, {width}]")
    runs = decode_counts(counts) if isinstance(counts, str) else counts
    if sum(runs) != height * width or min(runs) < 0:
        raise InputError(f"the counts of its RLE do not add up to {height} x {width}")
    if not isinstance(counts, str):
        counts = mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        counts = counts["counts"].decode("ascii")
    return {"size": [height, width], "counts": counts}


def decode_counts(text: str) -> list[int]:
    """Lengths of runs in a compressed RLE.

    pycocotools reads it too, but without seeing where it is broken. Each number takes characters
    of five bits and a bit for "goes on", the lowest first; from the fourth on, numbers are
    differences to the last but one (``maskApi.c``, ``rleFrString``).

    Raises:
        InputError: a character is no part of an RLE, or a number is cut short or too large.
    """
    if not re.fullmatch("([P-o]{0,6}[0-O])*", text):  # pycocotools counts in 32 bits
        raise InputError("its RLE cannot be decoded")
    lengths: list[int] = []
    for number in re.findall("[P-o]*[0-O]", text):
        bits = [ord(character) - 48 for character in number]
        value = sum((five & 0x1F) << 5 * place for place, five in enumerate(bits))
        if bits[-1] & 0x10:
            value -= 1 << 5 * len(bits)
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths
