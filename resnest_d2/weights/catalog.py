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
from .input_format import DETECTRON2_FILES, DETECTRON2_RGB, IMAGENET_RGB, MSRA_BGR, InputFormat

RESNEST, TIMM, HUB = "resnest://", "timm://", "hf://"

RELEASE = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
TIMM_RELEASE = "https://github.com/rwightman/pytorch-image-models/releases/download/"
OPENMMLAB = "https://download.openmmlab.com/"
# Reported dead since 2021. Its addresses stand in the reference's configs.
BUCKET = AUTHORS.root.removesuffix("detectron/")


class Backbone(NamedTuple):
    """The files of one backbone."""

    name: str
    imagenet: str
    """The authors' file for ImageNet; gluon_ begins those of GluonCV, which are on timm's page."""
    timm: str = ""
    """timm's name on the hub."""
    openmmlab: str = ""
    """OpenMMLab's conversion of the authors' file."""
    detectron2: str = ""
    """The authors' backbone in Detectron2's names."""
    openmmlab_detectron2: str = ""
    """OpenMMLab's conversion of that."""


BACKBONES = (
    Backbone(
        "resnest50",
        "resnest50-528c19ca.pth",
        "resnest50d.in1k",
        "resnest50_imagenet_converted-1ebf0afe.pth",
        "resnest50_detectron-255b5649.pth",
        "resnest50_d2-7497a55b.pth",
    ),
    Backbone(
        "resnest101",
        "resnest101-22405ba7.pth",
        "resnest101e.in1k",
        "resnest101_imagenet_converted-032caa52.pth",
        "resnest101_detectron-486f69a8.pth",
        "resnest101_d2-f3b931b2.pth",
    ),
    Backbone(
        "resnest200",
        "resnest200-75117900.pth",
        "resnest200e.in1k",
        "resnest200_imagenet_converted-581a60f2.pth",
        "resnest200_detectron-02644020.pth",
        "resnest200_d2-ca88e41f.pth",
    ),
    Backbone(
        "resnest269",
        "resnest269-0cc87c48.pth",
        "resnest269e.in1k",
        "resnest269_imagenet_converted-59930960.pth",
        "resnest269_detectron-69df4066.pth",
    ),
    Backbone("resnest14", "gluon_resnest14-9c8fe254.pth", "resnest14d.gluon_in1k"),
    Backbone("resnest26", "gluon_resnest26-50eb607c.pth", "resnest26d.gluon_in1k"),
    Backbone("resnest50_fast_1s1x64d", "resnest50_fast_1s1x64d-d8fbf808.pth"),
    Backbone("resnest50_fast_2s1x64d", "resnest50_fast_2s1x64d-44938639.pth"),
    Backbone("resnest50_fast_4s1x64d", "resnest50_fast_4s1x64d-f74f3fc3.pth"),
    Backbone("resnest50_fast_1s2x40d", "resnest50_fast_1s2x40d-32830b84.pth"),
    Backbone("resnest50_fast_2s2x40d", "resnest50_fast_2s2x40d-9d126481.pth"),
    Backbone(
        "resnest50_fast_4s2x40d",
        "resnest50_fast_4s2x40d-41d14ed0.pth",
        "resnest50d_4s2x40d.in1k",
    ),
    Backbone(
        "resnest50_fast_1s4x24d",
        "resnest50_fast_1s4x24d-d4a4f76f.pth",
        "resnest50d_1s4x24d.in1k",
    ),
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


def names() -> list[str]:
    """Return all names of weights; those of ``timm://`` are timm's own ResNeSts."""
    return list(_entries())


def find(name: str) -> Entry:
    """Look weights up by their name, or by the address that they had in the reference's bucket.

    Raises:
        InputError: there is nothing of that name; the message has the closest ones.
    """
    entries = _entries()
    if name in entries:
        return entries[name]
    model = name.removeprefix(TIMM).strip("/")
    if name.startswith(TIMM) and "." in model and "/" not in model:  # timm adds new tags
        return Entry(name, (_on_hub(model),), IMAGENET_RGB)
    if name.startswith(BUCKET):
        file = file_name(name)
        same = (e for e in entries.values() if file in map(file_name, e.sources))
        return next(same, None) or Entry(name, (name,), None)
    hint = did_you_mean(name, entries) or f"; known are {', '.join(entries)}"
    raise InputError(f"unknown weights {name!r}{hint}")


def input_format_of(name: str) -> InputFormat | None:
    """Return the images that weights are made for, by their name; None if it does not tell."""
    for start, input_format in DETECTRON2_FILES.items():
        if name.startswith(start):
            return input_format
    is_ours = name in _entries() or name.startswith((BUCKET, TIMM))
    return find(name).input_format if is_ours else None


@cache
def _entries() -> dict[str, Entry]:
    return {entry.name: entry for entry in _list()}


def _list() -> Iterator[Entry]:
    for backbone in BACKBONES:
        yield Entry(f"{RESNEST}ImageNet/{backbone.name}", _imagenet(backbone), IMAGENET_RGB)
    for backbone in BACKBONES:
        if backbone.detectron2:
            name = f"{RESNEST}ImageNet/{backbone.name}_detectron"
            yield Entry(name, _detectron2(backbone), DETECTRON2_RGB)
    for name, publication in PUBLICATIONS.items():
        input_format = MSRA_BGR if name.startswith("baselines/") else DETECTRON2_RGB
        yield Entry(f"{RESNEST}COCO/{name}", (publication.url,), input_format)
    for backbone in BACKBONES:
        if backbone.timm:
            yield Entry(TIMM + backbone.timm, (_on_hub(backbone.timm),), IMAGENET_RGB)


def _on_hub(timm: str) -> str:
    return f"{HUB}timm/{timm}/model.safetensors"


def _imagenet(backbone: Backbone) -> tuple[str, ...]:
    """The release, its mirrors, the hub and the old bucket, as far as they have the file."""
    file = backbone.imagenet
    hub = (_on_hub(backbone.timm),) if backbone.timm else ()
    if file.startswith("gluon_"):
        return f"{TIMM_RELEASE}v0.1-weights/{file}", *hub
    converted = (
        backbone.openmmlab and f"{OPENMMLAB}mmclassification/v0/resnest/{backbone.openmmlab}"
    )
    mirrors = (RELEASE + file, f"{TIMM_RELEASE}v0.1-resnest/{file}", converted)
    return *filter(None, mirrors), *hub, f"{BUCKET}torch/{file}"


def _detectron2(backbone: Backbone) -> tuple[str, ...]:
    mirror = backbone.openmmlab_detectron2
    mirrors = (f"{OPENMMLAB}pretrain/third_party/{mirror}",) if mirror else ()
    return *mirrors, f"{BUCKET}detectron/{backbone.detectron2}"
