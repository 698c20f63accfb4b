"""Pictures of every kind are one array in training, evaluation and prediction, or one sentence."""

import contextlib
import io
import logging
import pickle

import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MapDataset, detection_utils
from detectron2.utils.logger import _LOG_COUNTER
from helpers import make_cfg
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from resnest_d2 import Predictor
from resnest_d2.config import ConfigError, InputError, MissingFileError
from resnest_d2.data.images import (
    BACKGROUND,
    PixelRange,
    from_pil,
    read_header,
    read_image,
    read_labels,
    set_max_pixels,
)
from resnest_d2.data.mapper import Mapper
from resnest_d2.engine import Trainer

HEIGHT, WIDTH = 12, 20
RAMP = np.linspace(0, 255, HEIGHT * WIDTH).round().astype(np.uint8).reshape(HEIGHT, WIDTH)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)
GRAY = RAMP[..., None].repeat(3, axis=2)
TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6


def save(folder, name, array, mode=None, **options):
    file = folder / name
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, **options)
    return file


# How a picture is stored, and the RGB array that it means.
LOSSLESS = {
    "RGB.png": (COLOURS, None, COLOURS),
    "RGB.bmp": (COLOURS, None, COLOURS),
    "RGB.tif": (COLOURS, None, COLOURS),
    "RGB.webp": (COLOURS, None, COLOURS),
    "RGB.jp2": (COLOURS, None, COLOURS),
    "RGB.ppm": (COLOURS, None, COLOURS),
    "gray.png": (RAMP, None, GRAY),
    "gray.tif": (RAMP, None, GRAY),
    "palette.png": (RAMP, "P", GRAY),
    "palette.gif": (RAMP, "P", GRAY),
    "two colours.png": ((RAMP > 99).astype(np.uint8) * 255, "1", (GRAY > 99) * np.uint8(255)),
    "opaque.png": (COLOURS, "RGBA", COLOURS),
    "gray opaque.png": (RAMP, "LA", GRAY),
    "16 bits.png": (RAMP.astype(np.uint16) * 257, None, GRAY),
    "16 bits.tif": (RAMP.astype(np.uint16) * 257, None, GRAY),
    "16 bits big-endian.tif": ((RAMP.astype(np.uint16) * 257).astype(">u2"), None, GRAY),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_what_is_stored_is_what_is_read(tmp_path, name):
    """In training and evaluation, too."""
    array, mode, expected = LOSSLESS[name]
    options = {"lossless": True} if name.endswith("webp") else {}
    file = save(tmp_path, name, array, mode, **options)
    assert np.array_equal(read_image(file), expected)
    assert read_image(file).dtype == np.uint8
    assert read_header(file).size == (WIDTH, HEIGHT)
    for is_train in (True, False):
        image = mapper(Mapper, is_train)(record(file))["image"].numpy()
        assert np.array_equal(image.transpose(1, 2, 0), expected)


def test_cmyk(tmp_path):
    file = save(tmp_path, "a.tif", COLOURS, "CMYK")
    assert np.abs(read_image(file).astype(int) - COLOURS).max() <= 1
    file = save(tmp_path, "a.jpg", GRAY, "CMYK", quality=100)
    assert np.abs(read_image(file).astype(int) - GRAY).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_background(tmp_path, mode):
    colours = GRAY if mode == "LA" else COLOURS
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, 10:], alpha[:, 15:] = 128, 255
    image = Image.fromarray(np.dstack([colours, alpha]))
    if mode == "P":
        image = Image.fromarray(np.where(alpha == 255, 7, 3).astype(np.uint8)).convert("P")
        image.putpalette([value for index in range(8) for value in (index, 2 * index, 90)])
        image.save(tmp_path / "a.png", transparency=3)
        found = read_image(tmp_path / "a.png")
        assert (found[:, :15] == BACKGROUND).all()
        assert (found[:, 15:] == (7, 14, 90)).all()
        return
    image.convert(mode).save(tmp_path / "a.png")
    share = alpha[..., None] / 255
    expected = colours * share + np.array(BACKGROUND) * (1 - share)
    assert np.abs(read_image(tmp_path / "a.png") - expected).max() <= 1


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("value", [*range(1, 9), 0, 9, 42])
def test_exif_of_all_orientations_and_of_what_is_none(tmp_path, ending, value):
    """The same as Pillow's own turning, which a TIFF that was loaded has behind it."""
    options = {"lossless": True} if ending == "webp" else {}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    file = save(tmp_path, f"a.{ending}", COLOURS, exif=exif, **options)
    with Image.open(file) as image:
        assert np.array_equal(from_pil(image), read_image(file))
        expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(from_pil(image), expected)  # after it was loaded
    assert read_header(file).size == expected.shape[1::-1]
    assert read_header(file).is_turned == (value in range(5, 9))


