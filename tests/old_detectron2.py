"""Build, load and run on an older Detectron2; test_old_detectron2.py starts it.

The argument is a checkout of one. Without it, this Detectron2 loses what 0.2.1 does not have.
"""

import importlib
import sys
import types
from pathlib import Path

import PIL.Image
import torch

SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.DEPTH": 14,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.NORM": "BN",
    "MODEL.ROI_BOX_HEAD.NORM": "BN",
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
}


def take(checkout: str) -> None:
    """Import it where the rest of its time is missing."""
    sys.path.insert(0, checkout)
    PIL.Image.LINEAR = PIL.Image.Resampling.BILINEAR
    # The compiled part, which nothing calls here.
    library = torch.library.Library("detectron2", "FRAGMENT")
    for name in ("nms_rotated", "box_iou_rotated"):
        if not hasattr(torch.ops.detectron2, name):
            library.define(f"{name}(Tensor a, Tensor b) -> Tensor")
    import detectron2

    detectron2._C = sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")


def take_away() -> None:
    """Remove what 0.2.1 lacks; its own modules have what they need of it by then."""
    importlib.import_module("detectron2.checkpoint")
    from detectron2.modeling import ResNet, roi_heads

    new = ResNet.__init__

    def old(self, stem, stages, num_classes=None, out_features=None):
        new(self, stem, stages, num_classes, out_features)

    ResNet.__init__ = old
    del roi_heads.CascadeROIHeads
    sys.modules["detectron2.utils.file_io"] = None


def use(file: Path) -> None:
    """Build a cascade, load a backbone's weights as other projects do, and detect."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    import resnest_d2

    cfg = get_cfg()
    resnest_d2.add_resnest_config(cfg)
    cfg.merge_from_file(resnest_d2.model_zoo.get_config_file("cascade_resnest50"))
    cfg.merge_from_list([part for pair in SETTINGS.items() for part in pair])
    model = build_model(cfg).eval()
    bottom_up = model.backbone.bottom_up
    assert type(bottom_up) is resnest_d2.ResNeSt
    frozen = [name for name, value in bottom_up.named_parameters() if not value.requires_grad]
    assert {name.partition(".")[0] for name in frozen} == {"stem", "res2"}, frozen

    weights = resnest_d2.make_resnest(14).state_dict()
    torch.save({"model": weights, "matching_heuristics": True, "__author__": "test"}, file)
    DetectionCheckpointer(model).load(str(file))
    loaded = bottom_up.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in weights.items() if "num_batches" not in k)

    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 128, 160)}])
    assert output["instances"].image_size == (128, 160)


if __name__ == "__main__":
    if sys.argv[1:]:
        take(sys.argv[1])
    else:
        take_away()
    use(Path("backbone.pth"))
    print("works")
