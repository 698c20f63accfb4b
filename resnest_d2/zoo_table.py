"""What was published about the zoo's models: the only place for figures and checkpoint names."""

from dataclasses import dataclass, field

# The authors' bucket; names with a hash end in the first eight digits of the file's SHA-256.
CHECKPOINT_ROOT = "https://s3.us-west-1.wasabisys.com/resnest/detectron/"
PUBLISHER = "https://github.com/zhanghang1989/ResNeSt/tree/master/d2"


@dataclass(frozen=True)
class Publication:
    """One row of the reference's tables."""

    reference: str
    """The reference's name of the configuration."""
    digest: str
    """Start of the checkpoint's SHA-256, in its name; "" where the name has none."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Percentages under Detectron2's names, ``bbox/AP`` and so on."""
    dataset: str = "coco_2017_val"
    """What they were measured on."""

    @property
    def checkpoint(self) -> str:
        """File name of the trained model."""
        return f"{self.reference}{'-' if self.digest else ''}{self.digest}.pth"


def _row(
    reference: str,
    digest: str,
    box: float,
    mask: float | None = None,
    pq: float | None = None,
    **other: str,
) -> Publication:
    values = {"bbox/AP": box, "segm/AP": mask, "panoptic_seg/PQ": pq}
    metrics = {name: value for name, value in values.items() if value is not None}
    return Publication(reference, digest, metrics, **other)


_FASTER = "faster_rcnn_{}_FPN_syncbn_range-scale_1x"
_BOX = "faster_cascade_rcnn_{}_FPN_syncbn_range-scale_1x"
_MASK = "mask_rcnn_{}_FPN_syncbn_1x"
_CASCADE = "mask_cascade_rcnn_{}_FPN_syncbn_1x"
_TRICKS = "mask_cascade_rcnn_ResNeSt_200_FPN_{}syncBN_all_tricks_3x"

# Box AP, mask AP and PQ from the tables of the reference's d2/README.md.
PUBLICATIONS: dict[str, Publication] = {
    "faster_resnest50": _row(_FASTER.format("ResNeSt_50"), "ad123c0b", 42.33),
    "faster_resnest50_dcn": _row("faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x", "", 44.11),
    "faster_resnest101": _row(_FASTER.format("ResNeSt_101"), "d8f284b6", 44.72),
    "cascade_box_resnest50": _row(
        "faster_cascade_rcnn_ResNeSt_50_FPN_syncbn_range-scale-1x", "e9955232", 45.41
    ),
    "cascade_box_resnest101": _row(_BOX.format("ResNeSt_101"), "3627ef78", 47.50),
    "cascade_box_resnest200": _row(_BOX.format("ResNeSt_200"), "1be2a87e", 49.03),
    "mask_resnest50": _row("mask_rcnn_ResNeSt_50_FPN_syncBN_1x", "f442d863", 42.81, 38.14),
    "mask_resnest101": _row("mask_rcnn_ResNeSt_101_FPN_syncBN_1x", "528502c6", 45.75, 40.65),
    "cascade_resnest50": _row(
        "mask_cascade_rcnn_ResNeSt_50_FPN_syncBN_1x", "c58bd325", 46.19, 39.55
    ),
    "cascade_resnest101": _row(
        "mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x", "62448b9c", 48.30, 41.56
    ),
    "cascade_resnest200_3x": _row(_TRICKS.format(""), "", 50.54, 44.21),
    "cascade_resnest200_dcn_3x": _row(_TRICKS.format("dcn_"), "e1901134", 50.91, 44.50),
    "cascade_resnest200_dcn_3x_ms": _row(
        _TRICKS.format("dcn_"), "e1901134", 53.30, 47.10, dataset="coco_2017_test-dev"
    ),
    "panoptic_resnest200_3x": _row(
        "panoptic_ResNeSt_200_FPN_syncBN_tricks_3x", "43f8b731", 51.00, 43.68, 47.90
    ),
    "baselines/faster_resnet50": _row(_FASTER.format("R_50"), "fde56e2b", 39.25),
    "baselines/faster_resnet101": _row(_FASTER.format("R_101"), "57c73356", 41.37),
    "baselines/cascade_box_resnet50": _row(_BOX.format("R_50"), "3c7f2ef2", 42.52),
    "baselines/cascade_box_resnet101": _row(_BOX.format("R_101"), "4073359b", 44.03),
    "baselines/mask_resnet50": _row(_MASK.format("R_50"), "4939bd58", 39.97, 36.05),
    "baselines/mask_resnet101": _row(_MASK.format("R_101"), "55493cc2", 41.78, 37.51),
    "baselines/cascade_resnet50": _row(_CASCADE.format("R_50"), "03310c9b", 43.06, 37.19),
    "baselines/cascade_resnet101": _row(_CASCADE.format("R_101"), "8cec1631", 44.79, 38.52),
}
