"""Annotations in other formats than COCO's: recognised by their shape, with what converts them."""

import json
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from .images import IMAGE_ENDINGS

HEAD = 4096  # so many bytes of a text show its format
LOOKED_AT = 10  # so many files of a folder
UNKNOWN = "holds no JSON object"
COCO = "convert it to COCO's: coco convert --from {} --to coco --input {} --output train.json"
OWN = "is in {}, which holds no instances with boxes"
# A line of a YOLO label file: a class and a box or polygon in parts of the image.
YOLO_LINE = re.compile(r"\s*\d+(\.0)?(\s+-?(0?\.\d+|\d(\.\d*)?)(e-?\d+)?){4,}\s*", re.I)
POLYGONS = (
    "supervision converts polygons: sv.DetectionDataset.from_yolo('IMAGES', 'LABELS', 'data.yaml')"
    ".as_coco(annotations_path='train.json')"
)
# Files that are no text, by their first bytes.
BINARY = {
    b"\x1f\x8b": "is compressed by gzip: unpack it",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"PAR1": "is a table in Parquet's format",
    b"\xff\xfe": "is written in UTF-16: save it in UTF-8",
    b"\xfe\xff": "is written in UTF-16: save it in UTF-8",
    b"version https://git-lfs": "is a pointer of Git LFS: git lfs pull fetches the file",
}
# Objects of tools that export COCO's format too, by keys that they have.
TOOLS = {
    "labelme, of one image": {"shapes", "imagePath"},
    "Supervisely, of one image": {"objects", "size", "tags"},
    "V7 Darwin, of one image": {"item", "annotations"},
    "SuperAnnotate, of one image": {"metadata", "instances"},
    "Cityscapes, of one image": {"imgHeight", "imgWidth", "objects"},
    "VIA 3": {"project", "config", "attribute", "metadata"},
    "VoTT, of one image": {"asset", "regions"},
    "VoTT": {"assets", "tags"},
    "YouTube-VIS, whose masks are of videos": {"videos", "annotations"},
    "MMDetection 3": {"metainfo", "data_list"},
    "SageMaker Ground Truth": {"source-ref"},
    "Labelbox": {"data_row", "projects"},
    "Labelbox's old format": {"Labeled Data", "Label"},
    "FiftyOne's labels": {"classes", "labels"},
    "Label Studio": {"data", "annotations"},
    "Hasty": {"images", "label_classes"},
    "Prodigy": {"image", "spans"},
    "BDD100K": {"name", "labels"},
    "Encord": {"label_hash"},
    "Encord, of data units": {"data_units"},
    "Kili": {"jsonResponse"},
    "Kili, of labels": {"externalId", "labels"},
    "Detectron2's own dataset format": {"file_name", "annotations"},
    "MMDetection 2": {"filename", "ann"},
}


def describe_file(file: Path) -> str | None:
    """Say what an annotation file or folder is by its name and beginning, and what converts it.

    Returns:
        the end of a sentence that begins with the file's name; None if it may be COCO's JSON.
    """
    if file.is_dir():
        return _describe_folder(file)
    if file.suffix.lower() in IMAGE_ENDINGS:
        return "is a picture, not annotations"
    with file.open("rb") as stream:
        start = stream.read(HEAD)
    if binary := next((text for first, text in BINARY.items() if start.startswith(first)), None):
        return binary
    head = start.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if not head:
        return "is empty"
    if "\0" in head:
        return "is no text, but JSON is"
    folder = file.parent
    if head.startswith("<"):
        if re.search(r"<track |<mode>interpolation", head):
            return "is XML of CVAT, of a video; export it again there, as COCO"
        if re.search(r"<annotations>|<image id=", head):
            return f"is XML of CVAT; {COCO.format('cvat', _quoted(file))}"
        if re.search(r"<annotation\b.*<polygon>", head, re.S):
            return "is XML of the old LabelMe, whose polygons datumaro converts to COCO's format"
        if re.search(r"<annotation\b", head):
            return f"is XML of Pascal VOC, of one image; {COCO.format('voc', _quoted(folder))}"
        return "is XML, not JSON in COCO's format"
    lines = head.splitlines()
    if lines and YOLO_LINE.fullmatch(lines[0]):
        way = _yolo(folder) if len(lines[0].split()) == 5 else POLYGONS
        return f"holds labels of YOLO, of one image; {way}"
    if re.search(r"^(nc|names|train):", head, re.M):
        return f"is the description of a YOLO data set; {_yolo(folder)}"
    if file.suffix.lower() in (".yaml", ".yml"):
        return "is YAML, not JSON in COCO's format"
    if file.suffix.lower() in (".csv", ".tsv"):
        if re.search(r"ImageID,.*LabelName.*XMin", head):
            return f"is of Open Images; {COCO.format('oid', _quoted(file))} --images-dir IMAGES"
        return "is a table; export COCO's format where it was made"
    if "\n{" in head and re.match(r"\{.*\}\s*\n\{", head):
        return "holds one JSON object a line, not one in COCO's format"
    if head[0] not in "{[":
        return f"{UNKNOWN}; it begins with {lines[0][:60]!r}"
    return None


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _yolo(folder: Path) -> str:
    return (
        f"{COCO.format('yolo', _quoted(folder))} --images-dir IMAGES (data.yaml stands in the "
        "folder)"
    )


