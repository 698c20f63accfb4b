"""From a data set's dicts to what models take, in training and evaluation."""

import copy
import logging
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.utils.logger import log_first_n
from PIL import Image

from ..config import ConfigError, InputError, require_int
from .images import PixelRange, read_image, read_labels


class Mapper(DatasetMapper):
    """Detectron2's ``DatasetMapper`` with :func:`read_image`, made of a config or of arguments.

    Besides reading more kinds of pictures it takes images without objects where ``INPUT.CROP``
    recomputes boxes.

    Args:
        skip_bad_images: whether a picture that cannot be read in training is a warning and None,
            for which Detectron2's ``MapDataset`` takes another image.
        pixel_range: of pictures of more than 8 bits.
        kwargs: Detectron2's arguments.
    """

    @configurable
    def __init__(
        self,
        *,
        skip_bad_images: bool = False,
        pixel_range: PixelRange | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.skip_bad_images = skip_bad_images
        self._max_pixels = Image.MAX_IMAGE_PIXELS
        self._pixel_range = pixel_range

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from a config."""
        arguments = super().from_config(cfg, is_train)
        return {**arguments, "pixel_range": PixelRange.of_config(cfg)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The loader's processes, where they are no forks, start with Pillow's own limit.
        self.__dict__.update(state)
        Image.MAX_IMAGE_PIXELS = self._max_pixels

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Read, augment and convert one image.

        Args:
            dataset_dict: an image in Detectron2's dataset format.

        Returns:
            what Detectron2's models take; None if it cannot be read and is skipped.

        Raises:
            InputError: the picture or its map of classes cannot be read, or is of another size
                than the dict says; the message names its file.
        """
        try:
            return self._map(dataset_dict)
        except InputError as error:
            if not (self.skip_bad_images and self.is_train):
                raise
            text = f"{error}: another image is taken in its place"
            log_first_n(logging.WARNING, text, name=__name__, key="message")
            return None

    def _map(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        record = copy.deepcopy(dataset_dict)
        image = read_image(record["file_name"], self.image_format, self._pixel_range)
        try:
            utils.check_image_size(record, image)
        except utils.SizeMismatchError as error:
            raise InputError(str(error)) from error
        labels = record.pop("sem_seg_file_name", None)
        labels = None if labels is None else read_labels(labels)
        augmented = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(augmented)
        height, width = augmented.image.shape[:2]
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(pixels)
        if labels is not None:
            record["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(
                record, (height, width), transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, (height, width))
        return record

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.Transform, image_shape: tuple[int, int]
    ) -> None:
        if any(not annotation.get("iscrowd", 0) for annotation in dataset_dict["annotations"]):
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        del dataset_dict["annotations"]
        dataset_dict["instances"] = utils.annotations_to_instances([], image_shape)


def large_scale_jitter(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of a mapper by ``INPUT.LSJ`` (Ghiasi et al., arXiv:2012.07177); {} without it.

    ``INPUT.MIN_SIZE_TRAIN`` and its like are not read then.

    Raises:
        ConfigError: a value is out of range, or ``INPUT.CROP`` is enabled too.
    """
    keys = cfg.INPUT.get("LSJ") or {}
    if not keys.get("ENABLED"):
        return {}
    size, low, high = (keys[name] for name in ("IMAGE_SIZE", "MIN_SCALE", "MAX_SCALE"))
    require_int("INPUT.LSJ.IMAGE_SIZE", size, least=1)
    if not 0 < low <= high:
        raise ConfigError(f"INPUT.LSJ.MIN_SCALE must be above 0 and at most MAX_SCALE, got {low}")
    if cfg.INPUT.CROP.ENABLED:
        raise ConfigError("INPUT.LSJ.ENABLED and INPUT.CROP.ENABLED exclude each other")
    steps = [T.ResizeScale(low, high, size, size), T.FixedSizeCrop((size, size))]
    flips = [step for step in utils.build_augmentation(cfg, True) if isinstance(step, T.RandomFlip)]
    return {"augmentations": [*steps, *flips], "recompute_boxes": cfg.MODEL.MASK_ON}
