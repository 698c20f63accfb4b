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
    """Refuse a value that is not one of a few.

    Raises:
        ConfigError: the message has the name, what is allowed, and the value.
    """
    allowed = tuple(allowed)
    if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def require_int(name: str, value: Any, least: int) -> None:
    """Refuse a value that is not an integer of at least ``least``.

    Raises:
        ConfigError: the message has the name and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        kind = "" if isinstance(value, int) else "an integer of "
        raise ConfigError(f"{name} must be {kind}at least {least}, got {value!r}")


def require_between(name: str, value: float, least: float, most: float) -> None:
    """Refuse a number outside of a range, NaN too.

    Raises:
        ConfigError: the message has the name, the range and the value.
    """
    if not least <= value <= most:
        raise ConfigError(f"{name} must be between {least:g} and {most:g}, got {value}")


def import_extra(name: str, extra: str, purpose: str) -> ModuleType:
    """Import a module that only an extra of this package installs.

    Args:
        name: of the module.
        extra: of this project, ``"export"`` for ``resnest_d2[export]``.
        purpose: what needs it, the beginning of the message.

    Raises:
        MissingPackageError: the module's package is not installed.
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

    Args:
        name: the unknown name.
        known: the names that exist.
        cutoff: how alike two names must be, from 0 to 1.
        first: names that stand before those that are alike.
    """
    alike = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    close = list(dict.fromkeys([*first, *alike]))[:3]
    return f"; did you mean {' or '.join(close)}?" if close else ""
