"""The pictures that an annotation file names: where they are, and how large."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from tqdm import tqdm

from ..config import InputError, MissingFileError
from .categories import plain
from .images import IMAGE_ENDINGS, Header, read_header
from .notes import Notes, some
from .options import Options
from .schema import MOST_PIXELS, is_usable

SHOW_PROGRESS = 2000  # from so many images on
CLIPPED = 2  # pixels that width and height may be off without the annotations being scaled

Parts = tuple[str, ...]


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


def read_images(
    notes: Notes, entries: Sequence[dict[str, Any]]
) -> tuple[dict[int, dict[str, Any]], dict[Any, int]]:
    """Read the list of images.

    Args:
        notes: get an error for an entry without a name, an id of two names, a name of two sizes.
        entries: "images" of the file.

    Returns:
        entries by id, each file once and each with a "file_name", and the id that stands for each
        id of the file.
    """
    images: dict[Any, dict[str, Any]] = {}
    ids: dict[Any, Any] = {}
    by_name: dict[str, Any] = {}
    paths: dict[Any, set[str]] = defaultdict(set)  # COCO Annotator's, of one file_name
    for entry in entries:
        if entry.get("path"):
            paths[entry.get("file_name")].add(entry["path"])
    for entry in entries:
        key, path = entry["id"], entry.get("path")
        name = entry.get("file_name") or path or entry.get("coco_url")
        if path and len(paths[entry.get("file_name")]) > 1:
            name = path
        if not name:
            notes.error(f"image {key} has no 'file_name'")
            continue
        if key in ids and images[ids[key]]["file_name"] != name:
            one = images[ids[key]]["file_name"]
            notes.error(f"image id {key} stands for {one!r} and for {name!r}")
            continue
        if name in by_name:
            one, other = declared_size(images[by_name[name]]), declared_size(entry)
            if one and other and one != other:
                notes.error(
                    f"image {name!r} is listed twice, as {[*one]} and {[*other]} (width, height): "
                    "its annotations cannot be put together"
                )
            notes.add("{n} images are listed twice; their annotations were put together", key)
        ids[key] = by_name.setdefault(name, key)
        images.setdefault(ids[key], {**entry, "file_name": name})
    if not all(map(is_usable, images)):
        numbered = {key: index for index, key in enumerate(images, 1)}
        for key in images:
            if not is_usable(key):
                notes.add("{n} image ids are no numbers; all images were numbered", key)
        images = {numbered[key]: entry for key, entry in images.items()}
        ids = {key: numbered[kept] for key, kept in ids.items()}
    return images, ids


def declared_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return the width and height of an entry, rounded; None if they are not there or none."""
    width, height = entry.get("width"), entry.get("height")
    if width is None or height is None or width * height >= MOST_PIXELS:
        return None
    return round(width), round(height)


def find_images(
    notes: Notes, root: Path | None, entries: dict[int, dict[str, Any]], options: Options
) -> tuple[dict[int, ImageFile], list[str]]:
    """Find the pictures of an annotation file and read their sizes.

    Args:
        notes: get an error where pictures are not there or cannot be read and the options do not
            leave them out, where a name can mean several files or several names one, and where a
            picture is of another shape than the file says.
        root: the folder of the pictures; None trusts the sizes in the file and opens none.
        entries: "images" by id; each has a "file_name".
        options: whether pictures that are not there, or cannot be read, are left out.

    Returns:
        the pictures that are there, by id; what is wrong with those that cannot be read.

    Raises:
        MissingFileError: there is no such folder.
    """
    if root is None:
        sized = {number: declared_size(entry) for number, entry in entries.items()}
        for number in (number for number, size in sized.items() if size is None):
            notes.error(
                f"image {number} has no width and height, and without a folder of images "
                "(--images) its file cannot tell them"
            )
        return {
            n: ImageFile(Path(entries[n]["file_name"]), s, s) for n, s in sized.items() if s
        }, []
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
    elif unreadable:
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
    missing = {n: _split(name) for n, name in names.items() if n not in paths}
    found = ImageFolder(root, set(paths.values())).find(missing) if missing else {}
    for number, candidates in found.items():
        if len(candidates) > 1:
            notes.error(f"image {names[number]!r} can be any of {some(candidates)}")
            continue
        paths[number] = candidates[0]
        shown = candidates[0].relative_to(root)
        notes.add("{n} images were found under other names", f"{names[number]!r} as {shown}")
    absent = [name for number, name in names.items() if number not in paths | found]
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


