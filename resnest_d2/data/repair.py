"""Lists of categories and images as tools write them, and what a user decides about a file.

What has one sensible meaning is repaired and noted; what has two is refused.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import InputError, did_you_mean
from .notes import Notes
from .values import identity, plain, size


@dataclass(frozen=True)
class Options:
    """A user's decisions where an annotation file can mean two things."""

    skip_missing: bool = False
    crowd_as_instances: bool = False
    merge_classes: bool = False
    boxes_from_masks: bool = False
    skip_bad_images: bool = False
    """Leave out pictures that cannot be read; an option of training."""
    offered: bool = True
    """Whether messages tell the user of these decisions."""

    HELP: ClassVar = {
        "skip_missing": "leave out images whose files are not there",
        "crowd_as_instances": "take annotations with iscrowd 1 as objects",
        "merge_classes": "make one class of categories that have the same name",
        "boxes_from_masks": "compute every box from its mask",
    }

    def hint(self, text: str) -> str:
        """The end of a message, of which option is the way out, where there are options."""
        return f"; {text}" if self.offered else ""

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """Add these decisions to a command line."""
        for name, text in cls.HELP.items():
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Options":
        """Take them from parsed arguments; those that a parser does not have are False."""
        names = (*cls.HELP, "skip_bad_images")
        return cls(**{name: vars(args).get(name, False) for name in names})


def read_categories(
    notes: Notes,
    entries: Sequence[dict[str, Any]],
    used: Collection[Any],
    options: Options,
    named_in_val: Callable[[], Collection[str]] = tuple,
) -> tuple[dict[int, str], dict[Any, int]]:
    """Read the classes.

    Args:
        notes: of the annotation file.
        entries: "categories" of the file.
        used: ids that annotations have.
        options: whether those of one name become one class.
        named_in_val: returns the names of classes that the validation set uses.

    Returns:
        names by id, in the order of the ids, and the id that stands for each id of the file.

    Raises:
        InputError: an entry lacks an id or a name, or one id has two names.
    """
    names: dict[Any, str] = {}
    for entry in entries:
        key, name = identity(entry.get("id")), entry.get("name")
        if key is None or not isinstance(name, (str, int, float)) or not str(name).strip():
            raise InputError(f"{notes.file}: a category needs an 'id' and a 'name', got {entry}")
        if not isinstance(name, str):
            notes.add("{n} category names are numbers, which became text", name)
        if names.get(key, str(name)) != str(name):
            raise InputError(f"{notes.file}: category {key} is {names[key]!r} and {name!r}")
        if key in names:
            notes.add("{n} categories are listed twice", key)
        names[key] = str(name)
    if not names:
        raise InputError(f"{notes.file}: 'categories' is empty")
    phantom = _phantom(entries, names, used)
    if phantom is not None and names[phantom] not in named_in_val():
        notes.add(
            "left out {n} category that no annotation has and that stands for all others",
            repr(names.pop(phantom)),
        )
    ids = {key: key for key in names}
    if not all(isinstance(key, int) for key in names):
        ids = {key: index for index, key in enumerate(names, 1)}
        for key in names:
            if not isinstance(key, int):
                notes.add("{n} categories have ids that are no numbers; all were numbered", key)
    first: dict[str, int] = {}
    alike: dict[str, str] = {}
    for key, name in sorted(names.items(), key=lambda item: ids[item[0]]):
        if (other := alike.setdefault(plain(name), name)) != name:
            kind = "{n} classes differ from another by case, spaces or Unicode's form alone"
            notes.add(f"{kind}, and are learned apart", f"{name!r} from {other!r}")
        if first.setdefault(name, ids[key]) == ids[key]:
            continue
        listed = f"{name!r} ({first[name]} and {ids[key]})"
        if options.merge_classes:
            ids[key] = first[name]
            notes.add("{n} categories of the same name became one class", listed)
        else:
            way = options.hint("--merge-classes makes them one")
            notes.add(f"{{n}} classes have another's name{way}", listed)
    return dict(sorted((ids[key], name) for key, name in names.items())), ids


