"""Boxes and masks of annotations, repaired where that has one sensible meaning, else refused."""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from ..config import InputError
from .coco_images import CLIPPED, ImageFile
from .notes import Notes, some
from .options import Options
from .rle import as_text, decode_counts
from .schema import RLE, RLES, Rle, parse, parse_polygons

Box = list[float]  # x, y, width, height
Mask = list[list[float]] | dict[str, Any]
ENOUGH = 20  # annotations that all lie in one part of their pictures are there for a reason
MOST_SCALED = 2**14  # pixels of a mask's side
STRANGE = 0.2  # from this share on, boxes that mean something else are no single mistakes
BEFORE_EXIF = (
    "is of a picture as it is stored, before EXIF turns it; remove the tag from the files: "
    "exiftool -Orientation= FOLDER"
)
RLE_MUST = "its RLE must be 'size' [height, width] and 'counts', a list of numbers or a string"


class InstanceReader:
    """Reads box, mask, area and crowd flag of a file's annotations, one after the other.

    Args:
        notes: of the file.
        masks: whether masks are needed; without one an annotation is left out.
        options: the user's decisions.
    """

    def __init__(self, notes: Notes, masks: bool, options: Options) -> None:
        self.notes, self.masks, self.options = notes, masks, options
        self.num_read = self.num_boxes = self.num_compared = 0
        self.strange: list[Any] = []
        """Annotations whose boxes are not their masks'."""
        self.beyond: list[Any] = []
        """Annotations whose boxes reach beyond their images."""
        self.num_corners = 0
        """How many of those would not, were they (x1, y1, x2, y2)."""
        self.tiny: list[Any] = []
        """Annotations inside the first pixel, as coordinates in parts of the image are."""
        self.smaller: ImageFile | None = None
        """A picture that is smaller than the file says."""
        self.in_smaller: set[Any] = set()
        self.num_beyond_smaller = 0

    def read(self, name: Any, entry: dict[str, Any], image: ImageFile) -> dict[str, Any] | None:
        """Return "bbox", "area", "iscrowd" and "segmentation"; None if it is left out.

        Args:
            name: what messages call the annotation.
            entry: the annotation.
            image: its picture.

        Raises:
            InputError: it contradicts itself or its picture; the message does not name it.
        """
        mask, lack = self._mask(name, entry.get("segmentation"), image)
        of_mask = None if mask is None else mask_box(mask)
        if of_mask and _is_outside(of_mask, image.size):
            mask = of_mask = None
            lack = "have a mask outside of their image"
        of_mask = of_mask and _clip(of_mask, image.size)
        box = self._box(name, entry.get("bbox"), image, of_mask)
        if box is None:
            return None
        if self.masks and mask is None:
            self.notes.add(
                f"left out {{n}} annotations that {lack}, so that these objects count as "
                "background; a faster_ or cascade_box_ config takes their boxes",
                name,
            )
            return None
        attributes = entry.get("attributes")
        if mask is None and isinstance(attributes, dict) and attributes.get("rotation"):
            self.notes.add("{n} boxes are rotated, which is not looked at", name)
        area = self._area(name, entry.get("area"), image, box, mask)
        found = {"bbox": box, "area": area, "iscrowd": self._is_crowd(name, entry)}
        return found | ({} if mask is None else {"segmentation": mask})

    def _is_crowd(self, name: Any, entry: dict[str, Any]) -> int:
        is_crowd = bool(entry.get("iscrowd"))
        if entry.get("ignore") and not is_crowd:
            self.notes.add("{n} annotations to ignore ('ignore' 1) count as crowds", name)
            is_crowd = True
        if is_crowd and self.options.crowd_as_instances:
            self.notes.add("{n} crowds were taken as objects", name)
            is_crowd = False
        return int(is_crowd)

    def _area(
        self, name: Any, given: float | None, image: ImageFile, box: Box, mask: Mask | None
    ) -> float:
        of_box = box[2] * box[3]
        if given and given > 0:
            area = given * image.scale[0] * image.scale[1]
            if of_box / 1000 < area < 1.5 * of_box + 1:
                return area
            self.notes.add("{n} areas do not fit their boxes and were computed anew", name)
        return of_box if mask is None else _mask_area(mask, image.size)

    def _mask(self, name: Any, value: Any, image: ImageFile) -> tuple[Mask | None, str]:
        """The mask in the picture's pixels, or what is wrong with it."""
        if not value:
            return None, "have no 'segmentation'"
        try:
            mask = _parse_mask(value, image)
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
            is_odd = any(len(polygon) >= 7 and len(polygon) % 2 for polygon in mask)
            what = "with an x that has no y" if is_odd else "of fewer than three points"
            self.notes.add(f"left out polygons {what}, of {{n}} annotations", name)
        if image.scale != (1, 1) or image.is_exchanged:
            self._check_size(name, mask_box(kept), image)
        return _fit(kept, image), ""

    def _box(
        self, name: Any, given: Box | None, image: ImageFile, of_mask: Box | None
    ) -> Box | None:
        """The box in the picture's pixels, clipped; None if there is none."""
        if given is None or (self.options.boxes_from_masks and of_mask):
            if of_mask is None:
                self.notes.add("left out {n} annotations that have neither box nor mask", name)
                return None
            reason = "as asked for" if given else "for they have none"
            self.notes.add(f"{{n}} boxes were computed from their masks, {reason}", name)
            return self._clipped(name, of_mask, image)
        self.num_boxes += 1
        self._check_size(name, given, image)
        x, y, width, height = given
        if image.scale != (1, 1):
            across, down = image.scale
            x, y, width, height = x * across, y * down, width * across, height * down
        if width <= 0 or height <= 0:
            if of_mask is None or min(of_mask[2:]) <= 0:
                self.notes.add("left out {n} annotations that have a box without area", name)
                return None
            self.notes.add("{n} boxes without area were computed from their masks", name)
            return of_mask
        box = [x, y, width, height]
        if of_mask:
            self.num_compared += 1
            if overlap(box, of_mask) < 0.5:
                self.strange.append(name)
        return self._clipped(name, box, image)

    def _clipped(self, name: Any, box: Box, image: ImageFile) -> Box | None:
        """The part of a box inside its picture; None if there is none."""
        x, y, width, height = box
        self.num_read += 1
        if max(x + width, y + height) <= 1.01 and min(image.size) > 2:
            self.tiny.append(name)
        if width <= 0 or height <= 0:
            self.notes.add("left out {n} annotations that have a mask without area", name)
            return None
        excess = _excess(box, image.size)
        if _is_outside(box, image.size):
            self.notes.add("left out {n} annotations that lie outside of their image", name)
            return None
        if excess > CLIPPED:
            self.beyond.append(name)
            self.num_corners += (
                width > x
                and height > y
                and max(-x, -y, width - image.size[0], height - image.size[1]) <= CLIPPED
            )
        clips = excess > CLIPPED or (excess > 0 and image.declared != image.size)
        return _clip(box, image.size) if clips else box

    def _check_size(self, name: Any, box: Box, image: ImageFile) -> None:
        """See that a box or mask, in the file's pixels, fits the size that the file gives.

        Raises:
            InputError: it fits the picture as it is, and not the size in the file.
        """
        if image.is_exchanged and _excess(box, image.size) > CLIPPED:
            raise InputError(BEFORE_EXIF)
        if image.scale == (1, 1):
            return
        right, bottom = box[0] + box[2] - CLIPPED, box[1] + box[3] - CLIPPED
        fits = right <= image.size[0] and bottom <= image.size[1]
        if fits and (right > image.declared[0] or bottom > image.declared[1]):
            raise InputError(
                "reaches beyond the size that the file gives its image, and not beyond the "
                f"picture's: {_times(image.declared)} and {_times(image.size)} of {image.path}; "
                "correct 'width' and 'height', or take them out"
            )
        if max(image.scale) < 0.8:
            self.smaller = image
            self.in_smaller.add(name)
            self.num_beyond_smaller += not fits

    def finish(self) -> None:
        """See that the boxes of the file mean what COCO's mean; note an error if many do not."""
        error = self.notes.error
        if len(self.in_smaller) >= ENOUGH and not self.num_beyond_smaller:
            size, declared = _times(self.smaller.size), _times(self.smaller.declared)
            error(
                f"pictures are smaller than the file says ({self.smaller.path} is {size}, not "
                f"{declared}), and all {len(self.in_smaller)} annotations of them lie inside of "
                "the smaller size: correct 'width' and 'height', or take them out"
            )
        if len(self.tiny) > 0.5 * self.num_read:
            error(
                f"{len(self.tiny)} of {self.num_read} annotations lie in the first pixel of their "
                f"images, {some(self.tiny)}: multiply coordinates that are parts of the image by "
                "its width and height, COCO's are in pixels"
            )
        many_strange = len(self.strange) > STRANGE * self.num_compared
        many_beyond = len(self.beyond) > STRANGE * self.num_boxes
        if many_strange and not self.options.boxes_as_given:
            way = "--boxes-from-masks makes new ones, --boxes-as-given keeps them"
            error(
                f"{len(self.strange)} of {self.num_compared} boxes are not those of their masks "
                f"(annotations {some(self.strange)}); COCO's are x, y, width, height"
                f"{self.options.hint(way)}"
            )
            return
        if many_beyond and self.num_corners > 0.9 * len(self.beyond):
            error(
                f"{len(self.beyond)} of {self.num_boxes} boxes reach beyond their images as "
                f"(x, y, width, height) and do not as (x1, y1, x2, y2) (annotations "
                f"{some(self.beyond)}); write them as COCO does"
            )
            return
        for name in self.strange:
            self.notes.add("{n} boxes are not those of their masks and stay as they are", name)
        for name in self.beyond:
            self.notes.add("{n} boxes reach beyond their images and were clipped", name)


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


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


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes (x, y, width, height)."""
    (x, y, width, height), (left, top, across, down) = one, other
    width_of_both = min(x + width, left + across) - max(x, left)
    height_of_both = min(y + height, top + down) - max(y, top)
    if width_of_both <= 0 or height_of_both <= 0:
        return float(one == other)
    both = width_of_both * height_of_both
    return both / (width * height + across * down - both)


def mask_box(mask: Mask) -> Box:
    """Return the box (x, y, width, height) of polygons or a compressed RLE."""
    if isinstance(mask, dict):
        return mask_util.toBbox(mask).tolist()
    xs = [x for polygon in mask for x in polygon[::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _mask_area(mask: Mask, size: tuple[int, int]) -> float:
    if isinstance(mask, list):
        mask = mask_util.merge(mask_util.frPyObjects(mask, size[1], size[0]))
    return float(mask_util.area(mask))


def _parse_mask(value: Any, image: ImageFile) -> Mask:
    """Return polygons in the file's pixels, or a compressed RLE of the picture's size.

    Raises:
        InputError: it is no mask, or of another size than the picture.
    """
    if isinstance(value, dict):
        return _read_rle(parse(RLE, value, RLE_MUST), image)
    if isinstance(value, list) and all(isinstance(v, dict) and "counts" in v for v in value):
        parts = [_read_rle(rle, image) for rle in parse(RLES, value, RLE_MUST)]
        return as_text(mask_util.merge(parts))
    return parse_polygons(value)


def _fit(outlines: list[list[float]], image: ImageFile) -> list[list[float]]:
    """Scale polygons to the picture's size, or clip them where it is a pixel or two off."""
    if image.declared == image.size:
        return outlines
    return [
        [min(max(v * image.scale[i % 2], 0), image.size[i % 2]) for i, v in enumerate(polygon)]
        for polygon in outlines
    ]