def test_exif_that_is_damaged_turns_nothing(tmp_path):
    file = save(tmp_path, "a.png", COLOURS, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01")
    assert np.array_equal(read_image(file), COLOURS)
    assert read_header(file).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("has_exif", [True, False])
def test_a_header_of_a_png_reads_no_pixels(tmp_path, monkeypatch, has_exif):
    file = save(tmp_path, "a.png", COLOURS, exif=TURNED if has_exif else None)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("pixels"))
    assert read_header(file).size == ((HEIGHT, WIDTH) if has_exif else (WIDTH, HEIGHT))


@pytest.mark.parametrize("text", ["tEXt", "iTXt"])
def test_orientation_in_texts_of_a_png(tmp_path, text):
    """As older tools and Adobe's write it; Pillow reads the same."""
    info = PngImagePlugin.PngInfo()
    if text == "iTXt":
        info.add_itxt("XML:com.adobe.xmp", '<x><rdf:Description tiff:Orientation="6"/></x>')
    else:
        profile = TURNED.tobytes()
        info.add_text("Raw profile type exif", f"\nexif\n{len(profile):8d}\n{profile.hex()}\n")
    for array, expected in ((COLOURS, COLOURS), (RAMP.astype(np.uint16) * 257, GRAY)):
        file = save(tmp_path, "a.png", array, pnginfo=info)
        assert read_header(file).size == (HEIGHT, WIDTH)
        assert np.array_equal(read_image(file), np.rot90(expected, -1))


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L", "YUV-BT.601"])
def test_formats_are_detectron2s(tmp_path, image_format):
    file = save(tmp_path, "a.jpg", COLOURS)
    expected = detection_utils.read_image(str(file), image_format)
    assert np.array_equal(read_image(file, image_format), expected)


@pytest.mark.parametrize(("dtype", "kind"), [("int32", "integers"), ("float32", "floating-point")])
def test_pixels_without_a_known_range_are_refused(tmp_path, dtype, kind):
    file = save(tmp_path, "a.tif", RAMP.astype(dtype))
    for read in (read_image, read_header):
        message = f"a.tif cannot be read .*{kind}.* of 32 bits, whose .* INPUT.PIXEL_RANGE '.low, "
        with pytest.raises(InputError, match=message):
            read(file)
    assert read_header(file, has_range=True).size == (WIDTH, HEIGHT)


def test_colours_of_16_bits_take_no_range(tmp_path):
    """Pillow reads their upper 8 bits."""
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.full((4, 4, 3), 2000, np.uint16))
    assert (read_image(file) == 2000 >> 8).all()
    with pytest.raises(InputError, match="a.png cannot be read .* 16 bits a colour"):
        read_image(file, pixel_range=PixelRange.of((0, 4095)))


