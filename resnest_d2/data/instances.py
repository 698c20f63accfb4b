"""Boxes, masks and keypoints of annotations: repaired where they have one meaning, or refused."""

import re
from itertools import chain
from typing import Annotated, Any

import pycocotools.mask as mask_util
from pydantic import AfterValidator, Field, NonNegativeInt, StrictStr, TypeAdapter
from typing_extensions import TypedDict

from ..config import InputError
from .coco_images import CLIPPED, ImageFile
from .options import Options
from .schema import COORDINATES, MOST_PIXELS, Coordinate, Notes, parse, some

Box = list[float]  # x, y, width, height
Polygons = list[list[float]]
Mask = Polygons | dict[str, Any]


class Rle(TypedDict):
    """A run-length encoded mask."""

    size: tuple[NonNegativeInt, NonNegativeInt]
    counts: StrictStr | list[NonNegativeInt]


Point = Annotated[list[Coordinate], Field(min_length=2, max_length=2)]
Polygon = (
    list[Coordinate]
    | Annotated[list[Point], AfterValidator(lambda points: [*chain.from_iterable(points)])]
)
RLE = TypeAdapter(Rle)
# A single polygon may stand without its outer list, and its points may be pairs.
POLYGONS = TypeAdapter(
    Annotated[
        Annotated[Polygon, AfterValidator(lambda polygon: [polygon])] | list[Polygon],
        Field(union_mode="left_to_right"),
    ]
)
RLE_MUST = "its RLE must be 'size' [height, width] and 'counts', a list of numbers or a string"
POLYGONS_MUST = "'segmentation' must be RLE or a list of polygons, [[x1, y1, x2, ...], ...]"

STRANGE = 0.2  # from this share on, boxes that mean something else are no single mistakes
BEYOND = "reach beyond their images"
BEFORE_EXIF = (
    "is of a picture as it is stored, before EXIF turns it; remove the tag from the files: "
    "exiftool -Orientation= FOLDER"
)


class InstanceReader:
    """Reads box, mask, area and crowd flag of a file's annotations, one after the other.

    Where ``masks`` are needed, annotations without one are left out.
    """

    def __init__(self, notes: Notes, masks: bool, options: Options) -> None:
        self.notes, self.masks, self.options = notes, masks, options
        self.num_compared = self.num_alone = 0
        """Boxes with a mask, and without one."""
        self.strange: list[Any] = []
        """Annotations whose boxes are not their masks'."""
        self.beyond: list[Any] = []
        """Annotations without a mask whose boxes reach beyond their images."""

    def read(self, name: Any, entry: dict[str, Any], image: ImageFile) -> dict[str, Any] | None:
        """Return "bbox", "area", "iscrowd" and "segmentation"; None if it is left out.

        Raises:
            InputError: it contradicts itself or its picture; the message does not name it.
        """
        mask, lack = self._mask(name, entry.get("segmentation"), image)
        of_mask = None if mask is None else mask_box(mask)
        for bounds in (entry.get("bbox"), of_mask):
            if bounds and image.is_exchanged and _excess(bounds, image.size) > CLIPPED:
                raise InputError(BEFORE_EXIF)
        if of_mask and _is_outside(of_mask, image.size):
            mask = of_mask = None
            lack = "have a mask outside of their image"
        box = self._box(name, entry.get("bbox"), image, of_mask and _clip(of_mask, image.size))
        if box is None:
            return None
        if self.masks and mask is None:
            self.notes.add(
                f"left out {{n}} annotations that {lack}, so that these objects count as "
                "background; a faster_ or cascade_box_ config takes their boxes",
                name,
            )
            return None
        area = entry.get("area") or 0
        if isinstance(mask, list) and area > 0 and _has_hole(mask, area):
            kind = "{n} masks have a polygon inside of another and an area as if it were a hole"
            self.notes.add(f"{kind}, which COCO's format fills; RLE has holes", name)
        if not 0 < area < MOST_PIXELS:
            area = box[2] * box[3] if mask is None else mask_area(mask, image.size)
        found = {"bbox": box, "area": area, "iscrowd": self._is_crowd(name, entry)}
        return found | ({} if mask is None else {"segmentation": mask})

    def _is_crowd(self, name: Any, entry: dict[str, Any]) -> int:
        if not entry.get("iscrowd"):
            return 0
        if self.options.crowd_as_instances:
            self.notes.add("{n} crowds were taken as objects", name)
            return 0
        way = self.options.hint("--crowd-as-instances takes them as objects")
        kind = "{n} annotations are crowds (iscrowd 1), which are not learned, and on which "
        self.notes.add(f"{kind}detections do not count{way}", name)
        return 1

    def _mask(self, name: Any, value: Any, image: ImageFile) -> tuple[Mask | None, str]:
        """The mask in the picture's pixels, or what is wrong with it."""
        if not value:
            return None, "have no 'segmentation'"
        try:
            mask = parse_mask(value, image)
        except InputError:
            if self.masks:
                raise
            self.notes.add("{n} masks cannot be read, and are not needed", name)
            return None, ""
        if isinstance(mask, dict):
            return (mask, "") if mask_util.area(mask) else (None, "have an empty RLE")
        # Detectron2's readers, and pycocotools, refuse the others.
        kept = [p for p in mask if len(p) >= 6 and len(p) % 2 == 0]
        if not kept:
            return None, "have no polygon of three points or more, each with x and y"
        if len(kept) < len(mask):
            self.notes.add("left out polygons of fewer than three points, of {n} annotations", name)
        return kept, ""

    def _box(
        self, name: Any, given: Box | None, image: ImageFile, of_mask: Box | None
    ) -> Box | None:
        """The box in the picture's pixels, clipped; None if there is none."""
        if given is None and of_mask is None:
            self.notes.add("left out {n} annotations that have neither box nor mask", name)
            return None
        if of_mask and (given is None or self.options.boxes_from_masks or min(given[2:]) <= 0):
            self.notes.add("{n} boxes were computed from their masks", name)
            box = of_mask
        else:
            box = given
        if min(box[2:]) <= 0:
            self.notes.add("left out {n} annotations that have a box without area", name)
            return None
        if _is_outside(box, image.size):
            self.notes.add("left out {n} annotations that lie outside of their image", name)
            return None
        excess = _excess(box, image.size)
        if of_mask is None:
            self.num_alone += 1
            if excess > CLIPPED:
                self.beyond.append(name)
        elif box is given:
            self.num_compared += 1
            if mask_util.iou([box], [of_mask], [False])[0, 0] < 0.5:
                self.strange.append(name)
            if excess > CLIPPED:
                self.notes.add(f"{{n}} boxes {BEYOND} and were clipped", name)
        clips = excess > CLIPPED or (excess > 0 and image.is_off)
        return _clip(box, image.size) if clips else box

    def finish(self) -> None:
        """See that the boxes of the file mean what COCO's mean; note an error if many do not."""
        new = "--boxes-from-masks makes new ones, --boxes-as-given keeps them"
        clip = "--boxes-as-given clips them"
        for wrong, number, what, way, done in (
            (self.strange, self.num_compared, "are not those of their masks", new, "stay"),
            (self.beyond, self.num_alone, BEYOND, clip, "were clipped"),
        ):
            if len(wrong) > STRANGE * number and not self.options.boxes_as_given:
                self.notes.error(
                    f"{len(wrong)} of {number} boxes {what} (annotations {some(wrong)}); COCO's "
                    f"are x, y, width, height in pixels{self.options.hint(way)}"
                )
                continue
            for name in wrong:
                self.notes.add(f"{{n}} boxes {what} and {done}", name)


