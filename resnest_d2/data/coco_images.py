"""The pictures that an annotation file names: where they are, and how large."""

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tqdm import tqdm

from ..config import InputError, MissingFileError
from .images import IMAGE_ENDINGS, Header, read_header
from .options import Options
from .schema import MOST_PIXELS, Entries, Notes, plain, some

SHOW_PROGRESS = 2000  # from so many images on
MOST_FOLDERS = 20  # of a name that are dropped in search of its file
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

    scale: tuple[float, float] = field(init=False)
    """Factors from the annotations' size to the picture's; 1 where they are clipped."""

    def __post_init__(self) -> None:
        """Compare the two sizes."""
        (width, height), (across, down) = self.size, self.declared
        is_near = max(abs(width - across), abs(height - down)) <= CLIPPED
        self.scale = (1, 1) if is_near else (width / across, height / down)


def read_images(notes: Notes, entries: Entries) -> tuple[dict[int, dict[str, Any]], dict[Any, int]]:
    """Return the entries by id, each file once, and the id that stands for each of the file."""
    images: dict[int, dict[str, Any]] = {}
    ids: dict[Any, int] = {}
    by_name: dict[str, int] = {}
    for entry in entries.images:
        key = entry["id"]
        name = entry.get("file_name") or entry.get("path") or entry.get("coco_url")
        if not name:
            notes.error(f"image {key} has no 'file_name'")
            continue
        if key in ids and images[ids[key]]["file_name"] != name:
            one = images[ids[key]]["file_name"]
            notes.error(f"image id {key} stands for {one!r} and for {name!r}")
            continue
        number = by_name.setdefault(name, entries.image_ids[key])
        first = images.get(number)
        if first is None:
            images[number] = {**entry, "file_name": name}
        elif first | {"id": key} == entry | {"file_name": name}:
            notes.add("{n} images are listed twice; their annotations were put together", key)
        else:
            notes.error(f"image {name!r} is listed twice, with another size or path")
        ids[key] = number
    return images, ids


def find_images(
    notes: Notes, root: Path, entries: dict[int, dict[str, Any]], options: Options
) -> tuple[dict[int, ImageFile], list[str]]:
    """Find the pictures of entries that :func:`read_images` returned, and read their sizes.

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
            header = read_header(path)
        except InputError as error:
            unreadable.append(str(error))
            continue
        image = _sized(notes, number, entries[number], path, header)
        if image is not None:
            images[number] = image
    if unreadable and not (options.skip_bad_images and images):
        way = options.hint("training goes on without them with --skip-bad-images") if images else ""
        notes.error(
            f"{len(unreadable)} of {len(paths)} images cannot be read: {some(unreadable)}{way}"
        )
    else:
        for problem in unreadable:
            notes.add("{n} images cannot be read and are left out", problem)
    return images, unreadable


def _find_files(
    notes: Notes, root: Path, entries: dict[int, dict[str, Any]], options: Options
) -> dict[int, Path]:
    """Return the paths of pictures that are there; note an error of those that are not."""
    if root.is_file():
        raise MissingFileError(f"{root} is a file, not a folder of images")
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
        way = options.hint("--skip-missing goes on without them") if paths else ""
        message = f"{len(absent)} of the {len(names)} images are not in {root}: {some(absent)}"
        notes.error(message + way)
    owners: dict[str, int] = {}
    for number, path in paths.items():
        if (owner := owners.setdefault(os.path.normpath(path), number)) != number:
            both = f"{names[owner]!r} and {names[number]!r}"
            notes.error(f"images {both} can only be the same file, {path}")
    return {number: paths[number] for number in names if number in paths}


def _search(root: Path, names: dict[int, str], taken: set[Path]) -> dict[int, Path]:
    """Find pictures whose names on the disk are not quite those in the file.

    A name is first looked for as it stands, but for separators, the quoting of addresses, case,
    and an ending that it lacks. What is then still missing is looked for under one change of all
    names, the one that finds most: so many leading folders dropped, or one added; and only in
    folders that hold other pictures of the file, if any were found. So no mask, and no frame of
    another video, takes the place of a picture that is not there. A name that can mean several
    files is not found, and neither are pictures that other entries name exactly (``taken``).
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for folder, _, leaves in os.walk(root):
        for path in (Path(folder, leaf) for leaf in leaves):
            if not _is_picture(path) or path in taken or not path.is_file():
                continue
            name = plain(path.relative_to(root).as_posix())
            files[name].append(path)
            if not _is_picture(Path(path.stem)):
                files[name.removesuffix(path.suffix.lower())].append(path)
    parts = {number: _parts(name) for number, name in names.items()}
    found = _look({number: "/".join(split) for number, split in parts.items()}, files)
    if near := {path.parent for path in (*taken, *found.values())}:
        files = {name: paths for name, paths in files.items() if paths[0].parent in near}
    rest = {number: split for number, split in parts.items() if number not in found}
    depth = min(max(map(len, rest.values()), default=0), MOST_FOLDERS)
    changes = [{n: "/".join(split[k:]) for n, split in rest.items()} for k in range(1, depth)]
    wanted = {"/".join(split) for split in rest.values()}
    pairs = (name.partition("/")[::2] for name in files)
    above = Counter(folder for folder, below in pairs if below in wanted).most_common(2)
    if len(above) == 1 or (above and above[0][1] > above[1][1]):  # else it can be any of several
        changes.append({n: "/".join((above[0][0], *split)) for n, split in rest.items()})
    return found | max((_look(change, files) for change in changes), key=len, default={})


def _look(names: dict[int, str], files: dict[str, list[Path]]) -> dict[int, Path]:
    """The files of names that mean one each."""
    return {n: files[name][0] for n, name in names.items() if len(files.get(name, ())) == 1}


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS


def _parts(name: str) -> list[str]:
    """The folders and the name of a path of any machine, or of an address."""
    name = re.sub(r"[?#].*", "", name) if "://" in name else name
    return [part for part in plain(unquote(name).replace("\\", "/")).split("/") if part != "."]


def _sized(
    notes: Notes, number: int, entry: dict[str, Any], path: Path, header: Header
) -> ImageFile | None:
    """Compare a picture's size with the file's; None, and an error, if it is of another shape."""
    if header.pages > 1:
        notes.add("{n} images have several pages, of which the first is read", path.name)
    width, height = entry.get("width"), entry.get("height")
    declared = header.size
    if width is not None and height is not None and width * height < MOST_PIXELS:
        declared = round(width), round(height)
    if declared == header.size:
        return ImageFile(path, header.size, header.size)
    said = f"{number} ({declared[0]} x {declared[1]} is {header.size[0]} x {header.size[1]})"
    if declared == header.stored:
        notes.add("{n} images have the width and height of before EXIF turns them", said)
        return ImageFile(path, header.size, header.size, is_exchanged=True)
    image = ImageFile(path, header.size, declared)
    across, down = image.scale
    # A width and a height that were rounded to pixels leave the ratios a little apart.
    apart = min(across / declared[0] + down / declared[1], 0.1 * max(across, down))
    if abs(across - down) > apart:
        notes.error(
            f"image {number} is said to be {declared[0]} x {declared[1]}, but {path} is "
            f"{header.size[0]} x {header.size[1]}, which is another shape"
        )
        return None
    if image.scale == (1, 1):
        kind = "{n} images have a width or height that is a pixel or two off; boxes are clipped"
    else:
        kind = "{n} images were annotated at another size; their annotations are scaled"
    notes.add(kind, said)
    return image
