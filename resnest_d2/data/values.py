"""Numbers, boxes and outlines as annotation tools write them."""

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

Box = list[int | float]  # x, y, width, height

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def number(value: Any) -> int | float | None:
    """Return a number that may be written as text; None for anything else."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        value = json.loads(value) if re.fullmatch(r"-?[1-9]\d*", value.strip()) else float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < math.inf else None


def numbers(values: Any) -> list[int | float] | None:
    """Return numbers from a list, or from a text such as "1, 2, 3"; None if it holds others."""
    if isinstance(values, str):
        values = re.split(r"[\s,;]+", values.strip(" \t\n[]()"))
    if not isinstance(values, (list, tuple)):
        return None
    if set(map(type, values)) == {float} and math.isfinite(sum(values)):
        return values  # as they are in most files, at no cost
    found = [number(value) for value in values]
    return None if None in found else found


def size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return an image's width and height, rounded; None if they are not there or not above 0."""
    found = numbers([entry.get("width"), entry.get("height")])
    return (round(found[0]), round(found[1])) if found and min(found) > 0.5 else None


def identity(value: Any) -> int | str | None:
    """Return an id, an integer where it stands for one ("1", 1.0), else a text; None for none."""
    if isinstance(value, str) and value.strip():
        return int(value.partition(".")[0]) if re.fullmatch(r"\s*-?\d+(\.0*)?\s*", value) else value
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def plain(name: str) -> str:
    """Return a name without what makes no other one: case, spaces around it, its Unicode form."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def box(value: Any) -> list[int | float] | None:
    """Return (x, y, width, height); None if these are not there."""
    if isinstance(value, dict):
        value = [
            value.get("x"),
            value.get("y"),
            value.get("width", value.get("w")),
            value.get("height", value.get("h")),
        ]
    found = numbers(value)
    return found if found and len(found) == 4 else None


def polygons(value: Any) -> list[list[int | float]] | None:
    """Return polygons as lists (x1, y1, x2, y2, ...); None if the value is none.

    A single polygon may stand without its outer list, and points may be pairs.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if not isinstance(value, (list, tuple)):
        return None
    if not value:
        return []
    alone = _polygon(value)
    found = [alone] if alone is not None else [_polygon(part) for part in value if part]
    return None if None in found else found


def _polygon(value: Any) -> list[int | float] | None:
    flat = numbers(value)
    if flat is not None or not isinstance(value, (list, tuple)):
        return flat
    pairs = [
        numbers([p.get("x"), p.get("y")] if isinstance(p, dict) else p)
        for p in value
        if isinstance(p, (list, tuple, dict))
    ]
    if len(pairs) < len(value) or any(pair is None or len(pair) != 2 for pair in pairs):
        return None
    return [coordinate for pair in pairs for coordinate in pair]


def excess(box: Box, size: tuple[int, int]) -> float:
    """Return by how many pixels a box reaches beyond an image of this width and height."""
    x, y, width, height = box
    return max(-x, -y, x + width - size[0], y + height - size[1])


def is_outside(box: Box, size: tuple[int, int]) -> bool:
    """Whether a box has no part in an image of this width and height."""
    x, y, width, height = box
    return x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0


def clip(box: Box, size: tuple[int, int]) -> Box:
    """Return the part of a box that lies in an image of this width and height."""
    x, y, width, height = box
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + width, size[0]) - left, min(y + height, size[1]) - top]