TWELVE = (RAMP.astype(np.float64) / 255 * 4095).round()


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_twelve_bits_are_warned_of_and_spread(tmp_path, name, caplog):
    _LOG_COUNTER.clear()
    assert read_image(save(tmp_path, name, np.zeros((4, 4), np.uint16))).max() == 0
    assert "almost black" not in caplog.text  # which says nothing of its range
    file = save(tmp_path, name, TWELVE.astype(np.uint16))
    assert read_image(file).max() == 15
    assert "has values up to 4095, which become 15 of 255 at most, almost black" in caplog.text
    assert "INPUT.PIXEL_RANGE '(0, 4095)' spreads them" in caplog.text
    for values in ((0, 4095), ["0", "4095"], ("0%", "100%")):
        assert np.array_equal(read_image(file, pixel_range=PixelRange.of(values)), GRAY)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_a_range_reads_32_bits(tmp_path, dtype):
    file = save(tmp_path, "a.tif", (RAMP.astype(np.float64) * 100 - 7000).astype(dtype))
    found = read_image(file, pixel_range=PixelRange.of((-7000, 18500)))
    assert np.array_equal(found, GRAY)
    clipped = read_image(file, pixel_range=PixelRange.of((0, 10000)))
    assert (clipped.min(), clipped.max()) == (0, 255)
    assert (read_image(file, pixel_range=PixelRange.of(("10%", "90%"))) == 255).mean() > 0.09
    holes = np.where(RAMP < 80, np.nan, RAMP.astype(np.float32) * 100)
    holes[0, :3] = np.inf, -np.inf, 25500
    file = save(tmp_path, "holes.tif", holes.astype(np.float32))
    found = read_image(file, pixel_range=PixelRange.of(("0%", "100%")))
    assert found[0, :3, 0].tolist() == [255, 0, 255]
    assert abs(found[RAMP == 168][0, 0] - round(255 * (168 - 80) / 175)) <= 1
    flat = np.full((4, 4), np.nan, np.float32)
    file = save(tmp_path, "flat.tif", flat)
    assert read_image(file, pixel_range=PixelRange.of(("1%", "99%"))).max() == 0


@pytest.mark.parametrize(
    "values",
    [
        *((5, 5), (9, 1), (0,), (1, 2, 3), "ab", (0, "x"), ("-inf", 5)),
        *(("0%", 9), ("0%", "100.01%"), ("-1%", "50%")),
    ],
)
def test_ranges_that_are_none(values):
    with pytest.raises(ConfigError, match="INPUT.PIXEL_RANGE must be two numbers, .0, 4095., or"):
        PixelRange.of(values)


def test_training_and_prediction_read_the_range_of_the_config(tmp_path, small_detector):
    file = save(tmp_path, "a.tif", TWELVE.astype(np.uint16))
    opts = ["INPUT.PIXEL_RANGE", "(0, 4095)"]
    predictor = Predictor(small_detector, options=opts)
    assert np.array_equal(predictor.read(file), GRAY)
    assert np.array_equal(predictor.read(Image.open(file)), GRAY)
    cfg = make_cfg(*opts, "INPUT.FORMAT", "RGB")
    entry = {"file_name": str(file), "image_id": 1, "width": WIDTH, "height": HEIGHT}
    cfg.INPUT.MIN_SIZE_TEST = 0  # the size stays
    DatasetCatalog.register("of 12 bits", lambda: [entry])
    try:
        (batch,) = Trainer.build_test_loader(cfg, "of 12 bits")
    finally:
        DatasetCatalog.remove("of 12 bits")
    assert np.array_equal(batch[0]["image"].permute(1, 2, 0), GRAY)