def read_keypoints(entry: dict[str, Any], number: int) -> dict[str, Any]:
    """Return so many "keypoints" of an annotation, and "num_keypoints".

    Raises:
        InputError: it has another number of them, or these are none.
    """
    must = f"'keypoints' must be {number} times x, y and visibility, as many as its category names"
    # All instances must have as many; without a label they count for nothing.
    values = parse(COORDINATES, entry.get("keypoints") or [0] * 3 * number, must)
    if len(values) != 3 * number:
        raise InputError(f"{must}, got {len(values)} numbers")
    return {"keypoints": values, "num_keypoints": sum(v > 0 for v in values[2::3])}


def _excess(box: Box, size: tuple[int, int]) -> float:
    """By how many pixels a box reaches beyond an image of this width and height."""
    x, y, width, height = box
    return max(-x, -y, x + width - size[0], y + height - size[1])


def _is_outside(box: Box, size: tuple[int, int]) -> bool:
    x, y, width, height = box
    return x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0


def _clip(box: Box, size: tuple[int, int]) -> Box:
    """The part of a box that lies in an image of this width and height."""
    x, y, width, height = box
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + width, size[0]) - left, min(y + height, size[1]) - top]


def parse_mask(value: Any, image: ImageFile) -> Mask:
    """Return polygons, or a compressed RLE of the picture's size; either may be empty."""
    if isinstance(value, dict):
        return _read_rle(parse(RLE, value, RLE_MUST), image.size)
    polygons = parse(POLYGONS, value, POLYGONS_MUST)
    if not image.is_off:
        return polygons
    return [[min(max(v, 0), image.size[i % 2]) for i, v in enumerate(p)] for p in polygons]


def mask_box(mask: Mask) -> Box:
    """Return the box (x, y, width, height) of polygons or a compressed RLE."""
    if isinstance(mask, dict):
        return mask_util.toBbox(mask).tolist()
    xs = [x for polygon in mask for x in polygon[::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def mask_area(mask: Mask, size: tuple[int, int]) -> float:
    """Return a mask's pixels, in an image of this width and height."""
    if isinstance(mask, list):
        mask = mask_util.merge(mask_util.frPyObjects(mask, size[1], size[0]))
    return float(mask_util.area(mask))


def _has_hole(polygons: Polygons, area: float) -> bool:
    """Whether an area is that of the largest polygon without those in its bounds."""
    if len(polygons) == 1:
        return False
    areas = [_polygon_area(polygon) for polygon in polygons]
    at = areas.index(max(areas))
    left, top, width, height = mask_box([polygons[at]])
    inside = 0.0
    for polygon, part in zip(polygons, areas, strict=True):
        x, y, across, down = mask_box([polygon])
        is_within = left <= x and x + across <= left + width and top <= y
        if polygon is not polygons[at] and is_within and y + down <= top + height:
            inside += part
    return inside > 0 and abs(areas[at] - inside - area) < inside / 2


def _polygon_area(polygon: list[float]) -> float:
    """The area by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    pairs = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in pairs)) / 2


def _read_rle(rle: Rle, size: tuple[int, int]) -> dict[str, Any]:
    """Return a compressed RLE of a picture's width and height."""
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