def _describe_folder(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    jsons = [path for path in files if path.suffix.lower() == ".json"]
    if len(jsons) == 1:
        return f"is a folder; its annotations may be {jsons[0]}"
    for ending in (".xml", ".json", ".txt"):
        found = [path for path in files if path.suffix.lower() == ending][:LOOKED_AT]
        texts = {path: describe_file(path) for path in found}
        # Lists of classes and notes stand beside labels in text files.
        first = next((path for path in found if UNKNOWN not in (texts[path] or "")), None)
        described = texts.get(first)
        if ending == ".json" and first and not described:
            with suppress(ValueError, RecursionError):
                described = describe_json(json.loads(first.read_text(encoding="utf-8-sig")))
            described = described or f"is one of {len(jsons)} JSON files"
            described = described.replace("FOLDER", _quoted(folder))
        if described:
            return f"is a folder with {first.name}, which {described}"
    return "is a folder, not a JSON file"


def describe_json(content: Any) -> str | None:
    """Say what JSON is that is not COCO's instances, and what converts it.

    Returns:
        the end of a sentence that begins with the file's name; None if it may be COCO's.
    """
    if isinstance(content, list):
        return _describe_list([entry for entry in content if isinstance(entry, dict)])
    if not isinstance(content, dict):
        return "is not in COCO's format: it holds no object"
    keys = set(content)
    if tool := _tool(keys):
        return tool
    values = content.get("_via_img_metadata", content)
    values = values.values() if isinstance(values, dict) else ()
    if any(isinstance(v, dict) and {"filename", "regions"} <= set(v) for v in values):
        return (
            "is a project of VIA; export it as COCO in VIA, or convert its boxes, whose names are "
            "the attribute label_id: globox convert --format via-json --save_fmt coco "
            "--coco_auto_ids --img_folder IMAGES FILE train.json"
        )
    if "samples" in keys:
        return "is of FiftyOne, whose COCODetectionDataset exporter writes COCO's format"
    if {"items", "categories"} <= keys and isinstance(content["categories"], dict):
        return "is of Datumaro; convert it: datum convert -i FOLDER -f coco_instances -o OUTPUT"
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else {}
    first = first if isinstance(first, dict) else {}
    if "caption" in first and not {"bbox", "segmentation"} & set(first):
        return OWN.format("COCO's format of captions")
    if "question_id" in first or "questions" in keys:
        return OWN.format("VQA's format")
    if "segments_info" in first:
        return (
            "is in COCO's format of panoptic segmentation; panopticapi's "
            "converters/panoptic2detection_coco_format.py makes instances of it"
        )
    categories = content.get("categories")
    categories = categories if isinstance(categories, list) else ()
    names = {str(c.get("name")) for c in categories if isinstance(c, dict)}
    if "sky-other" in names and "person" not in names:
        return OWN.format("COCO's format of stuff, areas without instances")
    if "features" in keys and content.get("type") == "FeatureCollection":
        return "is GeoJSON, not in COCO's format"
    return None


def _tool(keys: set[str]) -> str | None:
    """Say which tool writes objects with these keys."""
    if {"images", "annotations", "categories"} <= keys:
        return None
    name = next((name for name, has in TOOLS.items() if has <= keys), None)
    if name and name.startswith("labelme"):
        return f"is of {name}; convert the folder: labelme2coco FOLDER"
    way = "export COCO's format there, or see what datumaro converts"
    return f"is of {name}: {way}" if name else None


def _describe_list(entries: list[dict[str, Any]]) -> str:
    first = set(entries[0]) if entries else set()
    if {"images", "annotations"} <= first:
        return "is a list around an object in COCO's format: take the brackets away"
    if "score" in first and {"image_id", "category_id"} & first:
        return "is a list of results, which are evaluated, not trained on"
    if {"image_id", "caption"} <= first:
        return OWN.format("COCO's format of caption results")
    if "data" in first and {"annotations", "completions"} & first:
        return "is of Label Studio; export the project again there, as COCO"
    if {"image", "annotations"} <= first:
        return "is of CreateML; globox and Roboflow convert it to COCO's format"
    if {"image_id", "category_id", "bbox"} <= first:
        return "is the list of annotations alone, without COCO's 'images' and 'categories'"
    return _tool(first) or "is a list, not an object in COCO's format"
