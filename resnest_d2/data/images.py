"""Pictures as arrays: one reader for training, evaluation and prediction."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.logger import log_first_n
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from ..config import ConfigError, InputError, MissingFileError, require_int
from ..files import IS_POINTER, LFS_POINTER, PathManager

# Not all that Pillow knows: reading EPS runs Ghostscript on it.
Image.init()
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)  # older Pillows lack AVIF
IMAGE_ENDINGS = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
IMAGE_ENDINGS.add(".mpo")  # several JPEGs in one
# Transparent pixels show this colour (RGB), as annotation tools and browsers show it.
BACKGROUND = (255, 255, 255)
# These make pictures of EXIF's orientations upright; from 5 on width and height are exchanged.
UPRIGHT = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM}
UPRIGHT |= {5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270}
UPRIGHT |= {7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
# Where Pillow finds the orientation in a PNG; behind its pixels nothing is looked for.
PNG_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}

# Pillow warns from half its limit on, once a picture.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

LARGEST = 1e300  # of a range
# Pictures of 16 bits whose values stay below become almost black, as those of cameras of 12 bits.
DARK = 2**13


class PixelRange(NamedTuple):
    """The values of pictures of more than 8 bits that become 0 to 255; others are clipped."""

    low: float
    high: float
    in_percent: bool
    """Whether they are percentiles of each picture."""

    @classmethod
    def of(cls, values: Sequence[float | str]) -> "PixelRange | None":
        """Read ``INPUT.PIXEL_RANGE``: two numbers, two percentages as texts, or nothing.

        Raises:
            ConfigError: it is something else.
        """
        if not values:
            return None
        texts = [str(value) for value in values]
        in_percent = all(text.endswith("%") for text in texts)
        try:
            low, high = (float(text.removesuffix("%") if in_percent else text) for text in texts)
            least, most = (0, 100) if in_percent else (-LARGEST, LARGEST)
            if not least <= low < high <= most:
                raise ValueError
        except ValueError:
            raise ConfigError(
                "INPUT.PIXEL_RANGE must be two numbers, (0, 4095), or percentages of each "
                f"picture's values, ('0.1%', '99.9%'), the lower one first; got {list(values)}"
            ) from None
        return cls(low, high, in_percent)

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "PixelRange | None":
        """As :meth:`of`, of a config that may lack the key."""
        return cls.of(cfg.INPUT.get("PIXEL_RANGE", ()))

    def scale(self, pixels: np.ndarray) -> np.ndarray:
        """Turn values into 8 bits; what is no number becomes 0, infinity 255."""
        pixels = pixels.astype(np.float64)
        low, high = self.low, self.high
        if self.in_percent:
            finite = pixels[np.isfinite(pixels)]
            low, high = np.percentile(finite, [low, high]) if finite.size else (0, 0)
        if not low < high:
            return np.zeros(pixels.shape, np.uint8)
        scaled = (np.nan_to_num(pixels, nan=low).clip(low, high) - low) / (high - low)
        return (255 * scaled).round().astype(np.uint8)


class Header(NamedTuple):
    """Facts that the beginning of a picture's file tells."""

    size: tuple[int, int]
    """Width and height of the upright picture."""
    is_turned: bool
    """Whether EXIF exchanges the width and height that are stored."""


