#!/usr/bin/env python3
"""Run an exported detector with NumPy, Pillow and a runtime alone; `resnest-d2 export` wrote it.

pip install numpy pillow onnxruntime  (or openvino, faster on a CPU)
python run_model.py model.onnx photo.jpg --output drawn.png --json found.json
"""

import argparse
import colorsys
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

Detections = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Detections]


def read_picture(file: str) -> Image.Image:
    """Read a picture upright, in RGB, with white where it is transparent."""
    opened = Image.open(file)
    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and opened.format == "PNG"):
        values = np.asarray(picture).astype(np.uint32) // 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise SystemExit(f"error: {file} has pixels of 32 bits, whose range is not known")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")


def resized_shape(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Height and width whose shorter side is ``shortest``, or less so that the longer one fits."""
    if not shortest:
        return height, width
    scale = shortest / min(height, width)
    new = (shortest, scale * width) if height < width else (scale * height, shortest)
    if max(new) > longest:
        shrink = longest / max(new)
        new = (new[0] * shrink, new[1] * shrink)
    return int(new[0] + 0.5), int(new[1] + 0.5)


def pad(image: np.ndarray, mean: list[float], divisor: int, least: int) -> np.ndarray:
    """Pad an image (C, H, W) at the right and below with the mean colour, which counts as nothing.

    Args:
        image: 0 to 255.
        mean: a value a channel.
        divisor: of the sides.
        least: length of a side, a multiple of it.
    """
    channels, height, width = image.shape
    sides = [max(least, -(-side // divisor) * divisor) for side in (height, width)]
    padded = np.empty((channels, *sides), np.float32)
    padded[:] = np.reshape(mean, (channels, 1, 1))
    padded[:, :height, :width] = image
    return padded


def detect(
    run: Run, metadata: dict[str, Any], picture: Image.Image, threshold: float
) -> Detections:
    """Find objects in an RGB picture.

    Returns:
        boxes (N, 4) as x0, y0, x1, y1 in pixels of the picture, scores (N,) of at least the
        threshold, classes (N,) and, if the model has them, masks (N, M, M) of probabilities in the
        boxes.
    """
    order = {"RGB": [0, 1, 2], "BGR": [2, 1, 0]}[metadata["input_format"]]
    height, width = picture.height, picture.width
    new = resized_shape(height, width, metadata["min_size"], metadata["max_size"])
    image = np.asarray(picture.resize(new[::-1], Image.Resampling.BILINEAR), np.float32)
    sides = metadata["size_divisibility"], metadata["min_side"]
    image = pad(image[:, :, order].transpose(2, 0, 1), metadata["pixel_mean"], *sides)
    outputs = run(image)
    boxes = outputs["boxes"] * np.float32([width / new[1], height / new[0]] * 2)
    boxes = outputs["boxes"] = np.clip(boxes, 0, [width, height] * 2)
    kept = outputs["scores"] >= max(threshold, 0)  # empty rows have -1
    kept &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return {name: values[kept] for name, values in outputs.items()}


def paste(mask: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Enlarge a mask (M, M) of probabilities bilinearly to its box (x0, y0, x1, y1).

    Returns:
        True where the probability is at least 0.5, for the pixels that the box touches, and the
        row and the column of the first one.
    """
    weights, starts = [], []
    for low, high in ((box[1], box[3]), (box[0], box[2])):
        start = int(low)
        at = np.arange(start, int(np.ceil(high)), dtype=np.float32) + np.float32(0.5 - low)
        at = at / np.float32(high - low) * len(mask) - 0.5
        weights.append(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(len(mask)))))
        starts.append(start)
    rows, columns = (values.astype(np.float32) for values in weights)
    return rows @ mask @ columns.T >= 0.5, *starts


def encode(mask: np.ndarray, top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """Write a mask as COCO's compressed RLE, a run-length code down the columns of the picture.

    Args:
        mask: a part of the picture, bool.
        top, left: where the part begins.
        height, width: of the picture.
    """
    column, row = np.nonzero(np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0).T)
    edges = (left + column) * height + top + row  # beginnings and ends of runs in turn
    # A run that ends at the bottom may go on at the top of the next column.
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, joined[:, None] * 2 + [1, 2])
    counts = np.diff(np.concatenate(([0], edges, [height * width])))
    counts = counts[: len(counts) - (counts[-1] == 0)]
    values = counts.copy()  # from the fourth on, differences to the last but one
    values[3:] -= counts[1:-2]
    characters, goes_on = [], np.ones(len(values), bool)
    while goes_on.any():  # five bits a character, the lowest first; 32 says that more follow
        bits, values = values & 31, values >> 5
        follow = values != -(bits >> 4)  # the highest bit is the sign
        characters.append(np.where(goes_on, 48 + bits + 32 * follow, 0))
        goes_on &= follow
    text = np.stack(characters, axis=1).astype(np.uint8)
    return {"size": [height, width], "counts": text[text > 0].tobytes().decode()}


