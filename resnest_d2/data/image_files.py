"""The pictures that an annotation file names: where they are, and how large."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from tqdm import tqdm

from ..config import InputError
from .images import IMAGE_ENDINGS, Header, read_header
from .notes import Notes, some
from .repair import Options
from .values import plain
from .values import size as read_size

SHOW_PROGRESS = 2000  # from so many images on
CLIPPED = 2  # pixels that width and height may be off without the annotations being scaled


@dataclass
class ImageFile:
    """A picture of an annotation file."""

    path: Path
    size: tuple[int, int]
    """Width and height of the upright picture."""
    declared: tuple[int, int]
    """Width and height that the annotations count in; the size, if the file names none."""
    is_exchanged: bool = False
    """Whether the file has the stored width and height of a picture that EXIF turns."""

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Factors from the annotations' size to the picture's; 1 where they are clipped."""
        if all(abs(a - b) <= CLIPPED for a, b in zip(self.size, self.declared, strict=True)):
            return 1, 1
        return self.size[0] / self.declared[0], self.size[1] / self.declared[1]


class ImageFolder:
    """Finds pictures below a folder by the names that annotation tools give them.

    Args:
        root: the folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if root.is_file():
            raise FileNotFoundError(f"{root} is a file, not a folder of images")
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder of images {root}")
        self.root = root

    @cached_property
    def _files(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Pictures below the folder by their names, and by their names without ending."""
        by_name, by_stem = defaultdict(list), defaultdict(list)
        for folder, _, names in os.walk(self.root):
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix.lower() in IMAGE_ENDINGS and path.is_file():
                    by_name[plain(name)].append(path)
                    by_stem[plain(path.stem)].append(path)
        return by_name, by_stem

    def exactly(self, name: str) -> Path | None:
        """Return the file of a name as it stands, if there is one."""
        path = self.root / name
        return path if name and os.path.isfile(path) else None

    def nearly(self, name: str, taken: set[Path], any_folder: bool = False) -> Path | None:
        """Find the only file that a name can mean.

        The name may have backslashes, be URL-encoded, have folders too many or too few, or be of
        another case, form of Unicode or ending.

        Args:
            name: a path, of any machine, or an address.
            taken: files that other names mean exactly.
            any_folder: whether the file may be in a folder of quite another name.

        Raises:
            InputError: it can mean several files.
        """
        decoded = unquote(re.sub(r"[?#].*", "", name) if "://" in name else name)
        parts = PurePosixPath(decoded.strip().replace("\\", "/")).parts
        for start in range(len(parts)):
            path = self.root.joinpath(*parts[start:])
            if parts[start] not in ("/", "..") and os.path.isfile(path) and path not in taken:
                return path
        last = plain(parts[-1]) if parts else ""
        by_name, by_stem = self._files
        for found in (by_name.get(last), by_stem.get(PurePosixPath(last).stem)):
            rest = [path for path in found or () if path not in taken]
            if not any_folder:
                rest = [path for path in rest if _is_end(path.relative_to(self.root).parts, parts)]
            most = max((_common_end(path.parts, parts) for path in rest), default=0)
            best = [path for path in rest if _common_end(path.parts, parts) == most]
            if len(best) == 1:
                return best[0]
            if best:
                raise InputError(f"image {name!r} can be any of {some(best)}")
        return None