def set_max_pixels(number: int | None) -> None:
    """Read pictures of up to so many pixels; None leaves Pillow's limit of 178,956,970.

    Raises:
        InputError: the number is below 1.
    """
    if number is None:
        return
    require_int("--max-pixels", number, least=1)
    Image.MAX_IMAGE_PIXELS = -(-number // 2)  # Pillow warns above it, and refuses above its double


def read_image(
    file: str | Path, image_format: str = "RGB", pixel_range: PixelRange | None = None
) -> np.ndarray:
    """Read a picture upright and in 8 bits a channel.

    Without a range, pictures of 16 bits are divided by 257, so that their whole range becomes 0 to
    255. Transparency shows :data:`BACKGROUND`. Of several pages the first is read.

    Args:
        file: a path that Detectron2's PathManager opens.
        image_format: as ``INPUT.FORMAT``, "RGB", "BGR", "L" or "YUV-BT.601".
        pixel_range: of pictures of more than 8 bits.

    Returns:
        shape (H, W, channels), uint8; float for YUV.

    Raises:
        InputError: it is no picture, is damaged, has too many pixels (see :func:`set_max_pixels`
            for a way out), or they are integers or floating-point numbers of 32 bits, and no range
            is given.
        MissingFileError: there is no such file.
    """
    with _open(file) as image:
        with _damage():
            # Telephones write several JPEGs into one, of which the others are previews.
            is_longer = image.format != "MPO" and getattr(image, "is_animated", False)
        if is_longer:
            message = f"{file} has several pages, of which the first is read, as of all such files"
            log_first_n(logging.WARNING, message, name=__name__, key="caller")
        return from_pil(image, image_format, pixel_range)


def from_pil(
    image: Image.Image, image_format: str = "RGB", pixel_range: PixelRange | None = None
) -> np.ndarray:
    """Convert a picture that Pillow has opened as :func:`read_image` does.

    Raises:
        InputError: it is damaged, or the range or meaning of its pixels is not known.
    """
    bits, orientation = _bits(image), _orientation(image)
    if pixel_range is None:
        _require_range(image)
    elif bits == 8 and any(";16" in str(tile[3]) for tile in image.tile):
        raise InputError(
            "it has 16 bits a colour, of which Pillow reads the upper 8, so that INPUT.PIXEL_RANGE "
            "cannot spread them: save it in 8 bits, or in grey"
        )
    with _damage():
        image.load()
        if orientation in UPRIGHT and image.format != "TIFF":  # which Pillow turns itself
            image = image.transpose(UPRIGHT[orientation])
        if bits == 8:
            if image.has_transparency_data:
                background = Image.new("RGBA", image.size, BACKGROUND)
                image = Image.alpha_composite(background, image.convert("RGBA"))
            image = image.convert("L" if image_format == "L" else "RGB")
    if bits > 8:
        pixels = np.asarray(image)
        if pixel_range is None:
            _warn_of_dark(int(pixels.max()))
            pixels = (pixels // 257).astype(np.uint8)
        else:
            pixels = pixel_range.scale(pixels)
        image = Image.fromarray(pixels)
    return convert_PIL_to_numpy(image, image_format)


def _warn_of_dark(most: int) -> None:
    """Warn, once, of a picture of 16 bits that uses few of them."""
    if 256 <= most < DARK:  # below, nothing can be told from one picture
        whole = 2 ** max(most, 1).bit_length() - 1
        message = (
            f"A picture of 16 bits has values up to {most}, which become {most // 257} of 255 at "
            f"most, almost black: INPUT.PIXEL_RANGE '(0, {whole})' spreads them, or ('0.1%', "
            "'99.9%') those of each picture"
        )
        log_first_n(logging.WARNING, message, name=__name__, key="caller")


def read_labels(file: str | Path, dtype: type = np.uint8) -> np.ndarray:
    """Read a map of classes; of a palette its indices count, not its colours.

    Returns:
        shape (H, W), of the data type.

    Raises:
        InputError: it is no picture, is damaged, or has labels that the data type cannot hold.
        MissingFileError: there is no such file.
    """
    with _open(file) as image:
        with _damage():
            labels = np.asarray(image if len(image.getbands()) == 1 else image.convert("L"))
        converted = labels.astype(dtype)
        if not np.array_equal(converted, labels):
            raise InputError(f"its labels, up to {labels.max()}, are no {np.dtype(dtype)}")
        return converted


def read_header(file: str | Path, has_range: bool = False) -> Header:
    """Read the beginning of a picture's file.

    Args:
        file: a path that Detectron2's PathManager opens.
        has_range: whether pictures of 32 bits will be read with a range.

    Raises:
        InputError, MissingFileError: as :func:`read_image`, for what the beginning tells.
    """
    with _open(file) as image:
        if not has_range:
            _require_range(image)
        is_turned = _orientation(image) >= 5
        turns_late = is_turned and image.format != "TIFF"
        return Header(image.size[::-1] if turns_late else image.size, is_turned)


@contextmanager
def _damage() -> Iterator[None]:
    """Name what Pillow raises where a file is damaged; only calls of Pillow belong inside."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise InputError(f"{error}; --max-pixels allows more") from error
    except UnidentifiedImageError as error:
        raise InputError(f"it is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # the first wrong byte decides which one it is
        raise InputError(str(error) or type(error).__name__) from error


@contextmanager
def _open(file: str | Path) -> Iterator[Image.Image]:
    """Open a picture; its file's name stands before what is wrong with it."""
    wrong = f"{file} cannot be read as a picture"
    try:
        stream = PathManager.open(str(file), "rb")
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {file}") from error
    except OSError as error:
        raise InputError(f"{wrong}: {error}") from error
    try:
        with stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise InputError(f"it is {IS_POINTER}")
            stream.seek(0)
            with _damage():
                image = Image.open(stream, formats=FORMATS)
            with image:
                yield image
    except InputError as error:
        raise InputError(f"{wrong}: {error}") from error


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; what is none of these, or damaged, turns nothing."""
    if image.format == "PNG" and not PNG_EXIF & image.info.keys():
        return 1  # Pillow would decode all pixels to look behind them
    try:
        with _damage():
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except InputError:
        return 1
    return int(value) if value in tuple(UPRIGHT) else 1


def _require_range(image: Image.Image) -> None:
    """Refuse pixels of 32 bits."""
    if _bits(image) == 32:
        kind = "floating-point numbers" if image.mode == "F" else "integers"
        raise InputError(
            f"its pixels are {kind} of 32 bits, whose range is not known: give it as "
            "INPUT.PIXEL_RANGE '(low, high)', to check-data as --pixel-range"
        )


def _bits(image: Image.Image) -> int:
    """Bits of a channel: 8, 16 or 32."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return 16
    return 32 if image.mode in ("I", "F") else 8
