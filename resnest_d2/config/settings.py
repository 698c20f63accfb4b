"""One view of configs of both kinds; no other module asks which kind a config has."""

import copy
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import detectron2.data.transforms as T
from detectron2.config import CfgNode, instantiate
from omegaconf import DictConfig, OmegaConf

from . import ConfigError

# The commands read these keys of a .py config, as Detectron2's own do; others have defaults.
EVALUATION_KEYS = (
    *("dataloader.test", "dataloader.evaluator", "train.init_checkpoint", "train.output_dir"),
)
TRAINING_KEYS = (
    *("dataloader.train", "lr_multiplier", "optimizer.params", "train.init_checkpoint"),
    *("train.output_dir", "train.max_iter", "train.ddp", "train.checkpointer.period"),
    *("train.eval_period", "train.log_period", "dataloader.train.total_batch_size"),
)
# Training reads the second key where the first one is set.
DEPENDENT_TRAINING_KEYS = {
    "train.reference_world_size": "optimizer.lr",
    "train.precise_bn.enabled": "train.precise_bn.num_iter",
    "dataloader.test.dataset.names": "dataloader.evaluator",
}
MAPPER = "dataloader.test.mapper"
DEFAULT_LIMIT = 100  # Detectron2's test_topk_per_image
INFERENCE_KEYS = ("train.init_checkpoint", "model.input_format", f"{MAPPER}.augmentations")


class _Setting:
    """A value that YAML configs and LazyConfigs keep under different keys."""

    def __init__(self, yaml: str, lazy: str, default: Any = None) -> None:
        self.keys = (yaml, lazy)
        self.default = default

    def key(self, settings: "Settings") -> str:
        return self.keys[settings.is_lazy]

    def __get__(self, settings: "Settings | None", owner: type) -> Any:
        return self if settings is None else settings.get(self.key(settings), self.default)

    def __set__(self, settings: "Settings", value: Any) -> None:
        settings.set(self.key(settings), value)