def draw(picture: Image.Image, found: Detections, names: list[str]) -> Image.Image:
    """Draw masks, boxes, and names with scores."""
    pixels = np.array(picture)
    colours = [
        tuple(int(255 * value) for value in colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.8, 1))
        for number in found["classes"].tolist()
    ]
    for mask, box, colour in zip(found.get("masks", ()), found["boxes"], colours, strict=False):
        inside, top, left = paste(mask, box)
        part = pixels[top : top + inside.shape[0], left : left + inside.shape[1]]
        part[inside] = part[inside] // 2 + np.array(colour, np.uint8) // 2
    drawn = Image.fromarray(pixels)
    pen = ImageDraw.Draw(drawn)
    rows = zip(found["boxes"], found["scores"], found["classes"], colours, strict=True)
    for box, score, number, colour in rows:
        pen.rectangle(box.tolist(), outline=colour, width=2)
        text, corner = f"{names[number]} {score:.2f}", (box[0] + 2, max(0, box[1] - 11))
        pen.rectangle(pen.textbbox(corner, text), fill="black")
        pen.text(corner, text, fill=colour)
    return drawn


def results(
    found: Detections, metadata: dict[str, Any], names: list[str], picture: Image.Image, image: int
) -> list[dict[str, Any]]:
    """Detections as COCO's results, which ``COCO.loadRes`` takes."""
    records, ids = [], metadata["category_ids"]
    for index, number in enumerate(found["classes"].tolist()):
        x0, y0, x1, y1 = found["boxes"][index].tolist()
        record = {"image_id": image, "category_id": ids[number] if ids else number}
        record |= {"category_name": names[number], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        record["score"] = found["scores"][index].item()
        if "masks" in found:
            part = paste(found["masks"][index], found["boxes"][index])
            record["segmentation"] = encode(*part, picture.height, picture.width)
        records.append(record)
    return records


def open_model(file: str, runtime: str = "auto") -> tuple[Run, dict[str, Any]]:
    """Open an ONNX file; return what runs it, and what it says about itself.

    Args:
        file: of `resnest-d2 export`.
        runtime: "openvino", "onnxruntime", or "auto" for the first of these that is installed
            and can run the model; OpenVINO has no deformable convolution.
    """
    readers = {"openvino": _open_in_openvino, "onnxruntime": _open_in_onnxruntime}
    names = [name for name in readers if importlib.util.find_spec(name)] or ["onnxruntime"]
    for name in names if runtime == "auto" else [runtime]:
        try:
            run, facts = readers[name](file)
            break
        except Exception:  # OpenVINO's own classes share no base below it
            if name in (runtime, names[-1]):
                raise
    if facts is None:
        raise SystemExit(f"error: {file} was not written by `resnest-d2 export`")
    return run, json.loads(facts)


def _open_in_onnxruntime(file: str) -> tuple[Run, str | None]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    facts = session.get_modelmeta().custom_metadata_map.get("resnest_d2")
    return lambda image: dict(zip(names, session.run(None, {"image": image}), strict=True)), facts


def _open_in_openvino(file: str) -> tuple[Run, str | None]:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    key = ["framework", "resnest_d2"]
    facts = model.get_rt_info(key).value if model.has_rt_info(key) else None
    names = [output.get_any_name() for output in model.outputs]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: dict(zip(names, compiled([image]).to_tuple(), strict=True)), facts


def main() -> None:
    """Find objects, print them, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="an ONNX file of `resnest-d2 export`")
    parser.add_argument("picture", help="a photo")
    parser.add_argument("--output", metavar="FILE", help="draw the detections into this picture")
    parser.add_argument("--json", metavar="FILE", help="write the detections as COCO's results")
    parser.add_argument("--image-id", type=int, default=0, help="of the JSON (default: 0)")
    text = "least score (default: 0.5, or the file's own where that is higher)"
    parser.add_argument("--threshold", type=float, help=text)
    choices = ("auto", "openvino", "onnxruntime")
    parser.add_argument("--runtime", choices=choices, default="auto", help="what runs the model")
    args = parser.parse_args()
    run, metadata = open_model(args.model, args.runtime)
    least = metadata["score_threshold"]
    threshold = max(0.5, least) if args.threshold is None else args.threshold
    if not least <= threshold <= 1:  # NaN neither
        parser.error(f"--threshold {threshold:g} is not between {args.model}'s {least:g} and 1")
    picture = read_picture(args.picture)
    found = detect(run, metadata, picture, threshold)
    numbers = range(max(found["classes"], default=-1) + 1)
    names = metadata["classes"] or [str(number) for number in numbers]
    for box, score, number in zip(found["boxes"], found["scores"], found["classes"], strict=True):
        print(f"{names[number]} {score:.3f} at {' '.join(f'{side:.1f}' for side in box)}")
    if args.json:
        records = results(found, metadata, names, picture, args.image_id)
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n")
    if args.output:
        draw(picture, found, names).save(args.output)


if __name__ == "__main__":
    main()