def _split(name: str) -> tuple[Parts, str]:
    """The folders of a path of any machine, or of an address, and the name in them."""
    decoded = unquote(re.sub(r"[?#].*", "", name) if "://" in name else name)
    parts = PurePosixPath(decoded.strip().replace("\\", "/")).parts
    folders = tuple(part for part in parts[:-1] if part not in ("/", "..", "."))
    return folders, parts[-1] if parts else ""


class ImageFolder:
    """Finds pictures below a folder whose names are not quite what an annotation file says.

    All pictures of one folder of the file are looked for in one folder of the disk, so that no
    mask, and no frame of another video, takes the place of a picture that is not there.

    Args:
        root: the folder.
        taken: files that other entries name exactly.
    """

    def __init__(self, root: Path, taken: set[Path]) -> None:
        self.root = root
        self.folders: dict[Parts, dict[str, list[Path]]] = {}
        """Pictures by their normalised names, for each folder below the root."""
        self.in_use = {self._folder(path) for path in taken if path.is_relative_to(root)}
        for folder, _, names in os.walk(root):
            files: dict[str, list[Path]] = defaultdict(list)
            for name in sorted(names):
                path = Path(folder, name)
                if _has_ending(name) and path not in taken and path.is_file():
                    files[plain(name)].append(path)
                    if not _has_ending(path.stem):  # converters write names without one
                        files[plain(path.stem)].append(path)
            self.folders[Path(folder).relative_to(root).parts] = files

    def find(self, missing: dict[int, tuple[Parts, str]]) -> dict[int, list[Path]]:
        """Find pictures by the folders and names that the file gives them.

        A folder may have more or fewer folders above it than the file says, and be written in
        another case. Names without a folder are also looked for in those that pictures were found
        in. If no picture was found anywhere, the folder that has most of the names is theirs.

        Args:
            missing: folders and name, by id of the image.

        Returns:
            paths by id, several where a name can mean several; without those that are not there.
        """
        groups: dict[Parts, dict[int, str]] = defaultdict(dict)
        for number, (folders, name) in missing.items():
            groups[folders][number] = name
        found: dict[int, list[Path]] = {}
        rest = {}
        for folders, names in groups.items():
            near = [folder for folder in self.folders if _is_same_place(folder, folders)]
            if paths := self._best(near, folders, names):
                found |= paths
            else:
                rest[folders] = names
        used = self.in_use | {self._folder(path) for paths in found.values() for path in paths}
        for folders, names in rest.items():
            if not used or not folders:
                found |= self._best(used or self.folders, folders, names)
        return found

    def _folder(self, path: Path) -> Parts:
        return path.parent.relative_to(self.root).parts

    def _best(
        self, candidates: Iterable[Parts], folders: Parts, names: dict[int, str]
    ) -> dict[int, list[Path]]:
        """Paths in the folder that has most of these names, or that is most like the file's."""
        ranks = {
            folder: (
                sum(plain(name) in self.folders[folder] for name in names.values()),
                _common_end(folder, folders),
            )
            for folder in candidates
        }
        best = [folder for folder, rank in ranks.items() if rank == max(ranks.values())]
        found = {}
        for number, name in names.items():
            paths = [path for folder in best for path in self.folders[folder].get(plain(name), ())]
            if paths:
                found[number] = [path for path in paths if path.name == name] or paths
        return found


def _has_ending(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS


def _common_end(ours: Parts, theirs: Parts) -> int:
    """How many folders at the end of two paths are the same."""
    pairs = zip(reversed(ours), reversed(theirs), strict=False)
    return sum(1 for _ in takewhile(lambda pair: plain(pair[0]) == plain(pair[1]), pairs))


def _is_same_place(ours: Parts, theirs: Parts) -> bool:
    """Whether a folder can be the file's, with folders above it left out or added."""
    if not theirs:
        return not ours
    return _common_end(ours, theirs) == min(len(ours), len(theirs))


def _sized(
    notes: Notes, number: int, entry: dict[str, Any], path: Path, header: Header
) -> ImageFile | None:
    """Compare a picture's size with the file's; None, and an error, if it is of another shape."""
    if header.pages > 1:
        notes.add("{n} images have several pages, of which the first is read", path.name)
    declared = declared_size(entry)
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
