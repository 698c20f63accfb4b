"""A detector for pictures of every kind that feeds the colours its config asks for."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.modeling import ProposalNetwork, SemanticSegmentor
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from .. import model_zoo
from ..config import InputError, require_between, require_int, require_one_of
from ..config.load import choose_device, load_config, merge_options
from ..data.images import PixelRange
from ..modeling.detector import build_detector
from ..optimize import optimize_for_inference
from ..weights import Checkpoint, load_weights, open_weights
from ..weights.files import ENDINGS
from ..weights.stored_config import config_to_use
from .drawing import import_supervision
from .masks import detect
from .result import Result
from .sources import Picture, Pixels, each_picture, kind_of, read_picture

if TYPE_CHECKING:
    import supervision

logger = logging.getLogger(__name__)

CONFIGS = (".yaml", ".yml")
EXPORTED = (".onnx", ".pt2")
# The shortest side that pictures are resized to and the longest that they may have then, of models
# that somebody instantiated: Detectron2's own.
DEFAULT_SIZES = (800, 1333)
SAME_OBJECT = 0.5  # two detections in tiles overlap by so much of the smaller one


class Predictor:
    """A model in evaluation mode that takes RGB pictures.

    Detectron2's ``DefaultPredictor`` wants BGR whatever ``INPUT.FORMAT`` says, which is easy to get
    wrong; this one takes RGB and converts it to what the config names.

    A config that is named is taken as it stands; left out, the checkpoint's own counts; options
    count over both. Classes have the names that the checkpoint was trained on, if it tells, else
    those of the config's data set. They are named by their numbers, and a warning says so, if there
    are not as many names.

    Args:
        model: a name of the zoo, with the weights that were published; a checkpoint; the folder of
            a training or a published model; a file of :mod:`resnest_d2.export`; a config, or its
            YAML file; or a Detectron2 model that somebody instantiated. May be left out where
            ``weights`` or options name a checkpoint.
        config_file: in place of the checkpoint's own config.
        weights: in place of the model's, as ``MODEL.WEIGHTS``.
        device: as ``MODEL.DEVICE``, and an error if the machine does not have it; by default the
            config's, or the CPU.
        optimize: run :func:`~resnest_d2.optimize_for_inference`; "compile" also compiles;
            "openvino" exports the model, once for a config and its weights, and runs the file in
            OpenVINO, on the CPU.
        half: compute in half precision, float16 on GPUs and bfloat16 on CPUs; of an exported file
            OpenVINO does.
        runtime: of an exported file, as of :func:`~resnest_d2.export.load_exported`.
        tile: run on overlapping tiles of so many pixels, for large pictures with small objects.
        overlap: of tiles that are neighbours, as a part of their size.
        options: overrides of the config, KEY, VALUE, KEY, VALUE, ...
        allow_untrained: run although the weights leave parameters at random values.
        classes: names of the classes, for models that do not tell.
        augmentation: resizing in place of the config's; for an instantiated model by default the
            shorter side to 800 pixels and the longer one to 1333 at most.

    Raises:
        InputError: there is no such model, file or device, a checkpoint holds no config, or the
            weights leave parameters untouched; all of it in the message.
    """

    def __init__(
        self,
        model: str | Path | CfgNode | nn.Module = "",
        *,
        config_file: str = "",
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        optimize: bool | Literal["compile", "openvino"] = False,
        half: bool = False,
        runtime: str = "auto",
        tile: int | None = None,
        overlap: float = 0.2,
        options: Sequence[Any] = (),
        allow_untrained: bool = False,
        classes: Sequence[str] | None = None,
        augmentation: T.Augmentation | None = None,
    ) -> None:
        require_one_of("optimize", optimize, (False, True, "compile", "openvino"))
        is_exported = isinstance(model, str | Path) and Path(model).suffix in EXPORTED
        if runtime != "auto" and not is_exported:
            raise InputError("a runtime is for an exported file; optimize takes other models there")
        if tile is not None:
            require_int("tile", tile, least=32)
            require_between("overlap", overlap, 0, 0.9)
            import_supervision()
        self._tiles = None if tile is None else (tile, overlap)
        self.metadata = Metadata(name="no classes")
        self.pixel_range: PixelRange | None = None
        changes, cfg = {"config_file": config_file, "options": options}, None
        if isinstance(model, nn.Module):
            _refuse("a model that is built", changes)
            self.model = model.eval() if device is None else model.eval().to(device)
            self.input_format = getattr(model, "input_format", None) or "BGR"  # Detectron2's
            sizes = DEFAULT_SIZES
            if weights:
                self._load(open_weights(weights), allow_untrained)
        elif is_exported:
            changes |= {"weights": weights, "device": device, "optimize": optimize}
            _refuse(f"{model} is exported as it is and", changes)
            sizes = self._open_exported(Path(model), runtime, half)
        else:
            options = [*options, *(["MODEL.WEIGHTS", weights] if weights else [])]
            options += [] if device is None else ["MODEL.DEVICE", device]
            cfg, checkpoint = _open(model, config_file, [str(option) for option in options])
            choose_device(cfg, required="MODEL.DEVICE" in options[::2])
            if cfg.TEST.AUG.ENABLED:
                logger.warning("TEST.AUG.ENABLED: evaluation alone augments, predictions do not")
            self.model = build_detector(cfg).eval()
            self.input_format, self.pixel_range = cfg.INPUT.FORMAT, PixelRange.of_config(cfg)
            if names := [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]:
                self.metadata = MetadataCatalog.get(names[0])
            sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
            self._load(checkpoint, allow_untrained)
        # Detectron2's leaves a picture as it is where the shorter side is to be 0.
        self.augmentation = augmentation or T.ResizeShortestEdge([sizes[0]] * 2, sizes[1])
        if classes is not None:
            kind = "stuff" if isinstance(self.model, SemanticSegmentor) else "thing"
            self.metadata = Metadata(name="classes", **{f"{kind}_classes": list(classes)})
        self._check_names()
        if optimize == "openvino":
            from ..export.kept import run_in_openvino

            self.model = run_in_openvino(self, cfg, half)
        elif (optimize or half) and not is_exported:
            on_gpu = next(self.model.parameters()).is_cuda
            dtype = (torch.float16 if on_gpu else torch.bfloat16) if half else None
            self.model = optimize_for_inference(self.model, optimize == "compile", dtype=dtype)

    def _load(self, checkpoint: Checkpoint | None, allow_untrained: bool) -> None:
        """Load weights, and the names of the classes that they were trained on."""
        load_weights(self.model, checkpoint or "", allow_untrained)
        known = checkpoint.classes if checkpoint else {}
        if any(self.metadata.get(key, None) != value for key, value in known.items()):
            self.metadata = Metadata(name="classes of the checkpoint", **known)

    def _open_exported(self, file: Path, runtime: str, half: bool) -> tuple[int, int]:
        """Open an exported file; return the sides that its facts name."""
        from ..export import load_exported

        self.model = load_exported(file, runtime, half)
        facts = self.model.metadata
        self.input_format = facts.input_format
        self.metadata = Metadata(name=str(file), thing_classes=list(facts.classes))
        if facts.category_ids:
            ids = {number: index for index, number in enumerate(facts.category_ids)}
            self.metadata.thing_dataset_id_to_contiguous_id = ids
        return facts.min_size, facts.max_size

    def _check_names(self) -> None:
        """Name classes by their numbers, with a warning, if there are not as many names."""
        has = getattr(getattr(self.model, "roi_heads", self.model), "num_classes", None)
        names = self.metadata.get("thing_classes", None) or []
        if has is None or len(names) == has:
            return
        logger.warning(
            "The model tells %d classes apart, but '%s' has %d names: numbers are drawn. Name a "
            "registered data set of the model's classes in DATASETS.TEST",
            *(has, self.metadata.name, len(names)),
        )
        numbers = [str(number) for number in range(has)]
        self.metadata = Metadata(name="numbers", thing_classes=numbers)

    @property
    def finds_instances(self) -> bool:
        """Whether the model finds instances; of semantic segmentation or proposals it does not."""
        return not isinstance(self.model, SemanticSegmentor | ProposalNetwork)

    def __call__(
        self, source: Any, color: str = "RGB", batch_size: int = 1
    ) -> Result | list[Result] | Iterator[Result]:
        """Run the model.

        Args:
            source: a picture: a path, an image of Pillow, an array (H, W, 3) or (H, W) uint8, or an
                address, which Detectron2's PathManager fetches once and keeps. Or several: a list,
                a folder, a video, a generator. What a folder holds that cannot be read is named in
                a warning and left out; of all others it is an error.
            color: the order of an array's channels, "RGB" or "BGR".
            batch_size: pictures that the model takes at once. Detectron2 pads those of a batch to
                one size, which changes results a little where they differ in size.

        Returns:
            a result, in Detectron2's format, with boxes in pixels of the picture; of a list a list
            of results; of other sources an iterator, which reads as it goes.

        Raises:
            InputError: as :func:`read_picture`.
        """
        require_int("batch_size", batch_size, least=1)
        kind = kind_of(source)
        pictures = each_picture(source, lambda picture: self.read(picture, color))
        results = self.run_each(pictures, batch_size)
        if kind == "picture":
            return next(results)
        return list(results) if isinstance(source, list | tuple) else results

    def run_each(self, pictures: Iterable[Pixels], batch_size: int = 1) -> Iterator[Result]:
        """Run on pictures that :meth:`read` has read."""
        pictures = iter(pictures)
        while batch := list(islice(pictures, batch_size)):
            outputs = self.run([one.image for one in batch])
            for output, (image, source, frame) in zip(outputs, batch, strict=True):
                yield Result(output, image, self.metadata, source, frame)

    @torch.no_grad()
    def run(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Return what :func:`~.masks.detect` does for a batch of images (H, W, 3), uint8, RGB."""
        if self._tiles is None:
            return detect(self.model, [self.prepare(image) for image in images])

        def predict(part: np.ndarray) -> dict[str, Any]:
            return self.model([self.prepare(part)])[0]

        return [predict_tiles(predict, image, *self._tiles) for image in images]

    def read(self, picture: Picture, color: str = "RGB") -> np.ndarray:
        """Read one picture, see :func:`read_picture`, that this model can take.

        Raises:
            InputError: as that function, or the picture is so narrow that nothing of it would be
                left when it is resized.
        """
        image = read_picture(picture, color, self.pixel_range)
        height, width = image.shape[:2]
        resize = self.augmentation
        if isinstance(resize, T.ResizeShortestEdge) and min(resize.short_edge_length):
            least, most = min(resize.short_edge_length), resize.max_size
            if 0 in resize.get_output_shape(height, width, least, most):
                what = picture if isinstance(picture, str | Path) else "the picture"
                raise InputError(f"{what} has {width} x {height} pixels, too narrow to be resized")
        return image

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Resize an image (H, W, 3), uint8, RGB, and turn it into what Detectron2's models take."""
        height, width = image.shape[:2]
        augmented = T.AugInput(convert_PIL_to_numpy(Image.fromarray(image), self.input_format))
        self.augmentation(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1), dtype=np.float32)
        return {"image": torch.as_tensor(pixels), "height": height, "width": width}

    def set_score_threshold(self, threshold: float, only_raise: bool = False) -> None:
        """Set the least score of a detection in heads of every kind.

        Args:
            threshold: the score, 0 to 1.
            only_raise: leave what is higher already.

        Raises:
            InputError: it is no score, or less than that which an exported model was made with.
        """
        require_between("the score threshold", threshold, 0, 1)
        if not isinstance(self.model, nn.Module):
            own = self.model.metadata.score_threshold or 0.0
            self.model.set_score_threshold(max(threshold, own) if only_raise else threshold)
            return
        for module in self.model.modules():
            # PanopticFPN's, and that of dense detectors and of FastRCNNOutputLayers in each stage.
            for name in ("combine_instances_score_thresh", "test_score_thresh"):
                if hasattr(module, name):
                    old = getattr(module, name) if only_raise else threshold
                    setattr(module, name, max(old, threshold))


