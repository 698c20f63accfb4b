"""The shape of COCO's JSON: known fields, text made numbers, and notes of all that is wrong."""

import codecs
import logging
import re
import reprlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
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
from ..files import IS_POINTER, LFS_POINTER

logger = logging.getLogger(__name__)

LISTED = 5  # so many examples are named in a message
LONGEST = 200  # characters of an example
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


Identity = Annotated[
    StrictInt | Annotated[StrictFloat | StrictStr, AfterValidator(_identity)],
    Field(union_mode="left_to_right"),
]
Side = Annotated[Annotated[float, Field(gt=0.5, lt=MOST_PIXELS)] | None, WrapValidator(_or_none)]
Text = Annotated[StrictStr, Field(pattern=r"\S")]
Name = Annotated[
    Text, BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value)
]
# pycocotools takes memory in proportion to the length of an outline.
Coordinate = Annotated[float, Field(gt=-1e6, lt=1e6)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
NothingIsNone = BeforeValidator(lambda value: None if value in ("", []) else value)


class ImageEntry(TypedDict, total=False):
    """An entry of "images"."""

    id: Required[Identity]
    file_name: Required[Text]
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

    image_id: Required[Identity]
    category_id: Required[Identity]
    bbox: Annotated[Box | None, NothingIsNone]
    area: Annotated[FiniteFloat | None, NothingIsNone]
    iscrowd: Annotated[bool | None, NothingIsNone]
    segmentation: Any
    keypoints: Any


ENTRIES = {
    "images": TypeAdapter(ImageEntry),
    "categories": TypeAdapter(CategoryEntry),
    "annotations": TypeAdapter(AnnotationEntry),
}
IDENTITY = TypeAdapter(Annotated[Identity | None, WrapValidator(_or_none)])
COORDINATES = TypeAdapter(list[Coordinate])
NAMES = TypeAdapter(list[StrictStr])
PAIRS = TypeAdapter(list[tuple[int, int]])

MUST = {
    **dict.fromkeys(("id", "image_id", "category_id"), "a number or a text"),
    **dict.fromkeys(("file_name", "name"), "a text that is not empty"),
    "bbox": "four numbers (x, y, width, height)",
    "area": "a number",
    "iscrowd": "0 or 1",
}


class Notes:
    """Collects what a reader finds in one file.

    Args:
        file: its name begins each warning.
        skip_annotations: whether wrong annotations are left out, with a warning.
    """

    def __init__(self, file: Path, skip_annotations: bool = False) -> None:
        self.file, self._skip = file, skip_annotations
        self._skipped: set[Any] = set()
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
        """Note what is wrong with an entry of a list."""
        if self._skip and kind == "annotation":
            if name not in self._skipped:
                self.add("{n} annotations are wrong and are left out", f"{name} ({text})")
            self._skipped.add(name)
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
    annotations: list[AnnotationEntry | None]
    """None where an annotation is wrong."""
    image_ids: dict[int | str, int]
    """For each id in the file one that pycocotools and hotcoco read."""
    category_ids: dict[int | str, int]
    annotation_ids: list[int]
    """An id for each annotation."""
    names: list[int | str]
    """What messages call each annotation: its id in the file, or its place."""
    listed: dict[str, set[int | str]]
    """The ids in each list, those of wrong entries too."""


def load_entries(notes: Notes, annotated: bool = True) -> Entries:
    """Load a file and see that its entries have the shape of COCO's.

    Args:
        notes: of the file; they get an error for each field that is wrong.
        annotated: whether it must have a list of annotations; COCO's test sets have none.

    Raises:
        FileError, InputError: as :func:`load_json`.
    """
    loaded = load_json(notes.file, annotated)
    content = {key: loaded.get(key) or [] for key in LISTS}
    ids = {key: [_id_of(entry) for entry in content[key]] for key in LISTS}
    names = {key: _names(ids[key]) for key in LISTS}
    for key in LISTS:
        if not content[key] and key != "annotations":
            notes.error(f"{key!r} is empty")
        _check_entries(notes, key, content[key], names[key])
    images = [entry for entry in content["images"] if entry is not None]
    categories = [entry for entry in content["categories"] if entry is not None]
    return Entries(
        images,
        categories,
        content["annotations"],
        _usable_ids(notes, "images", images),
        _usable_ids(notes, "categories", categories),
        _annotation_ids(notes, ids["annotations"]),
        names["annotations"],
        {key: set(known) for key, known in ids.items()},
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
    for key in LISTS:
        value = content.get(key) if isinstance(content, dict) else None
        may_lack = key == "annotations" and not annotated and value is None
        if not isinstance(value, list) and not may_lack:
            raise InputError(
                f"{file} is not in COCO's format: it has no list {key!r}; {CONVERTING}"
            )
    return content


def _id_of(entry: Any) -> int | str | None:
    return IDENTITY.validate_python(entry.get("id")) if isinstance(entry, dict) else None


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
                text = f"it must be an object, got {_short.repr(entry)}"
                notes.error_in(kind, names[index], text)
                continue
            for field in dict.fromkeys(str(e["loc"][0]) for e in error.errors()):
                given = _short.repr(entry.get(field))
                text = f"{field!r} must be {MUST[field]}, got {given}"
                notes.error_in(kind, names[index], text)


def _names(ids: list[int | str | None]) -> list[int | str]:
    """What messages call entries: their ids, or their places where an id is absent or double."""
    counts = Counter(ids)
    counts[None] = 0
    return [
        known if counts[known] == 1 else f"number {at} of the list"
        for at, known in enumerate(ids, 1)
    ]


def _is_usable(number: int | str | None) -> bool:
    """Whether pycocotools and hotcoco read an id as it is."""
    return isinstance(number, int) and 0 <= number < GREATEST_ID


def _usable_ids(notes: Notes, key: str, entries: list[Any]) -> dict[int | str, int]:
    """Map a list's ids to usable ones: all are numbered if some are text, negative or huge."""
    ids = dict.fromkeys(entry["id"] for entry in entries)
    odd = [known for known in ids if not _is_usable(known)]
    for known in odd:
        notes.add(f"{{n}} ids of {key} are no numbers from 0 on; all were numbered", known)
    return {known: at if odd else known for at, known in enumerate(ids, 1)}


def _annotation_ids(notes: Notes, ids: list[int | str | None]) -> list[int]:
    """Ids of annotations; all are numbered if some are no different numbers."""
    if len(set(ids)) < len(ids) or not all(map(_is_usable, ids)):
        for known in ids:
            notes.add("{n} annotations were numbered, for ids are absent, double or text", known)
        return list(range(1, len(ids) + 1))
    # pycocotools takes 0 for "not matched".
    return [known + 1 for known in ids] if 0 in ids else ids


def parse(adapter: TypeAdapter, value: Any, must: str) -> Any:
    """Read a value.

    Raises:
        InputError: it is of another shape; the message begins with "must", what it has to be.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError:
        raise InputError(f"{must}, got {_short.repr(value)}") from None
