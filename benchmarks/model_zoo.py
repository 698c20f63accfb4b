"""Write MODEL_ZOO.md: every model of the zoo with its cost and what was published about it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from benchmarks.cost import IMAGE_SIZES, Cost, backbone_cost, detector_cost
from resnest_d2 import model_zoo
from resnest_d2.model_zoo.published import AUTHORS, MMDETECTION, PUBLICATIONS

OUTPUT = Path(__file__).resolve().parents[1] / "MODEL_ZOO.md"
COMMAND = "python -m benchmarks.model_zoo"


@dataclass(frozen=True)
class Section:
    """One table of models: those whose names match."""

    title: str
    pattern: str
    note: str = ""


SECTIONS = (
    Section("Boxes", r"faster_|cascade_box_|retinanet_"),
    Section(
        "Boxes and masks",
        r"mask_|cascade_resnest|pointrend_",
        "The fast variants pool before the 3x3 convolution; 2s2x40d is radix 2, cardinality 2, "
        "width 40. `make demo` trains `mask_resnest14_digits`.",
    ),
    Section(
        "Keypoints, panoptic and semantic segmentation",
        r"keypoint_|panoptic_|deeplab",
        "DeepLabV3+ is for ADE20K; the paper's 46.9 mIoU is that of DeepLabV3.",
    ),
    Section("ResNet baselines", r"baselines/", "Detectron2's ResNet under the same recipes."),
    Section(
        "MMDetection's models",
        r"mmdet/",
        "Trained by MMDetection under its own recipe and converted. The cascades have "
        "`AveragingCascadeROIHeads`, with a mask head in each stage.",
    ),
)
# By the reference's footnote.
MEASURED_ON = {"coco_2017_val": "", "coco_2017_test-dev": "measured on test-dev2019, multi-scale"}
METRICS = {"bbox/AP": "box AP", "segm/AP": "mask AP", "panoptic_seg/PQ": "PQ"}
ITERATIONS, IMAGES = 90_000, 16

# The authors' share, in per cent, of ImageNet's validation images whose first guess is right, and
# the side of the square images, in pixels. By the names of resnest_d2.weights; ResNeSt-14 and 26
# are GluonCV's and in neither table. The ablation exists in two versions, which differ in 2s2x40d
# and 4s2x40d: the other has 80.97 and 80.86. This one fits the files, for timm measured 81.11 with
# that of 4s2x40d.
IMAGENET = {
    "resnest50": (81.03, 224),
    "resnest101": (82.83, 256),
    "resnest200": (83.84, 320),
    "resnest269": (84.54, 416),
    "resnest50_fast_1s1x64d": (80.33, 224),
    "resnest50_fast_2s1x64d": (80.53, 224),
    "resnest50_fast_4s1x64d": (80.76, 224),
    "resnest50_fast_1s2x40d": (80.59, 224),
    "resnest50_fast_2s2x40d": (80.61, 224),
    "resnest50_fast_4s2x40d": (81.14, 224),
    "resnest50_fast_1s4x24d": (80.99, 224),
}

INTRODUCTION = f"""\
# Model zoo

```sh
resnest-d2 predict --model mmdet/cascade_resnest101 --input photo.jpg --output drawn
```

