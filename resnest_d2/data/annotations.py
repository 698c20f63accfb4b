"""Boxes and masks of annotations, repaired where that has one sensible meaning, else refused."""

from collections.abc import Callable
from statistics import fmean, median
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from ..config import InputError
from .image_files import CLIPPED, ImageFile
from .notes import Notes, some
from .repair import Options
from .rle import as_text, decode_counts
from .values import Box, clip, excess, is_outside, number, numbers, polygons
from .values import box as read_box

Mask = list[list[float]] | dict[str, Any]
ENOUGH = 20  # annotations that all lie in one part of their pictures are there for a reason


class AnnotationReader:
    """Reads the annotations of a file, one after the other.

    Args:
        notes: of the file.
        masks: whether masks are needed; without one an annotation is left out.
        options: the user's decisions.
    """

    def __init__(self, notes: Notes, masks: bool, options: Options) -> None:
        self.notes, self.masks, self.options = notes, masks, options
        # Boxes that are not their masks': what to call the annotation, box, and the mask's box.
        self.strange: list[tuple[Any, Box, Box]] = []
        self.compared = 0
        # Boxes that reach beyond their images, with these.
        self.beyond: list[tuple[Any, Box, ImageFile]] = []
        # Annotations beyond pictures whose size in the file is that of before EXIF turns them.
        self.turned: list[Any] = []
        # Annotations that fit the picture as it is, and not the size that the file gives it.
        self.other_size: list[tuple[Any, ImageFile]] = []
        # Annotations of pictures that are smaller than the file says, in which all may lie.
        self.in_smaller: dict[Any, ImageFile] = {}
        self.beyond_smaller = False
        # Annotations inside the first pixel, as coordinates in parts of the image are.
        self.tiny: list[Any] = []
        self.read_boxes = self.num_read = 0
        # The name and the mask of each box's first annotation.
        self._seen: dict[str, tuple[Any, Mask | None]] = {}

    def read(self, name: Any, entry: dict[str, Any], image: ImageFile) -> dict[str, Any] | None:
        """Return box, mask, area and crowd flag of an annotation; None if it is left out.

        Args:
            name: what messages call it, its id or its place.
            entry: the annotation.
            image: its picture.

        Raises:
            InputError: it contradicts itself.
        """
        mask, problem = self._mask(name, entry, image)
        of_mask = None if mask is None else mask_box(mask)
        if of_mask and image.is_exchanged and excess(of_mask, image.size) > CLIPPED:
            self.turned.append(name)
        if of_mask and is_outside(of_mask, image.size):
            mask = of_mask = None
            problem = "have a mask outside of their image"
        box = self._box(name, entry, image, of_mask and clip(of_mask, image.size))
        if box is None:
            return None
        iscrowd = self._flag(name, entry, "iscrowd")
        if self._flag(name, entry, "ignore") and not iscrowd:
            self.notes.add("{n} annotations to ignore ('ignore' 1) count as crowds", name)
            iscrowd = 1
        if iscrowd and self.options.crowd_as_instances:
            self.notes.add("{n} crowds were taken as objects", name)
            iscrowd = 0
        if self.masks and mask is None:
            self.notes.add(
                f"left out {{n}} annotations that {problem}, so that these objects count as "
                "background; a faster_ or cascade_box_ config takes their boxes",
                name,
            )
            return None
        area = self._area(name, entry, image, box, mask)
        self._look_around(name, entry, box, mask)
        found = {"bbox": box, "area": area, "iscrowd": iscrowd}
        return found | ({} if mask is None else {"segmentation": mask})

    def _flag(self, name: Any, entry: dict[str, Any], key: str) -> int:
        given = entry.get(key) or 0
        flag = number(int(given) if isinstance(given, bool) else given)
        if flag not in (0, 1):
            raise InputError(f"{self._of(name)}: {key!r} must be 0 or 1, got {given!r}")
        return int(flag)

    def _area(
        self, name: Any, entry: dict[str, Any], image: ImageFile, box: Box, mask: Mask | None
    ) -> float:
        across, down = image.scale
        area = number(entry.get("area"))
        if entry.get("area") not in (None, "") and area is None:
            raise InputError(f"{self._of(name)}: 'area' must be a number, got {entry['area']!r}")
        of_box = box[2] * box[3]
        if area and area > 0:
            area *= across * down
            if of_box / 1000 < area < 1.5 * of_box + 1:
                return area
            self.notes.add("{n} areas do not fit their boxes and were computed anew", name)
        return of_box if mask is None else _mask_area(mask, image.size)

    def _look_around(self, name: Any, entry: dict[str, Any], box: Box, mask: Mask | None) -> None:
        """Note what is odd, and stays as it is."""
        key = (entry.get("image_id"), entry.get("category_id"), *box)
        same = self._seen.setdefault(str(key), (name, mask))
        if same[0] != name and same[1] == mask:
            kind = "{n} annotations repeat another one of their image, and count as objects too"
            self.notes.add(kind, f"{name} as {same[0]}")
        attributes = entry.get("attributes")
        if mask is None and isinstance(attributes, dict) and number(attributes.get("rotation")):
            self.notes.add("{n} boxes are rotated, which is not looked at", name)

    def _of(self, name: Any) -> str:
        return f"{self.notes.file}: annotation {name}"

    def _box(
        self, name: Any, entry: dict[str, Any], image: ImageFile, of_mask: Box | None
    ) -> Box | None:
        given = entry.get("bbox")
        if given in (None, [], "") or (self.options.boxes_from_masks and of_mask):
            if of_mask is None:
                self.notes.add("left out {n} annotations that have neither box nor mask", name)
                return None
            reason = "as asked for" if given else "for they have none"
            self.notes.add(f"{{n}} boxes were computed from their masks, {reason}", name)
            return self._inside(name, of_mask, image)
        box = read_box(given)
        if box is None:
            raise InputError(
                f"{self._of(name)}: 'bbox' must be four numbers (x, y, width, height), got {given}"
            )
        self.read_boxes += 1
        across, down = image.scale
        if (across, down) != (1, 1):
            self._note_size(name, box[0] + box[2], box[1] + box[3], image)
            box = [box[0] * across, box[1] * down, box[2] * across, box[3] * down]
        if box[2] <= 0 or box[3] <= 0:
            if of_mask is None or min(of_mask[2:]) <= 0:
                self.notes.add("left out {n} annotations that have a box without area", name)
                return None
            self.notes.add("{n} boxes without area were computed from their masks", name)
            return of_mask
        if of_mask:
            self.compared += 1
            if overlap(box, of_mask) < 0.5:
                self.strange.append((name, box, of_mask))
        return self._inside(name, box, image)

    def _note_size(self, name: Any, right: float, bottom: float, image: ImageFile) -> None:
        """Note an annotation for which only one of the picture's two sizes can be right."""
        beyond = [v > d + CLIPPED for v, d in zip((right, bottom), image.declared, strict=True)]
        fits = [v <= s + CLIPPED for v, s in zip((right, bottom), image.size, strict=True)]
        if any(beyond) and all(fits):
            self.other_size.append((name, image))
        if max(image.scale) < 0.8:
            self.in_smaller[name] = image
            self.beyond_smaller = self.beyond_smaller or not all(fits)

    def _inside(self, name: Any, box: Box, image: ImageFile) -> Box | None:
        x, y, width, height = box
        self.num_read += 1
        if max(x + width, y + height) <= 1.01 and min(image.size) > 2:
            self.tiny.append(name)
        if width <= 0 or height <= 0:
            self.notes.add("left out {n} annotations that have a mask without area", name)
            return None
        most = excess(box, image.size)
        if image.is_exchanged and most > CLIPPED:
            self.turned.append(name)
        if is_outside(box, image.size):
            self.notes.add("left out {n} annotations that lie outside of their image", name)
            return None
        if most > CLIPPED:
            self.beyond.append((name, box, image))
        clips = most > CLIPPED or (most > 0 and image.declared != image.size)
        return clip(box, image.size) if clips else box

    def _mask(self, name: Any, entry: dict[str, Any], image: ImageFile) -> tuple[Mask | None, str]:
        """The mask in the picture's pixels, or what is wrong with it."""
        value = entry.get("segmentation")
        listed = value if isinstance(value, list) else ()
        is_rle = [isinstance(v, dict) and "counts" in v for v in listed]
        if not value:
            return None, "have no 'segmentation'"
        try:
            if isinstance(value, dict):
                mask = _read_rle(self._of(name), value, image)
                return (mask, "") if mask_util.area(mask) else (None, "have an empty RLE")
            if is_rle and all(is_rle):  # parts of one object
                parts = [_read_rle(self._of(name), part, image) for part in value]
                mask = as_text(mask_util.merge(parts))
                return (mask, "") if mask_util.area(mask) else (None, "have an empty RLE")
            outlines = polygons(value)
            if outlines is None:
                raise InputError(
                    f"{self._of(name)}: 'segmentation' must be RLE or a list of polygons, "
                    "[[x1, y1, x2, ...], ...]"
                )
        except InputError:
            if self.masks:
                raise
            self.notes.add("{n} masks cannot be read, and are not needed", name)
            return None, ""
        # Detectron2's readers, and pycocotools, refuse the others.
        kept = [p for p in outlines if len(p) >= 6 and len(p) % 2 == 0]
        if len(kept) < len(outlines) and kept:
            is_odd = any(len(p) >= 6 for p in outlines if p not in kept)
            what = "with an x that has no y" if is_odd else "of fewer than three points"
            self.notes.add(f"left out polygons {what}, of {{n}} annotations", name)
        if not kept:
            return None, "have no polygon of three points or more, each with x and y"
        if image.scale != (1, 1):
            x, y, width, height = mask_box(kept)
            self._note_size(name, x + width, y + height, image)
        return _fit(kept, image), ""

    def check_boxes(self) -> None:
        """See that the boxes of the file mean what COCO's mean.

        Raises:
            InputError: many boxes are not those of their masks, reach beyond their images where
                corners would not, or lie in pictures that were turned after they were annotated.
        """
        if self.turned:
            names = some(list(dict.fromkeys(self.turned)))
            raise InputError(f"{self.notes.file}: boxes, of annotations {names}, are {BEFORE_EXIF}")
        if self.other_size:
            name, image = self.other_size[0]
            sizes = [" x ".join(map(str, size)) for size in (image.declared, image.size)]
            names = some(list(dict.fromkeys(name for name, _ in self.other_size)))
            raise InputError(
                f"{self.notes.file}: annotations {names} reach beyond the size that the file gives "
                f"their images, and not beyond that of the pictures: {sizes[0]} and {sizes[1]} of "
                f"{image.path}; correct 'width' and 'height', or take them out"
            )
        if len(self.in_smaller) >= ENOUGH and not self.beyond_smaller:
            image = next(iter(self.in_smaller.values()))
            sizes = [" x ".join(map(str, size)) for size in (image.declared, image.size)]
            raise InputError(
                f"{self.notes.file}: pictures are smaller than the file says ({image.path} is "
                f"{sizes[1]}, not {sizes[0]}), and all {len(self.in_smaller)} annotations of them "
                "lie inside of the smaller size: correct 'width' and 'height', or take them out"
            )
        if len(self.tiny) > 0.5 * self.num_read:
            raise InputError(
                f"{self.notes.file}: {len(self.tiny)} of {self.num_read} annotations lie in the "
                f"first pixel of their images, {some(self.tiny)}: multiply coordinates that are "
                "parts of the image by its width and height, COCO's are in pixels"
            )
        if len(self.strange) > 0.2 * self.compared:
            likely = [
                pattern
                for pattern, meant in PATTERNS.items()
                if median(overlap(meant(box), of_mask) for _, box, of_mask in self.strange) > 0.8
            ]
            looks = f" and look like ({likely[0]})" if likely else ""
            raise InputError(
                f"{self.notes.file}: {len(self.strange)} of {self.compared} boxes are not those of "
                f"their masks{looks}, where COCO's are (x, y, width, height), of annotations "
                f"{some([name for name, *_ in self.strange])}"
                f"{self.options.hint('--boxes-from-masks makes new ones')}"
            )
        for name, *_ in self.strange:
            self.notes.add("{n} boxes are not those of their masks and stay as they are", name)
        corners = PATTERNS["x1, y1, x2, y2"]
        if (
            self.beyond
            and len(self.beyond) > 0.2 * self.read_boxes
            and fmean(
                min(corners(box)[2:]) > 0 and excess(corners(box), image.size) <= CLIPPED
                for _, box, image in self.beyond
            )
            > 0.9
        ):
            raise InputError(
                f"{self.notes.file}: {len(self.beyond)} of {self.read_boxes} boxes reach beyond "
                "their images as (x, y, width, height) and do not as (x1, y1, x2, y2), of "
                f"annotations {some([name for name, *_ in self.beyond])}; write them as COCO does"
            )
        for name, *_ in self.beyond:
            self.notes.add("{n} boxes reach beyond their images and were clipped", name)


