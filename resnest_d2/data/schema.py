"""The shape of COCO's JSON: entries with known fields, text made numbers, all errors at once."""

import codecs
import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic_core import from_json
from typing_extensions import Required, TypedDict

from ..config import FileError, InputError, MissingFileError
from .notes import Notes

LISTS = ("images", "annotations", "categories")
CONVERTING = "docs/own_data.md has commands that convert from other tools"
GREATEST_ID = 2**53  # JSON's integers are exact up to here
# Width times height below this: pycocotools counts the pixels of a mask in 32 bits.
MOST_PIXELS = 2**32

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def _identity(value: float | str) -> int | str:
    """An id that is no integer: an integer where it stands for one ("1", 1.0), else text."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    if not value.strip():
        raise ValueError("an empty text is no id")
    is_integer = re.fullmatch(r"\s*-?\d+(\.0*)?\s*", value, re.ASCII) and len(value) < 1000
    return int(value.partition(".")[0]) if is_integer else value


def _or_none(value: Any, handler: Any) -> Any:
    """Read a value that may as well be absent where it cannot be read."""
    try:
        return handler(value)
    except ValidationError:
        return None


def _box(value: Any, handler: Any) -> list[float] | None:
    """Read (x, y, width, height): a list, an object or a text; None where it is absent."""
    if value is None or value in ([], ""):
        return None
    if isinstance(value, dict):
        width, height = value.get("width", value.get("w")), value.get("height", value.get("h"))
        value = [value.get("x"), value.get("y"), width, height]
    elif isinstance(value, str):
        value = re.split(r"[\s,;]+", value.strip(" \t\n[]()"))
    return handler(value)


Identity = Annotated[
    StrictInt | Annotated[StrictFloat | StrictStr, AfterValidator(_identity)],
    Field(union_mode="left_to_right"),
]
Side = Annotated[Annotated[float, Field(gt=0.5, lt=MOST_PIXELS)] | None, WrapValidator(_or_none)]
Text = Annotated[StrictStr | None, WrapValidator(_or_none)]
Name = Annotated[
    StrictStr,
    BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value),
    Field(pattern=r"\S"),
]
# pycocotools takes memory in proportion to the length of an outline.
Coordinate = Annotated[float, Field(gt=-1e6, lt=1e6)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
NothingIsNone = BeforeValidator(lambda value: None if value == "" else value)


class ImageEntry(TypedDict, total=False):
    """An entry of "images"."""

    id: Required[Identity]
    file_name: Text
    path: Text
    coco_url: Text
    width: Side
    height: Side


class CategoryEntry(TypedDict, total=False):
    """An entry of "categories"; keypoints are looked at where a model learns them."""

    id: Required[Identity]
    name: Required[Name]
    supercategory: Any
    keypoints: Any
    skeleton: Any


class AnnotationEntry(TypedDict, total=False):
    """An entry of "annotations"; masks and keypoints are looked at by those who need them."""

    image_id: Required[Annotated[Identity | None, WrapValidator(_or_none)]]
    category_id: Required[Identity]
    bbox: Annotated[Box | None, WrapValidator(_box)]
    area: Annotated[FiniteFloat | None, NothingIsNone]
    iscrowd: Annotated[bool | None, NothingIsNone]
    ignore: Annotated[bool | None, NothingIsNone]
    segmentation: Any
    keypoints: Any
    attributes: Any


class Rle(TypedDict):
    """A run-length encoded mask."""

    size: tuple[NonNegativeInt, NonNegativeInt]
    counts: StrictStr | list[NonNegativeInt]


ENTRIES = {
    "images": TypeAdapter(ImageEntry),
    "categories": TypeAdapter(CategoryEntry),
    "annotations": TypeAdapter(AnnotationEntry),
}
IDENTITY = TypeAdapter(Annotated[Identity | None, WrapValidator(_or_none)])
COORDINATES = TypeAdapter(list[Coordinate])
NAMES = TypeAdapter(list[StrictStr])
PAIRS = TypeAdapter(list[tuple[int, int]])
RLE = TypeAdapter(Rle)
RLES = TypeAdapter(list[Rle])
POLYGONS = TypeAdapter(list[list[Coordinate]])

ID = "a number or a text"
MUST = {
    "id": ID,
    "category_id": ID,
    "image_id": ID,
    "name": "a text that is not empty",
    "bbox": "four numbers (x, y, width, height)",
    "area": "a number",
    "iscrowd": "0 or 1",
    "ignore": "0 or 1",
}


@dataclass
class Entries:
    """The entries of a file that have the shape of COCO's."""

    images: list[ImageEntry]
    categories: list[CategoryEntry]
    annotations: list[AnnotationEntry | None]
    """None where an annotation is wrong."""
    numbers: list[int]
    """An id for each annotation."""
    names: list[int | str]
    """What messages call each annotation: its id in the file, or its place."""

    def take_annotations(self) -> Iterator[tuple[int, int | str, AnnotationEntry]]:
        """Yield id, name and entry of each annotation; its memory is then free."""
        for index, (number, name) in enumerate(zip(self.numbers, self.names, strict=True)):
            entry, self.annotations[index] = self.annotations[index], None
            if entry is not None:
                yield number, name, entry