- **AP and PQ** are [the authors']({AUTHORS.page}) on COCO val2017, or
  [MMDetection's]({MMDETECTION.page}); where they are missing, none is published.
- **Weights**: a box AP links to them, and `resnest://COCO/<config>` [names](docs/weights.md) them.
  The authors' bucket has been [reported
  dead](https://github.com/zhanghang1989/ResNeSt/issues/152) since May 2021.
- **GFLOPs** count as fvcore does, a multiply-add as one, for one image of
  {"x".join(map(str, IMAGE_SIZES[800]))}, 1000 proposals in each box head and 100 detections in mask
  and keypoint heads.
- The schedule is {ITERATIONS // 1000}k iterations of {IMAGES} images, the backbone has a feature
  pyramid. What differs is said above a table.

`{COMMAND}` writes this page.
"""


def section_of(name: str) -> Section:
    """The section that a model belongs to, by its name."""
    return next(section for section in SECTIONS if re.match(section.pattern, name))


def render() -> str:
    """The whole of MODEL_ZOO.md."""
    names = sorted(model_zoo.names(), key=_natural_order)
    configs = {name: model_zoo.get_config(name) for name in names}
    blocks = [INTRODUCTION]
    for section in SECTIONS:
        costs = {n: detector_cost(configs[n]) for n in names if section_of(n) is section}
        differences = {n: _differences(n, configs[n], cost) for n, cost in costs.items()}
        note = " ".join(filter(None, [section.note, *_group(differences)]))
        table = _table([_row(name, cost) for name, cost in costs.items()])
        blocks.append("\n\n".join(filter(None, (f"## {section.title}", note, table))))
    return "\n".join([*blocks, _backbones(configs)])


def _differences(name: str, cfg: CfgNode, cost: Cost) -> list[str]:
    """What about a model is not as the introduction says."""
    solver = cfg.SOLVER
    found = _changes(cfg)
    if solver.MAX_ITER != ITERATIONS:
        thousands, rest = divmod(solver.MAX_ITER, 1000)
        found.append(f"{solver.MAX_ITER if rest else f'{thousands}k'} iterations")
    if solver.IMS_PER_BATCH != IMAGES:
        found.append(f"{solver.IMS_PER_BATCH} images an iteration")
    if cost.image_size != IMAGE_SIZES[800]:
        found.append(f"counted at {'x'.join(map(str, cost.image_size))}")
    if cost.proposals not in (0, 1000):
        found.append(f"{cost.proposals} proposals and {cost.detections} detections")
    if name in PUBLICATIONS and (data := MEASURED_ON[PUBLICATIONS[name].dataset]):
        found.append(data)
    return found


def _changes(cfg: CfgNode) -> list[str]:
    """What was changed about the ImageNet network in this model."""
    resnets = cfg.MODEL.RESNETS
    found = {
        f"{resnets.WIDTH_PER_GROUP / 64:g} of ResNeSt's width": resnets.WIDTH_PER_GROUP != 64,
        f"DCN v{2 if resnets.DEFORM_MODULATED else 1}": any(resnets.DEFORM_ON_PER_STAGE),
        "dilated res5, no pyramid": resnets.RES5_DILATION > 1,
    }
    return [change for change, is_made in found.items() if is_made]


def _group(differences: dict[str, list[str]]) -> list[str]:
    """A sentence for each set of models that differ alike; it names them unless all do."""
    found: dict[tuple[str, ...], list[str]] = {}
    for one in dict.fromkeys(one for names in differences.values() for one in names):
        having = tuple(name for name, its in differences.items() if one in its)
        found.setdefault(having, []).append(one)
    sentences = []
    for having, alike in found.items():
        text = "; ".join(alike)
        names = ", ".join(f"`{name}`" for name in having)
        is_shared = len(having) == len(differences)
        sentences.append(f"{text[0].upper()}{text[1:]}." if is_shared else f"{names}: {text}.")
    return sentences


def _row(name: str, cost: Cost) -> dict[str, str]:
    cells = {"config": f"[`{name}`](configs/{name}.yaml)"}
    cells |= {"params (M)": f"{cost.parameters / 1e6:.1f}", "GFLOPs": f"{cost.macs / 1e9:.1f}"}
    cells |= dict.fromkeys(METRICS.values(), "")
    if name in PUBLICATIONS:
        found = PUBLICATIONS[name]
        for key, value in found.metrics.items():
            cells[METRICS[key]] = f"{value:.{found.publisher.decimals}f}"
        cells["box AP"] = f"[{cells['box AP']}]({found.url})"
    return cells


def _backbones(configs: dict[str, CfgNode]) -> str:
    """The ImageNet networks, each as it is in the first model that changes nothing about it."""
    found: dict[str, CfgNode] = {}
    for cfg in configs.values():
        if "resnest" in cfg.MODEL.BACKBONE.NAME and not _changes(cfg):
            found.setdefault(cfg.MODEL.WEIGHTS.rsplit("/", 1)[-1], cfg)
    rows = []
    for weights in sorted(found, key=_natural_order):
        cost = backbone_cost(found[weights])
        top1, crop = IMAGENET.get(weights, ("", ""))
        rows.append(
            {
                "weights": f"`{weights}`",
                "params (M)": f"{cost.parameters / 1e6:.2f}",
                "GFLOPs": f"{cost.macs / 1e9:.2f}",
                "top-1 (%)": f"{top1:.2f}" if top1 else "",
                "crop": f"{crop}",
            }
        )
    note = (
        "`resnest://ImageNet/<weights>`, counted at 224x224 without the classifier. Top-1 is the "
        "authors', from [their README]"
        "(https://github.com/zhanghang1989/ResNeSt#pretrained-models) and [their ablation]"
        "(https://github.com/zhanghang1989/ResNeSt/blob/master/ablation.md); ResNeSt-14 and 26 are "
        "GluonCV's."
    )
    return f"## Backbones\n\n{note}\n\n{_table(rows)}"


def _natural_order(name: str) -> list[tuple[int, str]]:
    """resnest50 before resnest101."""
    return [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", name)]


def _table(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table without the columns that no row fills; numbers to the right."""
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    rule = ["---" if column in ("config", "weights") else "---:" for column in columns]
    lines = [columns, rule, *([row[column] for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    OUTPUT.write_text(render(), encoding="utf-8")
