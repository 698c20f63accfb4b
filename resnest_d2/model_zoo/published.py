"""Published figures and checkpoint names of the zoo's models; no other place has any."""

from dataclasses import dataclass, field
from urllib.parse import quote


@dataclass(frozen=True)
class Publisher:
    """Who trained models, measured them and put the checkpoints somewhere."""

    page: str
    """Address of the tables."""
    root: str
    """Address of the folder of checkpoints."""
    decimals: int
    """Decimals of the published percentages."""


AUTHORS = Publisher(
    page="https://github.com/zhanghang1989/ResNeSt/tree/master/d2",
    root="https://s3.us-west-1.wasabisys.com/resnest/detectron/",
    decimals=2,
)
MMDETECTION = Publisher(
    page="https://github.com/open-mmlab/mmdetection/tree/main/configs/resnest",
    root="https://download.openmmlab.com/mmdetection/v2.0/resnest/",
    decimals=1,
)


@dataclass(frozen=True)
class Publication:
    """One row of a publisher's tables."""

    file: str
    """The checkpoint's path under the publisher's root; eight hex digits at its end are the start
    of the file's SHA-256, where there are any."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Percentages under Detectron2's names, ``bbox/AP`` and so on."""
    dataset: str = "coco_2017_val"
    """The data set that they were measured on."""
    publisher: Publisher = AUTHORS

    @property
    def checkpoint(self) -> str:
        """File name of the trained model."""
        return self.file.rpartition("/")[2]

    @property
    def url(self) -> str:
        """Where the publisher put the trained model."""
        return self.publisher.root + quote(self.file)


def _metrics(*percentages: float) -> dict[str, float]:
    return dict(zip(("bbox/AP", "segm/AP", "panoptic_seg/PQ"), percentages, strict=False))


def _row(
    reference: str, digest: str, *percentages: float, dataset: str = "coco_2017_val"
) -> Publication:
    file = f"{reference}{'-' if digest else ''}{digest}.pth"
    return Publication(file, _metrics(*percentages), dataset)


def _mmdet(head: str, stamp: str, *percentages: float) -> Publication:
    """One of MMDetection's models; those without masks were trained on a range of sizes."""
    recipe = "mstrain" if len(percentages) > 1 else "mstrain-range"
    reference = f"{head}_fpn_syncbn-backbone+head_{recipe}_1x_coco"
    file = f"{reference}/{reference}_{stamp}.pth"
    return Publication(file, _metrics(*percentages), publisher=MMDETECTION)


_FASTER = "faster_rcnn_{}_FPN_syncbn_range-scale_1x"
_BOX = "faster_cascade_rcnn_{}_FPN_syncbn_range-scale_1x"
_MASK = "mask_rcnn_{}_FPN_sync{}_1x"
_CASCADE = "mask_cascade_rcnn_{}_FPN_sync{}_1x"
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
    "mask_resnest50": _row(_MASK.format("ResNeSt_50", "BN"), "f442d863", 42.81, 38.14),
    "mask_resnest101": _row(_MASK.format("ResNeSt_101", "BN"), "528502c6", 45.75, 40.65),
    "cascade_resnest50": _row(_CASCADE.format("ResNeSt_50", "BN"), "c58bd325", 46.19, 39.55),
    "cascade_resnest101": _row(_CASCADE.format("ResNeSt_101", "BN"), "62448b9c", 48.30, 41.56),
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
    "baselines/mask_resnet50": _row(_MASK.format("R_50", "bn"), "4939bd58", 39.97, 36.05),
    "baselines/mask_resnet101": _row(_MASK.format("R_101", "bn"), "55493cc2", 41.78, 37.51),
    "baselines/cascade_resnet50": _row(_CASCADE.format("R_50", "bn"), "03310c9b", 43.06, 37.19),
    "baselines/cascade_resnet101": _row(_CASCADE.format("R_101", "bn"), "8cec1631", 44.79, 38.52),
    # From the metafile in MMDetection's configs/resnest.
    "mmdet/faster_resnest50": _mmdet("faster_rcnn_s50", "20200926_125502-20289c16", 42.0),
    "mmdet/faster_resnest101": _mmdet("faster_rcnn_s101", "20201006_021058-421517f1", 44.5),
    "mmdet/mask_resnest50": _mmdet("mask_rcnn_s50", "20200926_125503-8a2c3d47", 42.6, 38.1),
    "mmdet/mask_resnest101": _mmdet("mask_rcnn_s101", "20201005_215831-af60cdf9", 45.2, 40.2),
    "mmdet/cascade_box_resnest50": _mmdet("cascade_rcnn_s50", "20201122_213640-763cc7b5", 44.5),
    "mmdet/cascade_box_resnest101": _mmdet("cascade_rcnn_s101", "20201005_113242-b9459f8f", 46.8),
    "mmdet/cascade_resnest50": _mmdet(
        "cascade_mask_rcnn_s50", "20201122_104428-99eca4c7", 45.4, 39.5
    ),
    "mmdet/cascade_resnest101": _mmdet(
        "cascade_mask_rcnn_s101", "20201005_113243-42607475", 47.7, 41.4
    ),
}
