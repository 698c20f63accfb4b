"""Files on the Hugging Face hub: ``hf://<user>/<repository>[/<file>]``, by huggingface_hub.

Tokens, caches and other endpoints are huggingface_hub's own: ``hf auth login``, ``HF_TOKEN``,
``HF_HOME``, ``HF_ENDPOINT``.
"""

import re
from pathlib import Path
from types import ModuleType

from ..config import FileError, InputError, import_extra
from .catalog import HUB
from .files import ENDINGS


class FetchError(FileError):
    """No source provided the weights; the message lists each one's failure."""


def download(path: str) -> Path:
    """The local copy of a file on the hub; without a file's name, of the only weights there.

    Raises:
        InputError: the name is of another form, or the repository holds no weights or several.
        FetchError: the hub does not give it.
        MissingPackageError: huggingface_hub is not installed.
    """
    user, repository, file = [*path.removeprefix(HUB).split("/", 2), "", ""][:3]
    if not (user and repository):
        raise InputError(f"{path!r} is not of the form {HUB}user/repository or .../file")
    library, name = import_extra("huggingface_hub", "hub", path), f"{user}/{repository}"
    try:
        files = [file] if file else sorted(filter(_is_weights, library.list_repo_files(name)))
        if len(files) == 1:
            return Path(library.hf_hub_download(name, files[0]))
    except Exception as error:  # its HTTP client and its accelerators raise types of their own
        raise FetchError(f"cannot get {path}: {first_line(error)}") from error
    listed = f"several weight files: add one of {', '.join(files)}" if files else "no weights"
    raise InputError(f"{path} holds {listed}")


def open_hub(name: str) -> ModuleType:
    """huggingface_hub, which can upload to a repository of this name.

    Raises:
        InputError: the name is not of the form "user/repository".
        MissingPackageError: it is not installed.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError(f"--hub must be user/repository, got {name!r}")
    return import_extra("huggingface_hub", "hub", f"--hub {name}")


def upload(name: str, files: dict[str, Path]) -> str:
    """Put files into a repository on the hub, in one commit; a repository that is absent is made.

    Other weights in its uppermost folder are removed, so that its name alone stands for these; the
    commits of before still hold them.

    Args:
        name: "user/repository".
        files: by their names in the repository.

    Returns:
        the repository's address.

    Raises:
        InputError: as :func:`open_hub`, or the hub does not take them.
    """
    library = open_hub(name)
    try:
        address = library.create_repo(name, exist_ok=True)
        adding = [library.CommitOperationAdd(path, str(file)) for path, file in files.items()]
        old = {*filter(_is_weights, library.list_repo_files(name))} - files.keys()
        removing = [library.CommitOperationDelete(file) for file in old]
        text = f"Weights, config and card of {name}"
        library.create_commit(name, [*adding, *removing], commit_message=text)
    except Exception as error:  # as above
        raise FileError(f"--hub {name}: the hub says {first_line(error)}") from error
    return str(address)


def _is_weights(file: str) -> bool:
    return "/" not in file and Path(file).suffix in ENDINGS


def first_line(error: Exception) -> str:
    """The first line of an error's message, without the brackets of urllib and the system."""
    text = str(getattr(error, "reason", "") or error).strip().partition("\n")[0]
    text = re.sub(r"^\[Errno -?\d+\] ", "", text)
    return f"HTTP {error.code} {text}" if hasattr(error, "code") else text or type(error).__name__
