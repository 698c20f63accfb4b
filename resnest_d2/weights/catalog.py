"""The published weight files, the places that hold them and the images that they are made for.

Eight hex digits at the end of a file's name are the start of its SHA-256, by the convention of
torch.hub, which timm and OpenMMLab follow too.
"""

import os
from dataclasses import dataclass
from urllib.parse import unquote

from detectron2.config import CfgNode

from ..config import InputError, did_you_mean
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
        """The file's path in a mirror."""
        return f"{self.repository}/{self.filename}"


@dataclass(frozen=True)
class WebFile:
    """A file at an address."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def mirrored(self) -> str:
        """The file's path in a mirror, which is its name."""
        return unquote(self.url.rpartition("/")[2])


@dataclass(frozen=True)
class Entry:
    """Weights that have a name in ``MODEL.WEIGHTS``, and the images that they are made for."""

    name: str
    sources: tuple[WebFile | HubFile, ...]
    """The places of the weights, in the order in which they are tried."""
    input_format: InputFormat


# The authors' release; those that begin with gluon_ are GluonCV's, converted by timm.
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
# The authors' backbones in Detectron2's names, and OpenMMLab's conversions of them.
DETECTRON2: dict[str, tuple[str, ...]] = {
    "resnest50": ("resnest50_detectron-255b5649.pth", "resnest50_d2-7497a55b.pth"),
    "resnest101": ("resnest101_detectron-486f69a8.pth", "resnest101_d2-f3b931b2.pth"),
    "resnest200": ("resnest200_detectron-02644020.pth", "resnest200_d2-ca88e41f.pth"),
    "resnest269": ("resnest269_detectron-69df4066.pth",),
}
# OpenMMLab's conversions of files for ImageNet.
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
# Addresses of weights below these stand for their names.
NAMED_PLACES = (BUCKET, OPENMMLAB_DETECTORS)


def names() -> list[str]:
    """Return all names of weights; those of ``timm://`` are timm's own ResNeSts."""
    return list(_entries())


def find(path: str) -> Entry | None:
    """Look weights up by their name, or by the address of their file.

    Returns:
        None for an address of other files.

    Raises:
        InputError: there is nothing of that name; the message has the closest ones.
    """
    if not path.startswith((RESNEST, TIMM)):
        return find_address(path)
    model = path.removeprefix(TIMM).strip("/")
    if path.startswith(TIMM) and "." in model and "/" not in model:  # timm adds new tags
        return Entry(TIMM + model, (HubFile(f"timm/{model}"),), IMAGENET_RGB)
    entries = _entries()
    name = path.replace("://COCO/lazy/", "://COCO/")  # LazyConfigs are of the same models
    if name in entries:
        return entries[name]
    suggestion = did_you_mean(path, entries) or f"; known are {', '.join(entries)}"
    raise InputError(f"unknown weights {path!r}{suggestion}")


def find_address(url: str) -> Entry | None:
    """Look up the weights whose file is at an address; None if they have no name."""
    file = WebFile(url).mirrored
    for entry in _entries().values():
        if any(isinstance(s, WebFile) and s.mirrored == file for s in entry.sources):
            return entry
    return None


def input_format_of(path: str) -> InputFormat | None:
    """Return the images that weights are made for, by their name, address or file name."""
    for start, input_format in DETECTRON2_FILES.items():
        if path.startswith(start):
            return input_format
    try:
        entry = find(path)
    except InputError:
        return None
    return entry and entry.input_format


def check_colours(cfg: CfgNode) -> None:
    """Warn of ``INPUT.FORMAT`` and a normalisation that ``MODEL.WEIGHTS`` are not made for."""
    weights = cfg.MODEL.WEIGHTS
    ours = InputFormat(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))
    warn_if_it_differs(f"MODEL.WEIGHTS {weights}", input_format_of(weights), ours)


def _entries() -> dict[str, Entry]:
    found = [Entry(f"{RESNEST}ImageNet/{name}", _imagenet(name), IMAGENET_RGB) for name in IMAGENET]
    for name in DETECTRON2:
        entry = Entry(f"{RESNEST}ImageNet/{name}_detectron", _detectron2(name), DETECTRON2_RGB)
        found.append(entry)
    for name, publication in PUBLICATIONS.items():
        input_format = MSRA_BGR if name.startswith("baselines/") else DETECTRON2_RGB
        found.append(Entry(f"{RESNEST}COCO/{name}", (WebFile(publication.url),), input_format))
    found += [Entry(TIMM + name, (HubFile(f"timm/{name}"),), IMAGENET_RGB) for name in HUB.values()]
    return {entry.name: entry for entry in found}


def _imagenet(name: str) -> tuple[WebFile | HubFile, ...]:
    """Return the release, its mirrors, the hub and the old bucket, as far as they have the file."""
    file = IMAGENET[name]
    hub = [HubFile(f"timm/{HUB[name]}")] if name in HUB else []
    if file.startswith("gluon_"):
        return WebFile(TIMM_GLUON + file), *hub
    mirrors = [RELEASE + file, TIMM_RELEASE + file]
    if name in OPENMMLAB_IMAGENET:
        mirrors.append(f"{OPENMMLAB}mmclassification/v0/resnest/{OPENMMLAB_IMAGENET[name]}")
    return *map(WebFile, mirrors), *hub, WebFile(f"{BUCKET}torch/{file}")


def _detectron2(name: str) -> tuple[WebFile, ...]:
    file, *converted = DETECTRON2[name]
    mirrors = [WebFile(f"{OPENMMLAB}pretrain/third_party/{name}") for name in converted]
    return *mirrors, WebFile(f"{BUCKET}detectron/{file}")