def load_entries(notes: Notes, annotated: bool = True) -> Entries:
    """Load a file and see that its entries have the shape of COCO's.

    Args:
        notes: of the file; they get an error for each field that is wrong.
        annotated: whether it must have a list of annotations; COCO's test sets have none.

    Raises:
        MissingFileError: there is no such file.
        FileError: it cannot be read.
        InputError: it is no JSON, or in another format.
    """
    content = _load_json(notes.file, annotated)
    ids = {}
    for key, entries in content.items():
        ids[key] = [
            IDENTITY.validate_python(entry.get("id")) if isinstance(entry, dict) else None
            for entry in entries
        ]
    names = {key: _names(found) for key, found in ids.items()}
    for key in ("categories", "images"):
        if not content[key]:
            notes.error(f"{key!r} is empty")
    for key, entries in content.items():
        _check_entries(notes, key, entries, names[key])
    return Entries(
        [entry for entry in content["images"] if entry is not None],
        [entry for entry in content["categories"] if entry is not None],
        content["annotations"],
        _annotation_numbers(notes, ids["annotations"]),
        names["annotations"],
    )


def _load_json(file: Path, annotated: bool) -> dict[str, list[Any]]:
    try:
        text = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise MissingFileError(f"there is no annotation file {file}") from None
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror}") from error
    try:
        content = from_json(text)
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}; {CONVERTING}") from None
    if not annotated and isinstance(content, dict):
        content.setdefault("annotations", [])
    for key in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(
                f"{file} is not in COCO's format: it has no list {key!r}; {CONVERTING}"
            )
    return {key: content[key] for key in LISTS}


def _check_entries(notes: Notes, key: str, entries: list[Any], names: list[Any]) -> None:
    """Read the fields of a list's entries, in place; a wrong entry is noted and becomes None."""
    kind = {"categories": "category"}.get(key, key[:-1])
    adapter = ENTRIES[key]
    for index, entry in enumerate(entries):
        try:
            entries[index] = adapter.validate_python(entry)
        except ValidationError as error:
            entries[index] = None
            if not isinstance(entry, dict):
                notes.error(f"{kind} {names[index]} must be an object, got {_short.repr(entry)}")
                continue
            for field in dict.fromkeys(str(e["loc"][0]) for e in error.errors()):
                given = _short.repr(entry.get(field))
                notes.error(f"{kind} {names[index]}: {field!r} must be {MUST[field]}, got {given}")


def _names(ids: list[int | str | None]) -> list[int | str]:
    """What messages call entries: their ids, or their places where an id is absent or double."""
    counts = Counter(ids)
    counts[None] = 0
    return [
        known if counts[known] == 1 else f"number {at} of the list"
        for at, known in enumerate(ids, 1)
    ]


def is_usable(number: Any) -> bool:
    """Whether pycocotools and hotcoco read an id as it is."""
    return isinstance(number, int) and 0 <= number < GREATEST_ID


def _annotation_numbers(notes: Notes, ids: list[int | str | None]) -> list[int]:
    """Ids of annotations; all are numbered if some are no different positive integers."""
    problems = {
        "are absent": sum(number is None for number in ids),
        "are no numbers": sum(n is not None and not is_usable(n) for n in ids),
        "are there twice": len(ids) - len(set(ids)),
    }
    for problem, count in problems.items():
        if count:
            kind = f"annotations were numbered anew, because {count} of their {{n}} ids {problem}"
            for number in ids:
                notes.add(kind, number)
            return list(range(1, len(ids) + 1))
    # pycocotools takes 0 for "not matched".
    return [number + 1 for number in ids] if 0 in ids else list(ids)


def parse(adapter: TypeAdapter, value: Any, must: str) -> Any:
    """Read a value.

    Raises:
        InputError: it is of another shape; the message begins with "must", what it has to be.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError:
        raise InputError(f"{must}, got {_short.repr(value)}") from None


def parse_polygons(value: Any) -> list[list[float]]:
    """Return polygons as lists (x1, y1, x2, y2, ...).

    A single polygon may stand without its outer list, points may be pairs or objects, and all of
    it a text.

    Raises:
        InputError: these are no polygons.
    """
    must = "'segmentation' must be RLE or a list of polygons, [[x1, y1, x2, ...], ...]"
    try:
        polygons = POLYGONS.validate_python(value)
        if not all(len(polygon) == 2 for polygon in polygons):
            return polygons
    except ValidationError:  # it is written in another way than COCO's
        pass
    if isinstance(value, str):
        try:
            value = from_json(value)
        except ValueError:
            raise InputError(f"{must}, got {_short.repr(value)}") from None
    if isinstance(value, list):
        if all(map(_is_point, value)) or not any(isinstance(part, list) for part in value):
            value = [value]
        value = [_flat(part) for part in value if part != []]
    return parse(POLYGONS, value, must)


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return "x" in value and "y" in value
    return isinstance(value, list) and len(value) == 2 and not any(map(_is_nested, value))


def _is_nested(value: Any) -> bool:
    return isinstance(value, (list, dict))


def _flat(polygon: Any) -> Any:
    """Return a polygon whose points are pairs or objects as one list."""
    if not isinstance(polygon, list) or not polygon or not all(map(_is_point, polygon)):
        return polygon
    pairs = ([p["x"], p["y"]] if isinstance(p, dict) else p for p in polygon)
    return [coordinate for pair in pairs for coordinate in pair]