def _common_end(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """How many folders in front of the names of two paths are the same."""
    pairs = zip(ours[-2::-1], theirs[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: plain(pair[0]) == plain(pair[1]), pairs))


def _is_end(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether the folders of one path are the last ones of the other's."""
    return _common_end(ours, theirs) == min(len(ours), len(theirs)) - 1


def find_images(
    notes: Notes, root: Path | None, entries: dict[Any, dict[str, Any]], options: Options
) -> tuple[dict[Any, ImageFile], list[str]]:
    """Find the pictures of an annotation file and read their sizes.

    Args:
        notes: of the annotation file.
        root: the folder of its pictures; None trusts the sizes in the file and opens none.
        entries: "images" by id; each has a "file_name".
        options: whether pictures that are not there, or cannot be read, are left out.

    Returns:
        the pictures that are there, by id; what is wrong with those that cannot be read.

    Raises:
        FileNotFoundError: the folder or a picture is not there.
        InputError: a name can mean several files, several names mean one file, a file is no
            picture, a picture is of another shape than the annotations say, or of no known size.
    """
    if root is None:
        return {key: _as_declared(notes, key, entry) for key, entry in entries.items()}, []
    folder = ImageFolder(root)
    paths = {number: folder.exactly(entry["file_name"]) for number, entry in entries.items()}
    missing = [number for number, path in paths.items() if path is None]
    taken = set(paths.values()) - {None}
    # Folders of other names count only where those of no image are right: a folder of frames that
    # was not unpacked must not be replaced by another one's.
    for any_folder in (False, True):
        if any_folder and any(paths.values()):
            break
        for number in missing:
            name = entries[number]["file_name"]
            paths[number] = path = folder.nearly(name, taken, any_folder)
            if path is not None:
                found = path.relative_to(root) if path.is_relative_to(root) else path
                notes.add("{n} images were found under other names", f"{name!r} as {found}")
    absent = [entries[number]["file_name"] for number, path in paths.items() if path is None]
    if absent:
        message = f"{len(absent)} of the {len(entries)} images of {notes.file} are not in {root}"
        if not options.skip_missing or len(absent) == len(entries):
            some_are = len(absent) < len(entries)
            way = options.hint("--skip-missing goes on without them") if some_are else ""
            raise FileNotFoundError(f"{message}: {some(absent)}{way}")
        for name in absent:
            notes.add(f"{{n}} of {len(entries)} images are not in {root} and are left out", name)
    present = {number: path for number, path in paths.items() if path is not None}
    owners: dict[Path, Any] = {}
    for number, path in present.items():
        if (owner := owners.setdefault(Path(os.path.normpath(path)), number)) != number:
            names = " and ".join(repr(entries[n]["file_name"]) for n in (owner, number))
            raise InputError(f"{notes.file}: images {names} can only be the same file, {path}")
    shown = tqdm(
        present.items(), f"images of {notes.file.name}", disable=len(present) < SHOW_PROGRESS
    )
    images, unreadable = {}, []
    for number, path in shown:
        try:
            header = read_header(path)
        except InputError as error:
            unreadable.append(str(error))
        else:
            images[number] = _read_size(notes, number, entries[number], path, header)
    if unreadable and not (options.skip_bad_images and images):
        way = options.hint("training goes on without them with --skip-bad-images") if images else ""
        raise InputError(
            f"{notes.file}: {len(unreadable)} of {len(present)} images cannot be read: "
            f"{some(unreadable)}{way}"
        )
    for problem in unreadable:
        notes.add("{n} images cannot be read and are left out", problem)
    return images, unreadable


def _as_declared(notes: Notes, number: Any, entry: dict[str, Any]) -> ImageFile:
    size = read_size(entry)
    if size is None:
        raise InputError(
            f"{notes.file}: image {number} has no width and height, and without a folder of images "
            "(--images) its file cannot tell them"
        )
    return ImageFile(Path(entry["file_name"]), size, size)


def _read_size(
    notes: Notes, number: Any, entry: dict[str, Any], path: Path, header: Header
) -> ImageFile:
    if header.pages > 1:
        notes.add("{n} images have several pages, of which the first is read", path.name)
    declared = read_size(entry)
    if declared is None and (entry.get("width") or entry.get("height")):
        notes.add("{n} images have no usable width and height, and their files' hold", number)
    if declared in (None, header.size):
        return ImageFile(path, header.size, header.size)
    said = f"{number} ({declared[0]} x {declared[1]} is {header.size[0]} x {header.size[1]})"
    if header.is_turned and declared == header.size[::-1]:
        notes.add("{n} images have the width and height of before EXIF turns them", said)
        return ImageFile(path, header.size, header.size, is_exchanged=True)
    image = ImageFile(path, header.size, declared)
    across, down = image.scale
    # A width and a height that were rounded to pixels leave the ratios a little apart.
    apart = min(across / declared[0] + down / declared[1], 0.1 * max(across, down))
    if abs(across - down) > apart:
        raise InputError(
            f"{notes.file}: image {number} is said to be {declared[0]} x {declared[1]}, but {path} "
            f"is {header.size[0]} x {header.size[1]}, which is another shape"
        )
    if image.scale == (1, 1):
        kind = "{n} images have a width or height that is a pixel or two off; boxes are clipped"
    else:
        kind = "{n} images were annotated at another size; their annotations are scaled"
    notes.add(kind, said)
    return image