BEFORE_EXIF = (
    "of a picture as it is stored, before EXIF turns it; remove the tag from the files: "
    "exiftool -Orientation= FOLDER"
)
# How boxes are written that are not (x, y, width, height), and what these mean.
PATTERNS: dict[str, Callable[[Box], Box]] = {
    "centre x, centre y, width, height": lambda b: [b[0] - b[2] / 2, b[1] - b[3] / 2, b[2], b[3]],
    "x1, y1, x2, y2": lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]],
    "y, x, height, width": lambda b: [b[1], b[0], b[3], b[2]],
    "y1, x1, y2, x2": lambda b: [b[1], b[0], b[3] - b[1], b[2] - b[0]],
}


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


def _fit(outlines: list[list[float]], image: ImageFile) -> list[list[float]]:
    """Scale polygons to the picture's size, or clip them where it is a pixel or two off."""
    if image.declared == image.size:
        return outlines
    return [
        [min(max(v * image.scale[i % 2], 0), image.size[i % 2]) for i, v in enumerate(polygon)]
        for polygon in outlines
    ]


def _read_rle(name: str, value: dict[str, Any], image: ImageFile) -> dict[str, Any]:
    """Return a compressed RLE of the picture's size.

    Raises:
        InputError: it is of another size than the picture, or its counts are none.
    """
    size, counts = numbers(value.get("size")), value.get("counts")
    height, width = image.declared[::-1]
    if size == [width, height] and image.is_exchanged:
        raise InputError(f"{name}: its RLE is {BEFORE_EXIF}")
    if size != [height, width]:
        raise InputError(
            f"{name}: its RLE has size {value.get('size')} (height, width), its image "
            f"[{height}, {width}]"
        )
    if isinstance(counts, str):
        try:
            runs = decode_counts(counts)
        except ValueError as error:
            raise InputError(f"{name}: its RLE cannot be decoded: {error}") from error
    else:
        runs = numbers(counts)
        if runs is None:
            raise InputError(f"{name}: 'counts' of its RLE must be a list of numbers or a string")
    if any(run < 0 or int(run) != run for run in runs) or sum(runs) != height * width:
        raise InputError(f"{name}: the counts of its RLE do not add up to {height} x {width}")
    mask = {"size": [height, width], "counts": counts}
    if not isinstance(counts, str):
        mask["counts"] = [int(run) for run in runs]
        mask = as_text(mask_util.frPyObjects(mask, height, width))
    return mask if image.declared == image.size else _resize(mask, image)


def _resize(mask: dict[str, Any], image: ImageFile) -> dict[str, Any]:
    """Scale a mask to the picture's size by its nearest pixels, or cut and fill it up."""
    pixels = np.pad(mask_util.decode(mask), (0, CLIPPED))  # the picture may be larger by so much
    across, down = image.scale
    rows = (np.arange(image.size[1]) / down).astype(int)
    columns = (np.arange(image.size[0]) / across).astype(int)
    return as_text(mask_util.encode(np.asfortranarray(pixels[np.ix_(rows, columns)])))