def _phantom(
    entries: Sequence[dict[str, Any]], names: Mapping[Any, str], used: Collection[Any]
) -> Any:
    """The id of Roboflow's category 0: without annotations, the supercategory of all others."""
    above = [entry.get("supercategory") for entry in entries]
    for key, name in names.items():
        if key in used or name not in above:
            continue
        others = [e.get("supercategory") for e in entries if identity(e.get("id")) != key]
        if others and all(other == name for other in others):
            return key
    return None


def match_categories(
    notes: Notes, own: Mapping[int, str], theirs: Mapping[int, str], used: Collection[int]
) -> dict[int, int]:
    """Match the classes of a file to those of the training set, by their names.

    Args:
        notes: of the file.
        own: the file's names by id.
        theirs: the training set's names by id.
        used: ids that the file's annotations have.

    Returns:
        the training set's id for each id of the file.

    Raises:
        InputError: annotations are of a class that the training set does not have, or has twice.
    """
    matched = {}
    for key, name in own.items():
        if theirs.get(key) == name:
            matched[key] = key
            continue
        same = [other for other, theirs_name in theirs.items() if theirs_name == name]
        same = same or [other for other, n in theirs.items() if plain(n) == plain(name)]
        if len(same) > 1 and key in used:
            raise InputError(
                f"{notes.file}: category {key} {name!r} can be any of the training set's "
                f"{' and '.join(map(str, same))}, which have this name; --merge-classes makes them "
                "one"
            )
        if len(same) == 1:
            matched[key] = same[0]
            kind = "{n} categories were matched to the training set's by their names"
            notes.add(kind, f"{key} {name!r} to {matched[key]} {theirs[matched[key]]!r}")
        elif key in used:
            known = ", ".join(f"{i} {n}" for i, n in theirs.items())
            hint = did_you_mean(name, theirs.values())
            raise InputError(
                f"{notes.file}: category {key} {name!r} is not one of the training set's: "
                f"{known}{hint}"
            )
        else:
            notes.add("left out {n} categories that the training set does not have", repr(name))
    return matched


def read_images(
    notes: Notes, entries: Sequence[dict[str, Any]]
) -> tuple[dict[Any, dict[str, Any]], dict[Any, Any]]:
    """Read the list of images.

    Returns:
        entries by id, each file once, and the id that stands for each id of the list.

    Raises:
        InputError: the list is empty, an entry lacks an id or a name, one id has two names, or one
            name two sizes.
    """
    if not entries:
        raise InputError(f"{notes.file}: 'images' is empty")
    images: dict[Any, dict[str, Any]] = {}
    ids: dict[Any, Any] = {}
    by_name: dict[str, Any] = {}
    paths: dict[Any, set[Any]] = defaultdict(set)  # COCO Annotator's, of one file_name
    for entry in entries:
        if entry.get("path"):
            paths[str(entry.get("file_name"))].add(str(entry["path"]))
    for entry in entries:
        key = identity(entry.get("id"))
        name = entry.get("file_name") or entry.get("path") or entry.get("coco_url")
        if len(paths[str(name)]) > 1:
            name = entry.get("path") or name
        if key is None or not isinstance(name, str):
            raise InputError(
                f"{notes.file}: an image needs an 'id' and a 'file_name', got {entry}"[:300]
            )
        if key in ids and images[ids[key]]["file_name"] != name:
            raise InputError(
                f"{notes.file}: image id {key} stands for {images[ids[key]]['file_name']!r} and "
                f"for {name!r}"
            )
        if name in by_name:
            one, other = size(images[by_name[name]]), size(entry)
            if one and other and one != other:
                raise InputError(
                    f"{notes.file}: image {name!r} is listed twice, as {[*one]} and {[*other]} "
                    "(width, height): its annotations cannot be put together"
                )
            notes.add("{n} images are listed twice; their annotations were put together", key)
        ids[key] = by_name.setdefault(name, key)
        images.setdefault(ids[key], {**entry, "file_name": name})
    if not all(isinstance(key, int) for key in images):
        numbered = {key: index for index, key in enumerate(images, 1)}
        for key in images:
            if not isinstance(key, int):
                notes.add("{n} image ids are no numbers; all images were numbered", key)
        images = {numbered[key]: entry for key, entry in images.items()}
        ids = {key: numbered[kept] for key, kept in ids.items()}
    return images, ids