class Settings:
    """A view of a config, read where a command starts and handed down.

    Args:
        cfg: a ``CfgNode`` or a ``DictConfig``; setting an attribute changes it.
    """

    device = _Setting("MODEL.DEVICE", "train.device", "cuda")
    output_dir = _Setting("OUTPUT_DIR", "train.output_dir")
    weights = _Setting("MODEL.WEIGHTS", "train.init_checkpoint")
    input_format = _Setting("INPUT.FORMAT", "model.input_format")
    amp = _Setting("SOLVER.AMP.ENABLED", "train.amp.enabled", False)
    images_per_batch = _Setting("SOLVER.IMS_PER_BATCH", "dataloader.train.total_batch_size")
    mask_format = _Setting("INPUT.MASK_FORMAT", "dataloader.train.mapper.instance_mask_format")
    num_keypoints = _Setting(
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "model.roi_heads.keypoint_head.num_keypoints"
    )
    reference_world_size = _Setting("SOLVER.REFERENCE_WORLD_SIZE", "train.reference_world_size", 0)

    seed = _Setting("SEED", "train.seed", -1)
    num_workers = _Setting("DATALOADER.NUM_WORKERS", "dataloader.train.num_workers", 0)
    evaluation_period = _Setting("TEST.EVAL_PERIOD", "train.eval_period", 0)
    max_iter = _Setting("SOLVER.MAX_ITER", "train.max_iter")
    precise_bn = _Setting("TEST.PRECISE_BN.ENABLED", "train.precise_bn.enabled", False)
    precise_bn_passes = _Setting("TEST.PRECISE_BN.NUM_ITER", "train.precise_bn.num_iter")
    checkpoint_period = _Setting("SOLVER.CHECKPOINT_PERIOD", "train.checkpointer.period")

    SCHEDULE_KEYS = (
        ("SOLVER.BASE_LR", "SOLVER.STEPS", "SOLVER.MAX_ITER"),
        ("optimizer.lr", "train.max_iter"),
    )

    def __init__(self, cfg: CfgNode | DictConfig) -> None:
        self.cfg = cfg
        self.is_lazy = not isinstance(cfg, CfgNode)

    @classmethod
    def of(cls, cfg: "CfgNode | DictConfig | Settings") -> "Settings":
        """The settings of a config; settings stay as they are."""
        return cfg if isinstance(cfg, Settings) else cls(cfg)

    def key(self, name: str) -> str:
        """The config's key of an attribute, for messages."""
        return vars(Settings)[name].key(self)

    def get(self, key: str, default: Any = None) -> Any:
        """A value by its dotted key, or the default where there is none."""
        if self.is_lazy:
            return OmegaConf.select(self.cfg, key, default=default)
        try:
            return reduce(getitem, key.split("."), self.cfg)
        except (KeyError, TypeError):
            return default

    def set(self, key: str, value: Any) -> None:
        """Set a value by its dotted key, in place."""
        if self.is_lazy:
            OmegaConf.update(self.cfg, key, value)
            return
        frozen = self.cfg.is_frozen()
        self.cfg.defrost()
        *parents, last = key.split(".")
        reduce(getitem, parents, self.cfg)[last] = value
        if frozen:
            self.cfg.freeze()

    def copy(self) -> "Settings":
        """Settings of a copy of the config."""
        return Settings(copy.deepcopy(self.cfg))

    def require(self, keys: Sequence[str]) -> None:
        """See that a LazyConfig has what a command needs.

        Raises:
            ConfigError: it lacks a key; the message names it.
        """
        missing = [key for key in keys if self.is_lazy and self.get(key) is None]
        if missing:
            raise ConfigError(f"the .py config lacks {', '.join(missing)}")

    def require_for_training(self) -> None:
        """See that a LazyConfig has what training reads.

        Raises:
            ConfigError: as :meth:`require`.
        """
        dependent = [key for given, key in DEPENDENT_TRAINING_KEYS.items() if self.get(given)]
        self.require([*TRAINING_KEYS, *dependent])

    def datasets(self, split: str) -> tuple[str, list[str]]:
        """The key that names the data sets of a split, "train" or "test", and the names."""
        key = f"dataloader.{split}.dataset.names" if self.is_lazy else f"DATASETS.{split.upper()}"
        names = self.get(key, ())
        return key, [names] if isinstance(names, str) else list(names)

    def set_datasets(self, split: str, names: Sequence[str]) -> None:
        """Set the data sets of a split, in place.

        Raises:
            ConfigError: a LazyConfig has no loader that would read them.
        """
        if names:
            self.require([f"dataloader.{split}.dataset"])
        value = names[0] if self.is_lazy and len(names) == 1 else list(names)
        self.set(self.datasets(split)[0], value if self.is_lazy else tuple(names))

    @property
    def num_classes_key(self) -> str:
        """The key that sets how many classes of things the model tells apart."""
        if self.is_lazy:
            has_roi_heads = "roi_heads" in self.cfg.model
            return "model.roi_heads.num_classes" if has_roi_heads else "model.num_classes"
        is_retinanet = self.cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
        return f"MODEL.{'RETINANET' if is_retinanet else 'ROI_HEADS'}.NUM_CLASSES"

    def set_num_classes(self, number: int) -> None:
        """Set how many classes of things every head that has them tells apart, in place."""
        keys = [self.num_classes_key]
        if not self.is_lazy:
            keys = ["MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"]
            keys += ["MODEL.POINT_HEAD.NUM_CLASSES"] if "POINT_HEAD" in self.cfg.MODEL else []
        for key in keys:
            self.set(key, number)

    def fit_to_classes(self, classes: Mapping[str, Any], number: int | None = None) -> None:
        """Set the numbers of classes and keypoints that a checkpoint was trained on, in place.

        Args:
            classes: what the checkpoint tells, under the names of Detectron2's metadata.
            number: of classes that its weights tell apart, by default as many as have names.
        """
        if names := classes.get("thing_classes"):
            self.set_num_classes(number or len(names))
        if classes.get("keypoint_names") and self.num_keypoints is not None:
            self.num_keypoints = len(classes["keypoint_names"])

    def learns(self) -> tuple[bool, bool]:
        """Whether the model learns masks, and whether it learns keypoints.

        Raises:
            ConfigError: it learns from maps of whole images.
        """
        if self.is_lazy:
            heads = self.get("model.roi_heads", {})
            return bool(heads.get("mask_head")), bool(heads.get("keypoint_head"))
        model = self.cfg.MODEL
        kind = model.META_ARCHITECTURE
        if kind in ("PanopticFPN", "SemanticSegmentor"):
            raise ConfigError(
                f"--train-json and --val-json hold instances, MODEL.META_ARCHITECTURE {kind} "
                "learns from maps of whole images: register such a data set in Python"
            )
        has_roi_heads = kind != "RetinaNet"
        return model.MASK_ON and has_roi_heads, model.KEYPOINT_ON and has_roi_heads

    def detection_limits(self) -> dict[str, int]:
        """How many objects the model finds in an image at most, by the keys that say so."""
        keys = ["TEST.DETECTIONS_PER_IMAGE", "MODEL.RPN.POST_NMS_TOPK_TEST"]
        if self.is_lazy:
            heads = "model.roi_heads.box_predictor"
            stages = len(self.get(f"{heads}s", ()))
            heads = f"{heads}s.{stages - 1}" if stages else heads  # of a cascade the last counts
            keys = [f"{heads}.test_topk_per_image", "model.proposal_generator.post_nms_topk.1"]
            if self.get(heads) is None:
                keys = ["model.max_detections_per_image"]
        elif self.cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
            keys = keys[:1]
        return {key: self.get(key, DEFAULT_LIMIT) for key in keys}

    def test_augmentation(self) -> T.Augmentation:
        """The resizing of images at inference.

        Raises:
            ConfigError: a LazyConfig lacks a key that inference reads.
        """
        self.require(INFERENCE_KEYS)
        if self.is_lazy:
            return T.AugmentationList([instantiate(a) for a in self.get(f"{MAPPER}.augmentations")])
        sizes = self.cfg.INPUT
        return T.ResizeShortestEdge([sizes.MIN_SIZE_TEST] * 2, sizes.MAX_SIZE_TEST)


Config = CfgNode | DictConfig | Settings
