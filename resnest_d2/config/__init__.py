"""Keys and files of configs, and the errors that end a command in one line."""

import difflib
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any


class InputError(ValueError):
    """A user gave something wrong: a key, a value or a file, which the message names."""


class ConfigError(InputError):
    """A setting is wrong; the message names its key, the value and what is allowed."""


class FileError(InputError, OSError):
    """A file cannot be read or written; the message names it."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that a user named is not there."""


class MissingPackageError(InputError, ImportError):
    """A package of an extra is not installed; the message says how to install it."""


def require_one_of(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise a ConfigError unless a value is one of a few, where True is not 1; it names them."""
    allowed = tuple(allowed)
    if (value, isinstance(value, bool)) not in [(one, isinstance(one, bool)) for one in allowed]:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def require_int(name: str, value: Any, least: int) -> None:
    """Raise a ConfigError unless a value is an integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        kind = "" if isinstance(value, int) else "an integer of "
        raise ConfigError(f"{name} must be {kind}at least {least}, got {value!r}")


def require_between(name: str, value: float, least: float, most: float) -> None:
    """Raise a ConfigError unless a number is in a range; NaN is in none."""
    if not least <= value <= most:
        raise ConfigError(f"{name} must be between {least:g} and {most:g}, got {value}")


def import_extra(name: str, extra: str, purpose: str) -> ModuleType:
    """Import a module that only ``resnest_d2[<extra>]`` installs.

    Raises:
        MissingPackageError: its package is not installed; the message begins with the purpose.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing != name.partition(".")[0]:
            raise  # it is there, and something that it needs is not
        raise MissingPackageError(
            f"{purpose} needs {missing}, which is not installed: pip install 'resnest_d2[{extra}]'"
        ) from error


def did_you_mean(
    name: str, known: Iterable[str], cutoff: float = 0.6, first: Sequence[str] = ()
) -> str:
    """The end of a message about an unknown name, "; did you mean a or b?", or nothing.

    Names in ``first`` stand before those that are as alike as ``cutoff``, from 0 to 1, asks for.
    """
    alike = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    close = list(dict.fromkeys([*first, *alike]))[:3]
    return f"; did you mean {' or '.join(close)}?" if close else ""
