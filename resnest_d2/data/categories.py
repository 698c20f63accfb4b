"""The classes of an annotation file, their keypoints, and their match with a training set's."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..config import InputError, did_you_mean
from .notes import Notes
from .options import Options
from .schema import NAMES, PAIRS, Entries, parse


def plain(name: str) -> str:
    """Normalise a name for comparison: NFC, stripped, case-folded."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def read_categories(
    notes: Notes, entries: Entries, options: Options
) -> tuple[dict[int, str], dict[Any, int]]:
    """Read the classes; an id of two names is noted as an error.

    Returns:
        names by id, in the order of the ids, and the id that stands for each id of the file.
    """
    names: dict[Any, str] = {}
    for entry in entries.categories:
        key, name = entry["id"], entry["name"]
        if key in names and names[key] == name:
            notes.add("{n} categories are listed twice", key)
        elif names.setdefault(key, name) != name:
            notes.error(f"category {key} is {names[key]!r} and {name!r}")
    phantom = _phantom(entries.categories, names, entries.used)
    if phantom is not None:
        kind = "left out {n} category that no annotation has and that stands for all others"
        notes.add(kind, repr(names.pop(phantom)))
    ids = {key: entries.category_ids[key] for key in names}
    first: dict[str, int] = {}
    for key, name in sorted(names.items(), key=lambda item: ids[item[0]]):
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
        others = [entry.get("supercategory") for entry in entries if entry["id"] != key]
        if others and all(other == name for other in others):
            return key
    return None


def match_categories(
    notes: Notes,
    own: Mapping[int, str],
    ids: Mapping[Any, int],
    theirs: Mapping[int, str],
    used: Collection[Any],
) -> dict[Any, int]:
    """Match the classes of a file to those of the training set, by their names.

    Args:
        notes: get an error for each used class that the training set has not, or has twice.
        own, ids: as :func:`read_categories` returns them.
        theirs: the training set's names by id.
        used: ids that the file's annotations have.

    Returns:
        the training set's id for each id of the file.
    """
    used = {ids[key] for key in used if key in ids}
    matched = {}
    for key, name in own.items():
        if theirs.get(key) == name:
            matched[key] = key
            continue
        same = [other for other, theirs_name in theirs.items() if theirs_name == name]
        same = same or [other for other, n in theirs.items() if plain(n) == plain(name)]
        if len(same) == 1:
            matched[key] = same[0]
            kind = "{n} categories were matched to the training set's by their names"
            notes.add(kind, f"{key} {name!r} to {matched[key]} {theirs[matched[key]]!r}")
        elif key not in used:
            notes.add("left out {n} categories that the training set does not have", repr(name))
        elif same:
            notes.error(
                f"category {key} {name!r} can be any of the training set's "
                f"{' and '.join(map(str, same))}, which have this name; --merge-classes makes them "
                "one"
            )
        else:
            known = ", ".join(f"{i} {n}" for i, n in theirs.items())
            hint = did_you_mean(name, theirs.values())
            notes.error(f"category {key} {name!r} is not one of the training set's: {known}{hint}")
    return {key: matched[number] for key, number in ids.items() if number in matched}


def read_keypoint_names(
    notes: Notes, entries: Sequence[dict[str, Any]]
) -> tuple[list[str], list[tuple[int, int]]]:
    """Read the keypoints that the categories of a file share; it is an error if they differ.

    Returns:
        their names, and pairs of them that are joined, counted from 0.
    """
    found = [entry for entry in entries if entry.get("keypoints")]
    if not found:
        return [], []
    category = f"category {found[0]['id']}"
    must = f"{category}: 'skeleton' must be pairs of numbers of its keypoints, from 1 on"
    try:
        is_names = f"{category}: 'keypoints' must be a list of names"
        names = parse(NAMES, found[0]["keypoints"], is_names)
        skeleton = parse(PAIRS, found[0].get("skeleton") or [], must)
    except InputError as error:
        notes.error(str(error))
        return [], []
    first = 0 if any(0 in pair for pair in skeleton) else 1  # some tools count from 0
    if any(not first <= at < len(names) + first for pair in skeleton for at in pair):
        notes.error(f"{must}, got {skeleton}")
    for other in found:
        if other["keypoints"] != names:
            notes.error(
                f"categories {found[0]['name']!r} and {other['name']!r} have different keypoints, "
                "and a model finds one set of them"
            )
    return names, [(a - first, b - first) for a, b in skeleton]
