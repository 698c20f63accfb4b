"""Keypoints of categories and annotations."""

from collections.abc import Sequence
from typing import Any

from ..config import InputError
from .notes import Notes
from .schema import COORDINATES, NAMES, PAIRS, parse


def read_keypoint_names(
    notes: Notes, entries: Sequence[dict[str, Any]]
) -> tuple[list[str], list[tuple[int, int]]]:
    """Read the keypoints that the categories of a file share.

    Args:
        notes: of the file; it gets an error where they are of another shape or differ.
        entries: "categories" of the file.

    Returns:
        their names, and pairs of them that are joined, counted from 0.
    """
    found = [entry for entry in entries if entry.get("keypoints")]
    if not found:
        return [], []
    category = f"category {found[0]['id']}"
    try:
        must = f"{category}: 'keypoints' must be a list of names"
        names = parse(NAMES, found[0]["keypoints"], must)
        must = f"{category}: 'skeleton' must be pairs of numbers of its keypoints, from 1 on"
        skeleton = parse(PAIRS, found[0].get("skeleton") or [], must)
        first = 0 if any(0 in pair for pair in skeleton) else 1
        if any(n not in range(first, len(names) + first) for pair in skeleton for n in pair):
            raise InputError(f"{must}, got {skeleton}")
    except InputError as error:
        notes.error(str(error))
        return [], []
    if first == 0:
        notes.add("{n} skeleton counts keypoints from 0, where COCO counts from 1", skeleton)
    for other in found:
        if other["keypoints"] != names:
            notes.error(
                f"categories {found[0]['name']!r} and {other['name']!r} have different keypoints, "
                "and a model finds one set of them"
            )
    return names, [(a - first, b - first) for a, b in skeleton]


def read_keypoints(
    entry: dict[str, Any], number: int, scale: tuple[float, float]
) -> dict[str, Any]:
    """Return "keypoints" and "num_keypoints" of an annotation, in the picture's pixels.

    Args:
        entry: the annotation.
        number: of keypoints that its category names.
        scale: factors from the annotation's size to the picture's.

    Raises:
        InputError: it has another number of them, or these are none.
    """
    must = f"'keypoints' must be {number} times x, y and visibility, as many as its category names"
    # All instances must have as many; without a label they count for nothing.
    values = parse(COORDINATES, entry.get("keypoints") or [0] * 3 * number, must)
    if len(values) != 3 * number:
        raise InputError(f"{must}, got {len(values)} numbers")
    if scale != (1, 1):
        values = [value * (*scale, 1)[at % 3] for at, value in enumerate(values)]
    return {"keypoints": values, "num_keypoints": sum(v > 0 for v in values[2::3])}