def _refuse(what: str, changes: dict[str, Any]) -> None:
    if given := [name for name, value in changes.items() if value]:
        raise InputError(f"{what} cannot be changed: {' and '.join(given)} must be left out")


def _open(
    model: str | Path | CfgNode, config_file: str, options: Sequence[str]
) -> tuple[CfgNode, Checkpoint | None]:
    """Read the config and the weights that a predictor is made of."""
    weights = dict(zip(options[::2], options[1::2], strict=False)).get("MODEL.WEIGHTS", "")
    is_read = isinstance(model, CfgNode)
    is_config = is_read or (Path(model).suffix in CONFIGS and Path(model).is_file())
    if is_config and config_file:
        raise InputError("model is a config, and config_file is another: leave one of them out")
    if is_read:
        cfg = model.clone()
        cfg.defrost()
        merge_options(cfg, options)
        return cfg, open_weights(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    if is_config:
        config_file = str(model)
    elif model:
        own_config, weights = _find(str(model), weights)
        config_file = config_file or own_config
    if config_file and not weights:
        weights = load_config(config_file, options).MODEL.WEIGHTS
    checkpoint = open_weights(weights) if weights else None
    return config_to_use(config_file, options, checkpoint), checkpoint


def _find(name: str, weights: str) -> tuple[str, str]:
    """The config file, "" for none, and the weights of a checkpoint, a folder or the zoo's name.

    Other weights that are named count in place of them.
    """
    path = Path(name)
    if path.is_dir():
        final = path / "model_final.pth"
        found = [final] if final.is_file() else [p for p in path.iterdir() if p.suffix in ENDINGS]
        if len(found) != 1:
            names = ", ".join(sorted(file.name for file in found)) or "none"
            reason = "must hold model_final.pth or one file of weights"
            raise InputError(f"{name} {reason}, has {names}")
        return "", weights or str(found[0])
    if path.suffix in ENDINGS or "://" in name:
        return "", weights or name
    config_file = model_zoo.get_config_file(name)
    return config_file, weights or model_zoo.get_config(name, trained=True).MODEL.WEIGHTS


def predict_tiles(
    predict: Callable[[np.ndarray], Mapping[str, Any]], image: np.ndarray, size: int, overlap: float
) -> dict[str, Instances]:
    """Run a model on tiles of a picture and on the whole of it; a small one is one tile.

    What tiles cut apart is merged where it overlaps, class by class, with the best piece's score.

    Args:
        predict: gives a Detectron2 model's output for an image (H, W, 3), uint8, RGB.
        image: the picture.
        size: of a tile, in pixels.
        overlap: of neighbours, as a part of the size.

    Returns:
        the output for the picture: boxes, scores, classes, and masks if the model has them, the
        best first.

    Raises:
        InputError: the model finds something else, or keypoints, which cannot be merged.
    """
    if max(image.shape[:2]) <= size:
        return dict(predict(image))
    library = import_supervision()

    def detect(part: np.ndarray) -> "supervision.Detections":
        output = predict(np.ascontiguousarray(part))
        if output.keys() != {"instances"} or output["instances"].has("pred_keypoints"):
            raise InputError("tiles are for models of boxes and masks alone")
        detections = library.Detections.from_detectron2(output)
        # Merging averages the confidences of pieces, and keeps the best one's data.
        detections.data["score"] = detections.confidence
        return detections.to_compact_masks() if len(detections) else detections

    # Without an overlap the last tile could be too narrow to be resized.
    between = max(1, int(overlap * size))
    none = library.OverlapFilter.NONE
    slicer = library.InferenceSlicer(detect, slice_wh=size, overlap_wh=between, overlap_filter=none)
    whole, number = detect(image), None
    found = library.Detections.merge([whole, slicer(image)])
    while len(found) != number:  # merged ones may overlap others anew
        number = len(found)
        found = found.with_nmm(SAME_OBJECT, overlap_metric=library.OverlapMetric.IOS)
        found.confidence = found.data["score"] if len(found) else found.confidence
    found = found[np.argsort(-found.confidence, kind="stable")]
    instances = Instances(image.shape[:2])
    boxes, masks = found.xyxy, np.zeros((0, *image.shape[:2]), bool)
    if whole.mask is not None and len(found):
        tight = found.mask.repack()
        boxes, masks = np.add(tight.bbox_xyxy, [0, 0, 1, 1]), tight.to_dense()
    instances.pred_boxes = Boxes(torch.from_numpy(boxes).float())
    instances.scores = torch.from_numpy(found.confidence).float()
    instances.pred_classes = torch.from_numpy(found.class_id)
    if whole.mask is not None:
        instances.pred_masks = torch.from_numpy(masks)
    return {"instances": instances}
