"""The shape of COCO's JSON: known fields, text made numbers, and notes of all that is wrong."""

import codecs
import logging
import reprlib
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import from_json
from typing_extensions import Required, TypedDict

from ..config import FileError, InputError, MissingFileError
from ..files import IS_POINTER, LFS_POINTER

logger = logging.getLogger(__name__)

LISTED = 5  # so many examples are named in a message
LONGEST = 200  # characters of an example
KINDS = {"images": "image", "categories": "category", "annotations": "annotation"}
CONVERTING = "docs/own_data.md has commands that convert from other tools"
GREATEST_ID = 2**53  # JSON's integers are exact up to here
# Width times height below this: pycocotools counts the pixels of a mask in 32 bits.
MOST_PIXELS = 2**32

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def _no_underscore(value: Any) -> Any:
    """Keep names as "1_11" from becoming the number 111, as Python reads them."""
    if isinstance(value, str) and "_" in value:
        raise ValueError("it is a name")
    return value


# An integer where a value stands for one ("1", 1.0), else text.
Text = Annotated[str, Field(pattern=r"\S")]
Identity = Annotated[
    Annotated[int, BeforeValidator(_no_underscore)] | Text, Field(union_mode="left_to_right")
]
NothingIsNone = BeforeValidator(lambda value: None if value in ("", [], {}) else value)
# pycocotools takes memory in proportion to the length of an outline.
Coordinate = Annotated[float, Field(gt=-1e6, lt=1e6)]
Point = Annotated[list[Coordinate], Field(min_length=2, max_length=2)]
Polygon = (
    list[Coordinate]
    | Annotated[list[Point], AfterValidator(lambda points: [*chain.from_iterable(points)])]
)
Side = Annotated[Annotated[float, Field(ge=0, lt=MOST_PIXELS)] | None, NothingIsNone]


class Rle(TypedDict):
    """A run-length encoded mask."""

    size: tuple[NonNegativeInt, NonNegativeInt]
    counts: str | list[NonNegativeInt]


# A single polygon may stand without its outer list, and its points may be pairs.
Segmentation = Annotated[
    Rle | Annotated[Polygon, AfterValidator(lambda polygon: [polygon])] | list[Polygon],
    Field(union_mode="left_to_right"),
]


class ImageEntry(TypedDict, total=False):
    """An entry of "images"."""

    id: Required[Identity]
    file_name: Required[Text]
    width: Side
    height: Side


class CategoryEntry(TypedDict, total=False):
    """An entry of "categories"."""

    id: Required[Identity]
    name: Required[Annotated[Text, Field(coerce_numbers_to_str=True)]]
    supercategory: Any


class AnnotationEntry(TypedDict, total=False):
    """An entry of "annotations"; its id is read apart, for it may be absent."""

    image_id: Required[Identity]
    category_id: Required[Identity]
    bbox: Annotated[
        Annotated[list[Coordinate], Field(min_length=4, max_length=4)] | None, NothingIsNone
    ]
    area: Annotated[FiniteFloat | None, NothingIsNone]
    iscrowd: Annotated[bool | None, NothingIsNone]
    segmentation: Annotated[Segmentation | None, NothingIsNone]


class KeypointCategory(CategoryEntry, total=False):
    """A category where keypoints are needed."""

    keypoints: Annotated[list[str] | None, NothingIsNone]
    skeleton: Annotated[list[tuple[int, int]] | None, NothingIsNone]


class KeypointAnnotation(AnnotationEntry, total=False):
    """An annotation where keypoints are needed."""

    keypoints: Annotated[list[Coordinate] | None, NothingIsNone]


IDENTITY = TypeAdapter(Identity)
MUST = {
    **dict.fromkeys(("id", "image_id", "category_id"), "an integer or a text"),
    **dict.fromkeys(("file_name", "name"), "a text that is not empty"),
    **dict.fromkeys(("width", "height", "area"), "a number"),
    "bbox": "four numbers (x, y, width, height)",
    "iscrowd": "0 or 1",
    "segmentation": "RLE, 'size' [height, width] and 'counts', a list of numbers or a text; or a "
    "list of polygons, [[x1, y1, x2, ...], ...]",
    "keypoints": "a list of names in categories, of x, y and visibility in annotations",
    "skeleton": "pairs of numbers of its keypoints, from 1 on",
}


class Notes:
    """Collects what a reader finds in one file.

    Args:
        file: its name begins each warning.
        skip_annotations: whether wrong annotations are left out, with a warning.
    """

    def __init__(self, file: Path, skip_annotations: bool = False) -> None:
        self.file, self._skip = file, skip_annotations
        self.kinds: dict[str, list[Any]] = defaultdict(list)
        self.errors: list[str] = []
        """What is wrong, a line each, which begins with the entry's kind and id."""

    def add(self, kind: str, which: Any) -> None:
        """Note one repair: a sentence in which "{n}" is the number of cases, and the case's id."""
        self.kinds[kind].append(which)

    def error(self, text: str) -> None:
        """Note what is wrong."""
        self.errors.append(text)

    def error_in(self, kind: str, name: Any, text: str) -> None:
        """Note what is wrong with an entry of a list, which is left out."""
        if self._skip and kind == "annotation":
            self.add("{n} annotations are wrong and are left out", f"{name} ({text})")
        else:
            self.error(f"{kind} {name}: {text}")

    def report(self) -> None:
        """Warn of each kind of repair, with the number of its cases and some of them."""
        for kind, which in self.kinds.items():
            logger.warning(
                "%s: %s: %s", self.file, kind.replace("{n}", str(len(which))), some(which)
            )


