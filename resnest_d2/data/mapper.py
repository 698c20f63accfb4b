"""From a data set's dicts to what models take, in training and evaluation."""

import copy
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from PIL import Image

from ..config import ConfigError, InputError, require_int
from .images import read_image, read_labels


class Mapper(DatasetMapper):
    """Detectron2's ``DatasetMapper`` with :func:`read_image`.

    Same arguments and results. Besides reading more kinds of pictures it takes images without
    objects where ``INPUT.CROP`` recomputes boxes.
    """

    def __init__(self, *args: Any, skip_bad_images: bool = False, **kwargs: Any) -> None:
        """Take Detectron2's arguments."""
        super().__init__(*args, **kwargs)
        self._max_pixels = Image.MAX_IMAGE_PIXELS

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The loader's processes, where they are no forks, start with Pillow's own limit.
        self.__dict__.update(state)
        Image.MAX_IMAGE_PIXELS = self._max_pixels

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read, augment and convert one image.

        Args:
            dataset_dict: an image in Detectron2's dataset format.

        Returns:
            what Detectron2's models take.

        Raises:
            InputError: the picture or its map of classes cannot be read, or cannot be resized or
                cropped; the message names its file.
            detectron2.data.detection_utils.SizeMismatchError: it is of another size than the dict
                says.
        """
        record = copy.deepcopy(dataset_dict)
        image = read_image(record["file_name"], self.image_format)
        utils.check_image_size(record, image)
        labels = record.pop("sem_seg_file_name", None)
        labels = None if labels is None else read_labels(labels)
        augmented = T.AugInput(image, sem_seg=labels)
        try:
            transforms = self.augmentations(augmented)
        except ValueError as error:  # such as a side of no pixel
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise InputError(
                f"{record['file_name']} cannot be augmented, it has {size}: {error}"
            ) from error
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
