"""A detector for pictures of every kind that feeds the colours its config asks for."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image
from torch import nn

from .. import model_zoo
from ..config import InputError, require_int
from ..config.load import check_device, choose_device
from ..config.settings import Config, Settings
from ..modeling.detector import build_detector
from ..optimize import optimize_for_inference
from ..weights import load_detector, read_classes
from ..weights.files import ENDINGS
from ..weights.loading import number_of_classes
from ..weights.stored_config import load_config_of_weights, weights_named
from .result import Result
from .sources import each_picture, is_picture, read_picture, require_pictures
from .tiles import check_tiles, predict_tiles

logger = logging.getLogger(__name__)

CONFIGS = (".yaml", ".yml", ".py")
EXPORTED = (".onnx", ".pt2", ".ts")


class Predictor:
    """A model in evaluation mode that takes RGB pictures.

    Detectron2's ``DefaultPredictor`` wants BGR whatever ``INPUT.FORMAT`` says, which is easy to get
    wrong; this one takes RGB and converts it to what the config names.

    Number and names of classes are those that the checkpoint was trained on, if it tells; else
    those of the config and its data set. Classes are named by their numbers, and a warning says so,
    if there are not as many names.

    Args:
        model: a name of the zoo, with the weights that were published; a config, or its file; a
            checkpoint that holds its config; the folder of a training or a published model; or a
            file of :mod:`resnest_d2.export`. The weights must be a trained detector's.
        allow_untrained: run although the weights leave parameters at random values.
        weights: in place of the config's, as ``MODEL.WEIGHTS``.
        device: as ``MODEL.DEVICE``; by default the config's, if the machine has it.
        optimize: run :func:`~resnest_d2.optimize_for_inference`; "compile" also compiles.
        half: compute backbone and heads in half precision: float16 on GPUs, bfloat16 on CPUs.
        tile: run on overlapping tiles of so many pixels, for large pictures with small objects.
        overlap: of tiles that are neighbours, as a part of their size.
        options: overrides of the config, pairs of KEY and VALUE.

    Raises:
        FileNotFoundError: no such weights.
        InputError: there is no such model, or a checkpoint holds no config.
        UntrainedParametersError: the weights leave parameters untouched.
    """

    def __init__(
        self,
        model: str | Path | Config,
        allow_untrained: bool = False,
        *,
        weights: str | Path | None = None,
        device: str | None = None,
        optimize: bool | Literal["compile"] = False,
        half: bool = False,
        tile: int | None = None,
        overlap: float = 0.2,
        options: Sequence[str] = (),
    ) -> None:
        if optimize not in (False, True, "compile"):
            raise ValueError(f'optimize must be False, True or "compile", got {optimize!r}')
        self._tiles = None if tile is None else (tile, overlap)
        if self._tiles is not None:
            check_tiles(*self._tiles)
        self._least = 0.0
        if isinstance(model, str | Path) and Path(model).suffix in EXPORTED:
            given = {"weights": weights, "device": device, "options": options}
            given |= {"optimize": optimize, "half": half}
            self._open_exported(Path(model), [name for name, value in given.items() if value])
            return
        if isinstance(model, str | Path):
            settings = _find(str(model), str(weights or ""), list(options))
        else:
            if options:
                raise InputError("options are for names and files: set them in the config given")
            settings = Settings.of(model).copy()
            if weights is not None:
                settings.weights = str(weights)
        if device is not None:
            check_device("device", str(device))
            settings.device = str(device)
        choose_device(settings)
        self.augmentation = settings.test_augmentation()
        self.input_format = settings.input_format
        settings.fit_to_classes(read_classes(settings.weights), number_of_classes(settings.weights))
        self.model = build_detector(settings).eval()
        classes = load_detector(self.model, settings.weights, allow_untrained)
        names = settings.datasets("test")[1] or settings.datasets("train")[1]
        self.metadata = MetadataCatalog.get(next(iter(names), "__unused"))
        if any(self.metadata.get(key, None) != value for key, value in classes.items()):
            self.metadata = Metadata(name="classes of the checkpoint", **classes)
        self._check_names(settings)
        if optimize or half:
            on_gpu = settings.device.startswith("cuda")
            dtype = (torch.float16 if on_gpu else torch.bfloat16) if half else None
            is_compiled = optimize == "compile"
            self.model = optimize_for_inference(self.model, is_compiled, dtype=dtype)

    def _open_exported(self, file: Path, given: Sequence[str]) -> None:
        """Take everything from an exported file, which cannot be changed any more."""
        from ..export import load_exported

        if given:
            raise InputError(f"{file} is exported as it is: {' and '.join(given)} must be left out")
        self.model = load_exported(file)
        facts = self.model.metadata
        self.input_format = facts.input_format
        sizes = [facts.min_size] * 2, facts.max_size
        self.augmentation = T.ResizeShortestEdge(*sizes) if facts.min_size else T.NoOpTransform()
        self.metadata = Metadata(name=str(file), thing_classes=list(facts.classes))
        if facts.category_ids:
            ids = {number: index for index, number in enumerate(facts.category_ids)}
            self.metadata.thing_dataset_id_to_contiguous_id = ids

    def _check_names(self, settings: Settings) -> None:
        """Name classes by their numbers, with a warning, if there are not as many names."""
        has = getattr(getattr(self.model, "roi_heads", self.model), "num_classes", None)
        names = self.metadata.get("thing_classes", None) or []
        if has is None or len(names) == has:
            return
        logger.warning(
            "The model tells %d classes apart, but '%s' has %d names: numbers are drawn. Name a "
            "registered data set of the model's classes in %s",
            has,
            self.metadata.name,
            len(names),
            settings.datasets("test")[0],
        )
        numbers = [str(number) for number in range(has)]
        others = {
            key: value
            for key, value in self.metadata.as_dict().items()
            if key.startswith(("stuff_", "keypoint_"))
        }
        self.metadata = Metadata(name="numbers", thing_classes=numbers, **others)

    def __call__(
        self, source: Any, color: str = "RGB", batch_size: int = 1
    ) -> Result | list[Result] | Iterator[Result]:
        """Run the model.

        Args:
            source: a picture: a path, an http(s) address, an image of Pillow, or an array (H, W, 3)
                uint8. Or several: a list, a folder, a video, a generator.
            color: the order of an array's channels, "RGB" or "BGR".
            batch_size: pictures that the model takes at once. Detectron2 pads those of a batch to
                one size, which changes results a little where they differ in size.

        Returns:
            a result, in Detectron2's format, with boxes in pixels of the picture; of a list a list
            of results; of other sources an iterator, which reads as it goes.

        Raises:
            ValueError, InputError, FileNotFoundError: as :func:`read_picture`.
        """
        require_int("batch_size", batch_size, least=1)
        require_pictures(source)
        results = self.stream(source, batch_size, color)
        if is_picture(source):
            return next(results)
        return list(results) if isinstance(source, list | tuple) else results

    def stream(self, source: Any, batch_size: int = 1, color: str = "RGB") -> Iterator[Result]:
        """Run on pictures of any source as they come, see :meth:`__call__`."""
        pictures = each_picture(source)
        while batch := list(islice(pictures, batch_size)):
            images = [read_picture(picture, color) for _, picture in batch]
            yield from self.run(images, [name for name, _ in batch])

    @torch.no_grad()
    def run(self, images: Sequence[np.ndarray], sources: Sequence[Any] = ()) -> list[Result]:
        """Run the model on one batch.

        Args:
            images: of shape (H, W, 3), uint8, RGB.
            sources: what the results are said to come from.
        """
        if self._tiles is None:
            outputs = self.model([self.prepare(image) for image in images])
        else:
            names = self.metadata.get("thing_classes", None) or []
            whole = [(self._predict, names, image, *self._tiles) for image in images]
            outputs = [predict_tiles(*one) for one in whole]
        sources = [*sources, *[None] * (len(images) - len(sources))]
        results = [
            Result(output, image, self.metadata, source)
            for output, image, source in zip(outputs, images, sources, strict=True)
        ]
        return [result.above(self._least) for result in results] if self._least else results

    def _predict(self, image: np.ndarray) -> dict[str, Any]:
        return self.model([self.prepare(image)])[0]

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Resize an image (H, W, 3), uint8, RGB, and turn it into what Detectron2's models take."""
        height, width = image.shape[:2]
        augmented = T.AugInput(convert_PIL_to_numpy(Image.fromarray(image), self.input_format))
        self.augmentation(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1), dtype=np.float32)
        return {"image": torch.as_tensor(pixels), "height": height, "width": width}

    def set_score_threshold(self, threshold: float, only_raise: bool = False) -> None:
        """Set the least score of a detection, see :func:`set_score_threshold`."""
        if isinstance(self.model, nn.Module):
            set_score_threshold(self.model, threshold, only_raise)
        else:
            self._least = threshold

    def draw(self, image: np.ndarray, output: dict[str, Any], scale: float = 1.0) -> np.ndarray:
        """Draw an output on its image, see :meth:`Result.plot`."""
        return Result(output, image, self.metadata).plot(scale)