def _read_rle(rle: Rle, image: ImageFile) -> dict[str, Any]:
    """Return a compressed RLE of the picture's size.

    Raises:
        InputError: it is of another size than the picture, or its counts are none.
    """
    size, counts = [*rle["size"]], rle["counts"]
    height, width = image.declared[::-1]
    if size == [width, height] and image.is_exchanged:
        raise InputError(f"its RLE {BEFORE_EXIF}")
    if size != [height, width]:
        raise InputError(f"its RLE has size {size} (height, width), its image [{height}, {width}]")
    try:
        runs = decode_counts(counts) if isinstance(counts, str) else counts
    except InputError as error:
        raise InputError(f"its RLE cannot be decoded: {error}") from error
    if sum(runs) != height * width or min(runs) < 0:
        raise InputError(f"the counts of its RLE do not add up to {height} x {width}")
    mask = {"size": size, "counts": counts}
    if not isinstance(counts, str):
        mask = as_text(mask_util.frPyObjects(mask, height, width))
    return mask if image.declared == image.size else _resize(mask, image)


def _resize(mask: dict[str, Any], image: ImageFile) -> dict[str, Any]:
    """Scale a mask to the picture's size by its nearest pixels, or cut and fill it up."""
    if max(image.declared) > MOST_SCALED:
        raise InputError(f"its RLE of {_times(image.declared)} is too large to be scaled")
    pixels = np.pad(mask_util.decode(mask), (0, CLIPPED))  # the picture may be larger by so much
    across, down = image.scale
    rows = (np.arange(image.size[1]) / down).astype(int)
    columns = (np.arange(image.size[0]) / across).astype(int)
    return as_text(mask_util.encode(np.asfortranarray(pixels[np.ix_(rows, columns)])))