def test_files_that_are_damaged_or_no_pictures(tmp_path):
    file = save(tmp_path, "a.jpg", COLOURS.repeat(20, 0).repeat(20, 1))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert read_header(file).size == (20 * WIDTH, 20 * HEIGHT)
    with pytest.raises(InputError, match="a.jpg cannot be read as a picture: .*truncated"):
        read_image(file)
    eps = io.BytesIO()
    Image.fromarray(COLOURS).save(eps, "EPS")  # reading it would run Ghostscript
    for wrong in (b"", b"<html>404</html>", content[:3], eps.getvalue()):
        file.write_bytes(wrong)
        for read in (read_image, read_header):
            with pytest.raises(
                InputError, match="a.jpg cannot be read as a picture: it is none of"
            ):
                read(file)
    with pytest.raises(MissingFileError, match="absent.png"):
        read_image(tmp_path / "absent.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
def test_damage_of_any_kind_is_an_error_of_the_file(tmp_path, kind):
    """Cut off and with wrong bytes, most of them where the headers are."""
    generator = np.random.default_rng(0)
    file = tmp_path / "a.bin"
    for mode in ("RGB", "L") * 5 if kind in ("JPEG", "JPEG2000", "PPM") else ("RGB", "P", "1") * 5:
        image, sound = Image.fromarray(COLOURS).convert(mode), io.BytesIO()
        pages = {"save_all": True, "append_images": [image]} if kind in ("GIF", "TIFF") else {}
        image.save(sound, kind, exif=TURNED, **pages)
        for _ in range(10):
            content = bytearray(sound.getvalue())
            for end in generator.choice([60, 300, len(content)], generator.integers(6)):
                content[generator.integers(end) % len(content)] = generator.integers(256)
            file.write_bytes(content[: generator.choice([len(content), generator.integers(9999)])])
            for read in (read_image, read_header, read_labels):
                with contextlib.suppress(InputError):
                    read(file)


def test_more_pixels_are_read_where_they_are_allowed(tmp_path, monkeypatch):
    file = save(tmp_path, "a.png", COLOURS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(InputError, match="a.png cannot be .* pixels.*--max-pixels allows more"):
        read_image(file)
    set_max_pixels(WIDTH * HEIGHT - 2)
    with pytest.raises(InputError, match="a.png cannot be .* pixels.*--max-pixels allows more"):
        read_header(file)
    set_max_pixels(WIDTH * HEIGHT)
    set_max_pixels(None)  # changes nothing
    assert np.array_equal(read_image(file), COLOURS)
    with pytest.raises(InputError, match="--max-pixels must be at least 1, got 0"):
        set_max_pixels(0)


def test_a_loaders_process_has_the_limit_of_pixels(tmp_path, monkeypatch):
    """Also where it is started afresh, which takes it from the pickled mapper."""
    given = record(save(tmp_path, "a.png", COLOURS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    set_max_pixels(WIDTH * HEIGHT)
    pickled = pickle.dumps(mapper(Mapper))
    Image.MAX_IMAGE_PIXELS = 1
    assert pickle.loads(pickled)(given)["image"].shape == (3, HEIGHT, WIDTH)


def test_labels_are_indices(tmp_path):
    labels = (RAMP % 5).astype(np.uint8)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette([200, 100, 50] * 5)
    palette.save(tmp_path / "p.png")
    files = [save(tmp_path, "l.png", labels), tmp_path / "p.png"]
    files.append(save(tmp_path, "rgb.png", labels[..., None].repeat(3, 2)))
    files.append(save(tmp_path, "i.png", labels.astype(np.uint16)))
    for file in files:
        assert np.array_equal(read_labels(file), labels)
    file = save(tmp_path, "many.png", labels.astype(np.uint16) + 300)
    assert read_labels(file, dtype=int).max() == 304
    with pytest.raises(InputError, match="many.png cannot .* labels, up to 304, are no uint8"):
        read_labels(file)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.jpg"])
def test_of_several_pages_the_first(tmp_path, name, caplog):
    _LOG_COUNTER.clear()
    pages = [Image.fromarray(a) for a in (COLOURS, COLOURS[::-1])]
    kind = "MPO" if name == "a.jpg" else None  # as telephones name what holds previews, too
    pages[0].save(tmp_path / name, kind, save_all=True, append_images=pages[1:])
    assert np.abs(read_image(tmp_path / name).astype(int) - COLOURS).mean() < 30
    assert ("a.tif has several pages, of which the first" in caplog.text) == (name == "a.tif")
    assert ("has several pages" in caplog.text) == (name != "a.jpg")


def mapper(kind, is_train=False, **arguments):
    arguments = {"augmentations": [T.NoOpTransform()], "image_format": "RGB"} | arguments
    return kind(is_train=is_train, **arguments)


def record(file, **values):
    return {"file_name": str(file), "height": HEIGHT, "width": WIDTH, "image_id": 1, **values}


ANNOTATION = {
    **{"bbox": [2, 3, 6, 5], "bbox_mode": 1, "category_id": 0, "iscrowd": 0},
    "segmentation": [[2, 3, 8, 3, 8, 8, 2, 8]],
}


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("recompute_boxes", [True, False])
def test_what_detectron2s_mapper_reads_is_read_the_same(tmp_path, mask_format, recompute_boxes):
    (tmp_path / "map.png").write_bytes(save(tmp_path, "labels.png", RAMP % 3).read_bytes())
    given = record(
        save(tmp_path, "a.jpg", COLOURS),
        annotations=[ANNOTATION, {**ANNOTATION, "iscrowd": 1}],
        sem_seg_file_name=str(tmp_path / "map.png"),
    )
    options = {
        "use_instance_mask": True,
        "instance_mask_format": mask_format,
        "recompute_boxes": recompute_boxes,
        "augmentations": [T.RandomCrop("absolute", (8, 9)), T.RandomFlip()],
    }
    for seed in range(5):
        found = []
        for kind in (Mapper, DatasetMapper):
            np.random.seed(seed)
            found.append(mapper(kind, True, **options)(given))
        ours, theirs = found
        assert ours.keys() == theirs.keys()
        assert np.array_equal(ours["image"], theirs["image"])
        assert np.array_equal(ours["sem_seg"], theirs["sem_seg"])
        assert str(ours["instances"]) == str(theirs["instances"])


@pytest.mark.parametrize("annotations", [[], [{**ANNOTATION, "iscrowd": 1}]])
def test_cropping_takes_images_without_objects(tmp_path, annotations):
    given = record(save(tmp_path, "a.jpg", COLOURS), annotations=annotations)
    options = {
        "use_instance_mask": True,
        "recompute_boxes": True,
        "augmentations": [T.RandomCrop("relative", (0.5, 0.5))],
    }
    found = mapper(Mapper, True, **options)(given)
    assert len(found["instances"]) == 0
    assert found["image"].shape == (3, HEIGHT // 2, WIDTH // 2)


def test_a_picture_of_another_size_than_its_dict_names_the_file(tmp_path):
    given = record(save(tmp_path, "a.jpg", COLOURS)) | {"height": 99}
    with pytest.raises(InputError, match="a.jpg"):
        mapper(Mapper)(given)


def test_bad_pictures_are_skipped_where_that_is_asked_for(tmp_path, caplog):
    """Detectron2's own data set takes another image for None."""
    (tmp_path / "bad.png").write_bytes(b"<html>")
    given = [record(tmp_path / "bad.png"), record(save(tmp_path, "good.png", COLOURS))]
    reader = mapper(Mapper, True, skip_bad_images=True)
    found = MapDataset(given, pickle.loads(pickle.dumps(reader)))[0]
    assert np.array_equal(found["image"].numpy().transpose(1, 2, 0), COLOURS)
    assert reader(given[0]) is reader(given[0]) is None
    (warned,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "bad.png cannot be read" in warned
    # An evaluation counts every image.
    for is_train, skip in ((False, True), (True, False)):
        with pytest.raises(InputError, match="bad.png"):
            mapper(Mapper, is_train, skip_bad_images=skip)(given[0])


def test_a_defect_is_no_bad_picture(tmp_path, monkeypatch):
    """What our own code or an augmentation raises is not taken for damage of the file."""
    file = save(tmp_path, "a.png", COLOURS)
    monkeypatch.setattr("resnest_d2.data.images.convert_PIL_to_numpy", lambda *given: {}["a"])
    with pytest.raises(KeyError):
        mapper(Mapper, True, skip_bad_images=True)(record(file))
