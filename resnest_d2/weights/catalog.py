"""The published weight files, the places that hold them and the images that they are made for.

Eight hex digits at the end of a file's name are the start of its SHA-256, by the convention of
torch.hub, which timm and OpenMMLab follow too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from ..config import InputError, did_you_mean
from ..model_zoo.published import AUTHORS, PUBLICATIONS
from .files import InputFormat

RESNEST, TIMM, HUB = "resnest://", "timm://", "hf://"

RELEASE = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
TIMM_RELEASE = "https://github.com/rwightman/pytorch-image-models/releases/download/"
OPENMMLAB = "https://download.openmmlab.com/"
# Reported dead since 2021. Its addresses stand in the reference's configs.
BUCKET = AUTHORS.root.removesuffix("detectron/")

# The authors' and timm's files for ImageNet, in torchvision's constants times 255.
IMAGENET_RGB = InputFormat("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# The reference's and MMDetection's detectors.
DETECTRON2_RGB = InputFormat("RGB", (123.68, 116.779, 103.939), (58.393, 57.12, 57.375))
# Detectron2's defaults, with which its MSRA ResNets go.
MSRA_BGR = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


class Backbone(NamedTuple):
    """The files of one backbone, by the hashes at the ends of their names; "" where there is none.

    All but timm's are of the authors; OpenMMLab has converted them.
    """

    name: str
    imagenet: str
    timm: str = ""
    """timm's name on the hub."""
    openmmlab: str = ""
    detectron2: str = ""
    """Of the file in Detectron2's names."""
    openmmlab_detectron2: str = ""


BACKBONES = (
    Backbone("resnest50", "528c19ca", "resnest50d.in1k", "1ebf0afe", "255b5649", "7497a55b"),
    Backbone("resnest101", "22405ba7", "resnest101e.in1k", "032caa52", "486f69a8", "f3b931b2"),
    Backbone("resnest200", "75117900", "resnest200e.in1k", "581a60f2", "02644020", "ca88e41f"),
    Backbone("resnest269", "0cc87c48", "resnest269e.in1k", "59930960", "69df4066"),
    Backbone("resnest14", "9c8fe254", "resnest14d.gluon_in1k"),
    Backbone("resnest26", "50eb607c", "resnest26d.gluon_in1k"),
    Backbone("resnest50_fast_1s1x64d", "d8fbf808"),
    Backbone("resnest50_fast_2s1x64d", "44938639"),
    Backbone("resnest50_fast_4s1x64d", "f74f3fc3"),
    Backbone("resnest50_fast_1s2x40d", "32830b84"),
    Backbone("resnest50_fast_2s2x40d", "9d126481"),
    Backbone("resnest50_fast_4s2x40d", "41d14ed0", "resnest50d_4s2x40d.in1k"),
    Backbone("resnest50_fast_1s4x24d", "d4a4f76f", "resnest50d_1s4x24d.in1k"),
)


@dataclass(frozen=True)
class Entry:
    """Weights that have a name in ``MODEL.WEIGHTS``, and the images that they are made for."""

    name: str
    sources: tuple[str, ...]
    """Addresses of the file, in the order in which they are tried."""
    input_format: InputFormat | None


def file_name(source: str) -> str:
    """The name of a source's file, under which a mirror has it; of the hub, its path there."""
    return source.removeprefix(HUB) if source.startswith(HUB) else source.rpartition("/")[2]


def find(name: str) -> Entry:
    """Look weights up by their name, or by the address that they had in the reference's bucket.

    Raises:
        InputError: there is nothing of that name; the message has the closest ones.
    """
    known = entries()
    if name in known:
        return known[name]
    model = name.removeprefix(TIMM).strip("/")
    if name.startswith(TIMM) and "." in model and "/" not in model:  # timm adds new tags
        return Entry(name, (_on_hub(model),), IMAGENET_RGB)
    if name.startswith(BUCKET):
        file = file_name(name)
        same = (e for e in known.values() if file in map(file_name, e.sources))
        return next(same, None) or Entry(name, (name,), None)
    hint = did_you_mean(name, known) or f"; known are {', '.join(known)}"
    raise InputError(f"unknown weights {name!r}{hint}")


@cache
def entries() -> dict[str, Entry]:
    """All weights that have a name; those of ``timm://`` are timm's own ResNeSts."""
    return {entry.name: entry for entry in _list()}


def _list() -> Iterator[Entry]:
    for backbone in BACKBONES:
        name = f"{RESNEST}ImageNet/{backbone.name}"
        yield Entry(name, _imagenet(backbone), IMAGENET_RGB)
        if backbone.detectron2:
            yield Entry(f"{name}_detectron", _detectron2(backbone), DETECTRON2_RGB)
        if backbone.timm:
            yield Entry(TIMM + backbone.timm, (_on_hub(backbone.timm),), IMAGENET_RGB)
    for name, publication in PUBLICATIONS.items():
        input_format = MSRA_BGR if name.startswith("baselines/") else DETECTRON2_RGB
        yield Entry(f"{RESNEST}COCO/{name}", (publication.url,), input_format)


def _on_hub(timm: str) -> str:
    return f"{HUB}timm/{timm}/model.safetensors"


def _imagenet(backbone: Backbone) -> tuple[str, ...]:
    """The release, its mirrors, the hub and the old bucket, as far as they have the file."""
    name, timm, converted = backbone.name, backbone.timm, backbone.openmmlab
    file = f"{name}-{backbone.imagenet}.pth"
    hub = (_on_hub(timm),) if timm else ()
    if timm.endswith(".gluon_in1k"):  # GluonCV's, which are on timm's page alone
        return f"{TIMM_RELEASE}v0.1-weights/gluon_{file}", *hub
    folder = f"{OPENMMLAB}mmclassification/v0/resnest/"
    mirror = (f"{folder}{name}_imagenet_converted-{converted}.pth",) if converted else ()
    releases = RELEASE + file, f"{TIMM_RELEASE}v0.1-resnest/{file}"
    return *releases, *mirror, *hub, f"{BUCKET}torch/{file}"


def _detectron2(backbone: Backbone) -> tuple[str, ...]:
    name, mirror = backbone.name, backbone.openmmlab_detectron2
    mirrors = (f"{OPENMMLAB}pretrain/third_party/{name}_d2-{mirror}.pth",) if mirror else ()
    return *mirrors, f"{BUCKET}detectron/{name}_detectron-{backbone.detectron2}.pth"