def _find(name: str, weights: str, options: list[str]) -> Settings:
    """Read the config that a name, a file or a folder stands for; options may name weights."""
    path, weights = Path(name), weights or weights_named(options)
    if path.is_dir():
        path = _weights_in(path)
    if path.suffix in CONFIGS and path.is_file():
        config = str(path)
    elif path.suffix in ENDINGS:
        config, weights = "", weights or str(path)
    else:
        config, weights = model_zoo.get_config_file(name), weights or _published(name)
    settings = Settings.of(load_config_of_weights(config, options, weights=weights))
    settings.weights = weights or settings.weights
    return settings


def check_source(model: str) -> None:
    """See that a path can be a detector's, before it is opened.

    Raises:
        FileNotFoundError: there is no such file or folder.
        InputError: it holds no weights, or is a file of another kind.
    """
    path = Path(model)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint or folder {model}")
    if path.is_dir():
        _weights_in(path)
    elif path.suffix not in (*ENDINGS, *EXPORTED, *CONFIGS):
        raise InputError(f"{model} is neither a checkpoint nor an exported file nor a config")


def _published(name: str) -> str:
    model_zoo.get_checkpoint_url(name)  # names a model that nobody has published
    return f"resnest://COCO/{Path(name).with_suffix('')}"


def _weights_in(folder: Path) -> Path:
    """The weights in a folder: those of its training's end, or the only ones."""
    final = folder / "model_final.pth"
    found = [final] if final.is_file() else [p for p in folder.iterdir() if p.suffix in ENDINGS]
    if len(found) != 1:
        names = ", ".join(sorted(path.name for path in found)) or "none"
        raise InputError(f"{folder} must hold model_final.pth or one file of weights, has {names}")
    return found[0]


def set_score_threshold(model: nn.Module, threshold: float, only_raise: bool = False) -> None:
    """Set the least score of a detection in heads of every kind.

    Args:
        model: the model, changed in place.
        threshold: the score, 0 to 1.
        only_raise: leave what is higher already.
    """
    # PanopticFPN's, and that of dense detectors and of FastRCNNOutputLayers in each stage.
    names = ("combine_instances_score_thresh", "test_score_thresh")
    for module in model.modules():
        for name in names:
            old = getattr(module, name, None)
            if old is not None:
                setattr(module, name, max(old, threshold) if only_raise else threshold)
