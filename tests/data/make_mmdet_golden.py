"""Make mmdet_names.json.gz and mmdet_golden.npz from MMDetection itself, once.

MMDetection runs on a CPU without its compiled operators. In an environment with torch and
torchvision:

    pip install --no-deps mmdet==3.3.0 mmengine mmcv-lite==2.1.0 shapely terminaltables addict six
    python tests/data/make_mmdet_golden.py

The names and shapes are those of all eight detectors on ResNeSt, the detections those of the four
on ResNeSt-50 with weights of ``tests/mmdet_golden.py``.
"""

import gzip
import importlib.machinery
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from mmdet_golden import FAMILIES, IMAGE_SIZE, ORIGINAL_SIZE, draw_weights, image  # noqa: E402

CONFIGS = {
    "faster": "faster-rcnn_s{}_fpn_syncbn-backbone+head_ms-range-1x_coco",
    "mask": "mask-rcnn_s{}_fpn_syncbn-backbone+head_ms-1x_coco",
    "cascade_box": "cascade-rcnn_s{}_fpn_syncbn-backbone+head_ms-range-1x_coco",
    "cascade": "cascade-mask-rcnn_s{}_fpn_syncbn-backbone+head_ms-1x_coco",
}


class RoIAlign(nn.Module):
    """MMCV's operator by torchvision's."""

    def __init__(self, output_size, spatial_scale=1.0, sampling_ratio=0, aligned=True):
        super().__init__()
        self.output_size = (output_size, output_size)
        self.arguments = (spatial_scale, sampling_ratio or -1, aligned)

    def forward(self, x, rois):
        return torchvision.ops.roi_align(x, rois, self.output_size, *self.arguments)


def batched_nms(boxes, scores, idxs, nms_cfg, class_agnostic=False):
    """MMCV's function by torchvision's."""
    keep = torchvision.ops.batched_nms(boxes, scores, idxs, nms_cfg["iou_threshold"])
    return torch.cat([boxes[keep], scores[keep, None]], 1), keep


class Operators:
    """Finder of ``mmcv.ops``: what is used is above, every other name is an empty class."""

    def find_spec(self, name, path, target=None):
        if name == "mmcv.ops" or name.startswith("mmcv.ops."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)

        def missing(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (nn.Module,), {})

        module.__getattr__ = missing
        module.RoIAlign, module.batched_nms = RoIAlign, batched_nms
        return module

    def exec_module(self, module):
        pass


def build(family, depth):
    import mmdet
    from mmdet.registry import MODELS
    from mmengine.config import Config

    folder = Path(mmdet.__file__).parent / ".mim/configs/resnest"
    cfg = Config.fromfile(folder / f"{CONFIGS[family].format(depth)}.py")
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model).eval()


def detect(model):
    from mmdet.structures import DetDataSample

    sample = DetDataSample()
    height, width = IMAGE_SIZE
    factor = (width / ORIGINAL_SIZE[1], height / ORIGINAL_SIZE[0])
    sample.set_metainfo(
        {"img_shape": IMAGE_SIZE, "ori_shape": ORIGINAL_SIZE, "scale_factor": factor}
    )
    with torch.no_grad():  # it takes BGR
        (result,) = model.test_step({"inputs": [image().flip(0)], "data_samples": [sample]})
    return result.pred_instances


def centre_classes(model):
    """Biases with which the classes' mean scores on this image are alike: else one wins all."""
    inputs = {}
    heads = {n: m for n, m in model.named_modules() if n.endswith("fc_cls")}
    hooks = [
        head.register_forward_pre_hook(lambda _, args, n=name: inputs.update({n: args[0]}))
        for name, head in heads.items()
    ]
    detect(model)
    for hook in hooks:
        hook.remove()
    for name, head in heads.items():
        head.bias.data = -(head.weight.data @ inputs[name].mean(0))
    return {f"{name}.bias": head.bias.data.numpy() for name, head in heads.items()}


def main():
    sys.meta_path.insert(0, Operators())
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    shapes, golden = {}, {}
    for family in FAMILIES:
        for depth in (50, 101):
            model = build(family, depth)
            name = f"{family}_resnest{depth}"
            shapes[name] = {k: list(v.shape) for k, v in model.state_dict().items()}
            if depth == 101:
                continue
            model.load_state_dict(draw_weights(shapes[name]))
            for key, bias in centre_classes(model).items():
                golden[f"{family}/{key}"] = bias
            found = detect(model)
            golden[f"{family}/boxes"] = found.bboxes.numpy()
            golden[f"{family}/scores"] = found.scores.numpy()
            golden[f"{family}/classes"] = found.labels.numpy()
            if "masks" in found:
                golden[f"{family}/masks"] = np.packbits(found.masks.numpy())
            scores = found.scores.numpy()
            print(family, len(scores), scores[:3], scores[-3:], len(set(found.labels.tolist())))
    text = json.dumps(shapes, separators=(",", ":")).encode()
    (HERE / "mmdet_names.json.gz").write_bytes(gzip.compress(text, mtime=0))
    np.savez_compressed(HERE / "mmdet_golden.npz", **golden)


if __name__ == "__main__":
    main()
