"""Annotations in other formats than COCO's: recognised by their shape, with what converts them."""

import re
from pathlib import Path
from typing import Any

from .images import IMAGE_ENDINGS

HEAD = 4096  # so many bytes of a text show its format
COCO = "convert it to COCO's: coco convert --from {} --to coco --input {} --output train.json"
OWN = "is in {}, which holds no instances with boxes"
# A line of a YOLO label file: a class and a box or polygon in parts of the image.
YOLO_LINE = re.compile(r"\s*\d+(\s+-?(0?\.\d+|[01](\.\d*)?)(e-?\d+)?){4,}\s*", re.I)


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
        head = stream.read(HEAD).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    folder = file.parent
    if head.startswith("<"):
        if re.search(r"<annotations>|<image id=", head):
            return f"is XML of CVAT; {COCO.format('cvat', file)}"
        if re.search(r"<annotation\b", head):
            return f"is XML of Pascal VOC, of one image; {COCO.format('voc', folder)}"
        return "is XML, not JSON in COCO's format"
    lines = head.splitlines()
    if lines and YOLO_LINE.fullmatch(lines[0]):
        return f"holds labels of YOLO, of one image; {_yolo(folder)}"
    if file.suffix.lower() in (".yaml", ".yml") or re.search(r"^(nc|names|train):", head, re.M):
        return f"is the description of a YOLO data set; {_yolo(folder)}"
    if file.suffix.lower() in (".csv", ".tsv"):
        if re.search(r"ImageID,.*LabelName", head):
            return f"is of Open Images; {COCO.format('oid', file)} --images-dir IMAGES"
        return "is a table; export COCO's format where it was made"
    if "\n{" in head and re.match(r"\{.*\}\s*\n\{", head):
        return "holds one JSON object a line, not one in COCO's format"
    return None


def _yolo(folder: Path) -> str:
    return f"{COCO.format('yolo', folder)} --images-dir IMAGES (data.yaml stands in the folder)"


def _describe_folder(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    jsons = [path for path in files if path.suffix.lower() == ".json"]
    if len(jsons) == 1:
        return f"is a folder; its annotations may be {jsons[0]}"
    for ending in (".xml", ".json", ".txt"):
        first = next((path for path in files if path.suffix.lower() == ending), None)
        described = describe_file(first) if first else None
        if ending == ".json" and first and not described:
            described = (
                f"is one of {len(jsons)} JSON files; if labelme wrote them: labelme2coco {folder}"
            )
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
    if {"shapes", "imagePath"} <= keys:
        return "is of labelme, of one image; convert the folder: labelme2coco FOLDER"
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
    if "caption" in first:
        return OWN.format("COCO's format of captions")
    if "question_id" in first or "questions" in keys:
        return OWN.format("VQA's format")
    if "segments_info" in first:
        return (
            "is in COCO's format of panoptic segmentation; panopticapi's "
            "converters/panoptic2detection_coco_format.py makes instances of it"
        )
    names = {c.get("name") for c in content.get("categories") or () if isinstance(c, dict)}
    if "sky-other" in names and "person" not in names:
        return OWN.format("COCO's format of stuff, areas without instances")
    if "features" in keys and content.get("type") == "FeatureCollection":
        return "is GeoJSON, not in COCO's format"
    return None


def _describe_list(entries: list[dict[str, Any]]) -> str:
    first = set(entries[0]) if entries else set()
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
    return "is a list, not an object in COCO's format"
