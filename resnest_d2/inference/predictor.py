"""A detector for single images that feeds the colours its config asks for."""

import logging
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image
from torch import nn

from ..config.settings import Config, Settings
from ..modeling.detector import build_detector
from ..weights import load_detector, read_classes
from ..weights.loading import number_of_classes
from .drawing import import_to_draw

logger = logging.getLogger(__name__)


class Predictor:
    """A model in evaluation mode that takes RGB images.

    Detectron2's ``DefaultPredictor`` wants BGR whatever ``INPUT.FORMAT`` says, which is easy to get
    wrong; this one takes RGB and converts it to what the config names.

    Number and names of classes are those that the checkpoint was trained on, if it tells; else
    those of the config and its data set. Classes are named by their numbers, and a warning says so,
    if there are not as many names.

    Args:
        cfg: a config, from YAML or a LazyConfig; its weights must be a trained detector's.
        allow_untrained: run although the weights leave parameters at random values.

    Raises:
        FileNotFoundError: no such weights.
        UntrainedParametersError: the weights leave parameters untouched.
    """

    def __init__(self, cfg: Config, allow_untrained: bool = False) -> None:
        settings = Settings.of(cfg).copy()
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

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Run the model on one image.

        Args:
            image: shape (H, W, 3), uint8, RGB.

        Returns:
            the model's output for the image, in Detectron2's format; boxes in pixels of ``image``.

        Raises:
            ValueError: the image is not (H, W, 3) uint8.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an RGB image (H, W, 3) uint8, got {image.shape}")
        height, width = image.shape[:2]
        pixels = convert_PIL_to_numpy(Image.fromarray(image), self.input_format)
        augmented = T.AugInput(pixels)
        self.augmentation(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1), dtype=np.float32)
        tensor = torch.as_tensor(pixels)
        return self.model([{"image": tensor, "height": height, "width": width}])[0]

    def draw(self, image: np.ndarray, output: dict[str, Any], scale: float = 1.0) -> np.ndarray:
        """Draw boxes, masks, names and scores; segments of a panoptic or semantic model as well.

        Args:
            image: shape (H, W, 3), uint8, RGB.
            output: what the call returned for it.
            scale: of the picture; small images become legible when they are drawn larger.

        Returns:
            a picture of shape (H * scale, W * scale, 3), uint8, RGB.

        Raises:
            ImportError: as :func:`import_to_draw`.
        """
        module = import_to_draw("detectron2.utils.visualizer")
        mode = module.ColorMode.IMAGE
        visualizer = module.Visualizer(image, self.metadata, scale, instance_mode=mode)
        if "panoptic_seg" in output:
            segments, info = output["panoptic_seg"]
            return visualizer.draw_panoptic_seg_predictions(segments.cpu(), info).get_image()
        if "sem_seg" in output:
            visualizer.draw_sem_seg(output["sem_seg"].argmax(0).cpu())
        if "instances" in output:
            visualizer.draw_instance_predictions(output["instances"].to("cpu"))
        return visualizer.output.get_image()


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