def some(values: Sequence[Any]) -> str:
    """List the first few of some values."""
    texts = [str(value) for value in values[:LISTED]]
    listed = ", ".join(t if len(t) <= LONGEST else f"{t[:LONGEST]}..." for t in texts)
    return f"{listed}, ..." if len(values) > LISTED else listed


def plain(name: str) -> str:
    """Normalise a name for comparison: NFC, stripped, case-folded."""
    return unicodedata.normalize("NFC", name).strip().casefold()


@dataclass
class Entries:
    """The entries of a file that have the shape of COCO's."""

    images: list[ImageEntry]
    categories: list[CategoryEntry]
    annotations: list[tuple[int | str, int, AnnotationEntry]]
    """What messages call each, an id that pycocotools and hotcoco read, and the entry."""
    listed: dict[str, set[int | str | None]]
    """The ids in each list, those of wrong entries too."""
    num_annotations: int
    """Annotations of the file, wrong ones too."""


def load_entries(notes: Notes, annotated: bool = True, keypoints: bool = False) -> Entries:
    """Load a file and see that its entries have the shape of COCO's.

    Args:
        notes: of the file; they get an error for each entry that is wrong.
        annotated: whether it must have a list of annotations; COCO's test sets have none.
        keypoints: whether fields of keypoints are looked at.

    Raises:
        FileError, InputError: as :func:`load_json`.
    """
    content = load_json(notes.file, annotated)
    types = {
        "images": ImageEntry,
        "categories": KeypointCategory if keypoints else CategoryEntry,
        "annotations": KeypointAnnotation if keypoints else AnnotationEntry,
    }
    read: dict[str, list[Any]] = {}
    ids: dict[str, list[Any]] = {}
    for key, kind in KINDS.items():
        entries = content.get(key) or []
        if not entries and key != "annotations":
            notes.error(f"{key!r} is empty")
        adapter = TypeAdapter(types[key])
        ids[key] = [_id_of(entry) for entry in entries]
        names = [f"number {at} of the list" if i is None else i for at, i in enumerate(ids[key], 1)]
        read[key] = [
            (name, _read_entry(notes, kind, name, entry, adapter))
            for name, entry in zip(names, entries, strict=True)
        ]
    numbers = _annotation_ids(notes, ids["annotations"])
    return Entries(
        images=[entry for _, entry in read["images"] if entry],
        categories=[entry for _, entry in read["categories"] if entry],
        annotations=[
            (name, number, entry)
            for number, (name, entry) in zip(numbers, read["annotations"], strict=True)
            if entry
        ],
        listed={key: set(known) for key, known in ids.items()},
        num_annotations=len(numbers),
    )


def load_json(file: Path, annotated: bool = True) -> dict[str, Any]:
    """Load a file and see that it has the lists of COCO's format.

    Raises:
        MissingFileError: there is no such file.
        FileError: it cannot be read.
        InputError: it is no JSON, or in another format.
    """
    try:
        text = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise MissingFileError(f"there is no annotation file {file}") from None
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror}") from error
    try:
        content = from_json(text)
    except ValueError as error:
        if text.startswith(LFS_POINTER):
            raise InputError(f"{file} is {IS_POINTER}") from None
        raise InputError(f"{file} is no JSON: {error}; {CONVERTING}") from None
    for key in KINDS:
        value = content.get(key) if isinstance(content, dict) else None
        may_lack = key == "annotations" and not annotated and value is None
        if not isinstance(value, list) and not may_lack:
            raise InputError(
                f"{file} is not in COCO's format: it has no list {key!r}; {CONVERTING}"
            )
    return content


def _id_of(entry: Any) -> int | str | None:
    try:
        return IDENTITY.validate_python(entry.get("id")) if isinstance(entry, dict) else None
    except ValidationError:
        return None


def _read_entry(
    notes: Notes, kind: str, name: int | str, entry: Any, adapter: TypeAdapter
) -> dict[str, Any] | None:
    """Read the fields of an entry; None, and an error that names the wrong ones, if it is wrong."""
    try:
        return adapter.validate_python(entry)
    except ValidationError as error:
        fields = dict.fromkeys(e["loc"][0] for e in error.errors() if e["loc"])
        wrong = [f"{f!r} must be {MUST[f]}, got {_short.repr(entry.get(f))}" for f in fields]
        text = "; ".join(wrong) or f"it must be an object, got {_short.repr(entry)}"
        notes.error_in(kind, name, text)
        return None


def _is_usable(number: int | str | None) -> bool:
    """Whether pycocotools and hotcoco read an id as it is."""
    return isinstance(number, int) and 0 <= number < GREATEST_ID


def usable_ids(notes: Notes, key: str, entries: Sequence[Any]) -> dict[int | str, int]:
    """Map a list's ids to usable ones: all are numbered if some are text, negative or huge."""
    ids = dict.fromkeys(entry["id"] for entry in entries)
    odd = [known for known in ids if not _is_usable(known)]
    for known in odd:
        notes.add(f"{{n}} ids of {key} are no numbers from 0 on; all were numbered", known)
    return {known: at if odd else known for at, known in enumerate(ids, 1)}


def _annotation_ids(notes: Notes, ids: list[int | str | None]) -> list[int]:
    """Ids of annotations; all are numbered if some are no different numbers."""
    is_odd = len(set(ids)) < len(ids) or not all(map(_is_usable, ids))
    if is_odd:
        notes.add("annotations were numbered, for ids are absent, double or text", len(ids))
    # pycocotools takes 0 for "not matched".
    return list(range(1, len(ids) + 1)) if is_odd or 0 in ids else ids
