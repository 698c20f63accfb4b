"""The pictures that an annotation file names: where they are, and how large."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..config import InputError, MissingFileError
from .images import IMAGE_ENDINGS, Header, read_header
from .options import Options
from .schema import ImageEntry, Notes, plain, some

SHOW_PROGRESS = 2000  # from so many images on
MOST_FOLDERS = 20  # of a name that are dropped in search of its file
CLIPPED = 2  # pixels that a picture's width and height may be off


@dataclass
class ImageFile:
    """A picture of an annotation file."""

    path: Path
    size: tuple[int, int]
    """Width and height of the upright picture."""
    is_exchanged: bool = False
    """Whether the file has the stored width and height of a picture that EXIF turns."""


def unique_images(notes: Notes, entries: list[ImageEntry]) -> dict[int | str, ImageEntry]:
    """Return the entries by their ids; two different ones of an id are an error."""
    images: dict[int | str, ImageEntry] = {}
    for entry in entries:
        first = images.setdefault(entry["id"], entry)
        if first != entry:
            names = f"{first['file_name']!r} and {entry['file_name']!r}"
            notes.error(f"image {entry['id']} is listed twice, differently: {names}")
        elif first is not entry:
            notes.add("{n} images are listed twice", entry["id"])
    return images


def find_images(
    notes: Notes, root: Path, entries: dict[int | str, ImageEntry], options: Options
) -> tuple[dict[int | str, ImageFile], list[str]]:
    """Find the pictures of entries, and read their sizes.

    Returns:
        the pictures that are there, by id; what is wrong with those that cannot be read.

    Raises:
        MissingFileError: there is no such folder.
    """
    paths = _find_files(notes, root, entries, options)
    shown = tqdm(paths.items(), f"images of {notes.file.name}", disable=len(paths) < SHOW_PROGRESS)
    images, unreadable = {}, []
    for number, path in shown:
        try:
            header = read_header(path, options.has_range)
        except InputError as error:
            unreadable.append(str(error))
            continue
        if image := _compare_sizes(notes, entries[number], path, header):
            images[number] = image
    if unreadable and not (options.skip_bad_images and images):
        way = "; training goes on without them with --skip-bad-images" if images else ""
        number = f"{len(unreadable)} of {len(paths)}"
        notes.error(f"{number} images cannot be read: {some(unreadable)}{way}")
    else:
        for problem in unreadable:
            notes.add("{n} images cannot be read and are left out", problem)
    return images, unreadable


def _find_files(
    notes: Notes, root: Path, entries: dict[int | str, ImageEntry], options: Options
) -> dict[int | str, Path]:
    """Return the paths of pictures that are there; note an error of those that are not."""
    if not root.is_dir():
        raise MissingFileError(f"there is no folder of images {root}")
    names = {number: entry["file_name"] for number, entry in entries.items()}
    paths = {n: root / name for n, name in names.items() if os.path.isfile(root / name)}
    if len(paths) < len(names):
        missing = {n: name for n, name in names.items() if n not in paths}
        for number, path in _search(root, missing, set(paths.values())).items():
            paths[number] = path
            shown = f"{names[number]!r} as {path.relative_to(root)}"
            notes.add("{n} images were found under other names", shown)
    absent = [name for number, name in names.items() if number not in paths]
    if absent and options.skip_missing and paths:
        for name in absent:
            notes.add(f"{{n}} of {len(names)} images are not in {root} and are left out", name)
    elif absent:
        way = "; training goes on without them with --skip-missing" if paths else ""
        message = f"{len(absent)} of the {len(names)} images are not in {root}: {some(absent)}"
        notes.error(message + way)
    owners: dict[str, int | str] = {}
    for number, path in paths.items():
        if (owner := owners.setdefault(os.path.normpath(path), number)) != number:
            both = f"{names[owner]!r} and {names[number]!r}"
            notes.error(f"images {both} can only be the same file, {path}")
    return {number: paths[number] for number in names if number in paths}


def _search(root: Path, names: dict[int | str, str], taken: set[Path]) -> dict[int | str, Path]:
    """Find pictures whose names on the disk are not quite those in the file.

    A name is first looked for as it stands, but for separators, case and an ending that it lacks.
    What is then still missing is looked for with as many leading folders dropped from all names as
    find most; and only in folders that hold other pictures of the file, if any were found. So no
    mask, and no frame of another video, takes the place of a picture that is not there. A name that
    can mean several files is not found, and neither are pictures that other entries name exactly
    (``taken``).
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for path in _walk(root):
        if not _is_picture(path) or path in taken or not path.is_file():
            continue
        name = plain(path.relative_to(root).as_posix())
        files[name].append(path)
        if not _is_picture(Path(path.stem)):
            files[name.removesuffix(path.suffix.lower())].append(path)
    parts = {number: plain(name).replace("\\", "/").split("/") for number, name in names.items()}
    found = _without_folders(parts, 0, files)
    if near := {path.parent for path in (*taken, *found.values())}:
        files = {name: paths for name, paths in files.items() if paths[0].parent in near}
    rest = {number: split for number, split in parts.items() if number not in found}
    depth = min(max(map(len, rest.values()), default=0), MOST_FOLDERS)
    tries = (_without_folders(rest, dropped, files) for dropped in range(1, depth))
    return found | max(tries, key=len, default={})


def _walk(root: Path) -> Iterator[Path]:
    """The files below a folder, behind links too, which may lead in a circle."""
    for folder, inner, files in os.walk(root, followlinks=True):
        here = Path(folder)
        above = [here, *here.parents]
        inner[:] = [name for name in inner if not any(map((here / name).samefile, above))]
        yield from (here / name for name in files)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS


def _without_folders(
    parts: dict[int | str, list[str]], dropped: int, files: dict[str, list[Path]]
) -> dict[int | str, Path]:
    """The files of names that mean one each when so many leading folders are dropped."""
    found = {number: files.get("/".join(split[dropped:]), ()) for number, split in parts.items()}
    return {number: paths[0] for number, paths in found.items() if len(paths) == 1}


def _compare_sizes(notes: Notes, entry: ImageEntry, path: Path, header: Header) -> ImageFile | None:
    """Compare a picture's size with the file's; None, and an error, if it is another one."""
    (width, height), number = header.size, entry["id"]
    across, down = round(entry.get("width") or width), round(entry.get("height") or height)
    said = f"{number} ({across} x {down} is {width} x {height})"
    if header.is_turned and (across, down) == (height, width) != (width, height):
        notes.add("{n} images have the width and height of before EXIF turns them", said)
        return ImageFile(path, header.size, is_exchanged=True)
    if max(abs(width - across), abs(height - down)) <= CLIPPED:
        if (across, down) != header.size:
            notes.add("{n} images have a width or height that is a pixel or two off", said)
        return ImageFile(path, header.size)
    notes.error(f"image {number} is said to be {across} x {down}, but {path} is {width} x {height}")
    return None
