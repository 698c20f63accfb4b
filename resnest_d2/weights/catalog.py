"""The published weight files, the places that hold them and the images that they were made for.

Where a name has eight hex digits at its end, they are the start of the file's SHA-256, by the
convention of torch.hub, which timm and OpenMMLab follow too.
"""

import difflib
import os
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote, unquote

from detectron2.config import CfgNode

from ..model_zoo.published import AUTHORS, MMDETECTION, PUBLICATIONS
from .input_format import (
    DETECTRON2_FILES,
    DETECTRON2_RGB,
    IMAGENET_RGB,
    MSRA_BGR,
    InputFormat,
    warn_if_it_differs,
)

RESNEST = "resnest://"
TIMM = "timm://"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the Hugging Face hub."""

    repository: str
    filename: str = "model.safetensors"

    def __str__(self) -> str:
        endpoint = os.getenv("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{self.repository}/resolve/main/{self.filename}"

    @property
    def mirrored(self) -> str:
        """Its path in a mirror."""
        return f"{self.repository}/{self.filename}"


@dataclass(frozen=True)
class WebFile:
    """A file at an address."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def mirrored(self) -> str:
        """Its path in a mirror: its name."""
        return unquote(self.url.rpartition("/")[2])


@dataclass(frozen=True)
class Entry:
    """Weights that have a name."""

    name: str
    """As in ``MODEL.WEIGHTS``."""
    sources: tuple[WebFile | HubFile, ...]
    """Where they are, in the order in which they are tried."""
    input_format: InputFormat
    """The images that they were made for."""

    @property
    def cached(self) -> str:
        """Path of the converted file in the cache, without its ending."""
        return self.name.replace("://", "/")


# Of the authors' release; the two at the end are GluonCV's, converted by timm.
IMAGENET: dict[str, str] = {
    "resnest50": "resnest50-528c19ca.pth",
    "resnest101": "resnest101-22405ba7.pth",
    "resnest200": "resnest200-75117900.pth",
    "resnest269": "resnest269-0cc87c48.pth",
    "resnest50_fast_1s1x64d": "resnest50_fast_1s1x64d-d8fbf808.pth",
    "resnest50_fast_2s1x64d": "resnest50_fast_2s1x64d-44938639.pth",
    "resnest50_fast_4s1x64d": "resnest50_fast_4s1x64d-f74f3fc3.pth",
    "resnest50_fast_1s2x40d": "resnest50_fast_1s2x40d-32830b84.pth",
    "resnest50_fast_2s2x40d": "resnest50_fast_2s2x40d-9d126481.pth",
    "resnest50_fast_4s2x40d": "resnest50_fast_4s2x40d-41d14ed0.pth",
    "resnest50_fast_1s4x24d": "resnest50_fast_1s4x24d-d4a4f76f.pth",
    "resnest14": "gluon_resnest14-9c8fe254.pth",
    "resnest26": "gluon_resnest26-50eb607c.pth",
}
GLUON = ("resnest14", "resnest26")
# The authors' backbones in Detectron2's names.
DETECTRON2: dict[str, str] = {
    "resnest50": "resnest50_detectron-255b5649.pth",
    "resnest101": "resnest101_detectron-486f69a8.pth",
    "resnest200": "resnest200_detectron-02644020.pth",
    "resnest269": "resnest269_detectron-69df4066.pth",
}
# OpenMMLab's conversions of these, and of the files for ImageNet.
OPENMMLAB_DETECTRON2: dict[str, str] = {
    "resnest50": "resnest50_d2-7497a55b.pth",
    "resnest101": "resnest101_d2-f3b931b2.pth",
    "resnest200": "resnest200_d2-ca88e41f.pth",
}
OPENMMLAB_IMAGENET: dict[str, str] = {
    "resnest50": "resnest50_imagenet_converted-1ebf0afe.pth",
    "resnest101": "resnest101_imagenet_converted-032caa52.pth",
    "resnest200": "resnest200_imagenet_converted-581a60f2.pth",
    "resnest269": "resnest269_imagenet_converted-59930960.pth",
}
# timm's names on the hub.
HUB: dict[str, str] = {
    "resnest14": "resnest14d.gluon_in1k",
    "resnest26": "resnest26d.gluon_in1k",
    "resnest50": "resnest50d.in1k",
    "resnest101": "resnest101e.in1k",
    "resnest200": "resnest200e.in1k",
    "resnest269": "resnest269e.in1k",
    "resnest50_fast_4s2x40d": "resnest50d_4s2x40d.in1k",
    "resnest50_fast_1s4x24d": "resnest50d_1s4x24d.in1k",
}

RELEASE = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
TIMM_RELEASE = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-resnest/"
TIMM_GLUON = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
OPENMMLAB = "https://download.openmmlab.com/"
OPENMMLAB_DETECTORS = MMDETECTION.root
# Reported dead since 2021. It has the files for ImageNet too, under torch/.
BUCKET = AUTHORS.root.removesuffix("detectron/")


def names() -> list[str]:
    """All names of weights; of ``timm://`` those of timm's own ResNeSts."""
    imagenet = [*IMAGENET, *(f"{name}_detectron" for name in DETECTRON2)]
    return [
        *(f"{RESNEST}ImageNet/{name}" for name in imagenet),
        *(f"{RESNEST}COCO/{name}" for name in PUBLICATIONS),
        *(f"{TIMM}{name}" for name in HUB.values()),
    ]


def find(path: str) -> Entry:
    """What a name of weights, or the address of a file that has one, stands for.

    Raises:
        ValueError: there is nothing of that name; the message has the closest ones.
    """
    kind, _, name = path.removeprefix(RESNEST).partition("/")
    if path.startswith(TIMM) and "/" not in path.removeprefix(TIMM).strip("/"):
        hub = HubFile(f"timm/{path.removeprefix(TIMM).strip('/')}")
        if "." in hub.repository:  # any tag, for timm adds new ones
            return Entry(path.strip("/"), (hub,), IMAGENET_RGB)
    if path.startswith(RESNEST) and kind == "ImageNet":
        base = name.removesuffix("_detectron")
        if name in IMAGENET:
            return Entry(path, _imagenet(name), IMAGENET_RGB)
        if base in DETECTRON2:
            return Entry(path, _detectron2(base), DETECTRON2_RGB)
    name = name.removeprefix("lazy/")  # the same models
    if path.startswith(RESNEST) and kind == "COCO" and name in PUBLICATIONS:
        path = f"{RESNEST}COCO/{name}"
        input_format = MSRA_BGR if name.startswith("baselines/") else DETECTRON2_RGB
        return Entry(path, (WebFile(PUBLICATIONS[name].url),), input_format)
    known = names()
    close = difflib.get_close_matches(path, known, n=3, cutoff=0.3) or known
    raise ValueError(f"unknown weights {path!r}; did you mean {' or '.join(close)}?")


def find_address(url: str) -> Entry | None:
    """The weights that are the file at an address, under their name; None if they have none."""
    return _by_file().get(unquote(url.rpartition("/")[2]))


def input_format_of(path: str) -> InputFormat | None:
    """The images that weights were made for, by their name, address or file's name."""
    if path.startswith((RESNEST, TIMM)):
        try:
            return find(path).input_format
        except ValueError:
            return None
    for start, input_format in DETECTRON2_FILES.items():
        if path.startswith(start):
            return input_format
    entry = find_address(path)
    return entry.input_format if entry else None


def check_colours(cfg: CfgNode) -> None:
    """Warn of colours in a config that its weights were not made for.

    ``INPUT.FORMAT`` and the normalisation are far from ``MODEL.WEIGHTS`` in a config.
    """
    weights = cfg.MODEL.WEIGHTS
    ours = InputFormat(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))
    warn_if_it_differs(f"MODEL.WEIGHTS {weights}", input_format_of(weights), ours)


@cache
def _by_file() -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name in names():
        entry = find(name)
        for source in entry.sources:
            if isinstance(source, WebFile):
                entries.setdefault(source.mirrored, entry)
    return entries


def _imagenet(name: str) -> tuple[WebFile | HubFile, ...]:
    """The release, its mirrors, the hub, the old bucket."""
    file = IMAGENET[name]
    if name in GLUON:
        return WebFile(TIMM_GLUON + file), HubFile(f"timm/{HUB[name]}")
    sources: list[WebFile | HubFile] = [WebFile(RELEASE + file), WebFile(TIMM_RELEASE + file)]
    if name in OPENMMLAB_IMAGENET:
        mirror = f"{OPENMMLAB}mmclassification/v0/resnest/{OPENMMLAB_IMAGENET[name]}"
        sources.append(WebFile(mirror))
    if name in HUB:
        sources.append(HubFile(f"timm/{HUB[name]}"))
    return *sources, WebFile(f"{BUCKET}torch/{file}")


def _detectron2(name: str) -> tuple[WebFile, ...]:
    sources = [WebFile(BUCKET + "detectron/" + DETECTRON2[name])]
    if name in OPENMMLAB_DETECTRON2:
        converted = OPENMMLAB_DETECTRON2[name]
        sources.insert(0, WebFile(f"{OPENMMLAB}pretrain/third_party/{quote(converted)}"))
    return tuple(sources)
