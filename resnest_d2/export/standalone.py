#!/usr/bin/env python3
"""Run an exported detector with NumPy, Pillow and onnxruntime alone.

pip install numpy pillow onnxruntime
python run_model.py model.onnx photo.jpg --output drawn.png --json found.json
"""

import argparse
import colorsys
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

Detections = dict[str, np.ndarray]


def read_picture(file: str) -> Image.Image:
    """Read a picture upright, in RGB, with white where it is transparent."""
    picture = ImageOps.exif_transpose(opened := Image.open(file))
    if picture.mode.startswith("I;16") or (picture.mode == "I" and opened.format == "PNG"):
        values = np.asarray(picture).astype(np.uint32) // 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"{file} has pixels of 32 bits, whose range is not known")
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


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarge a mask (M, M) of probabilities bilinearly to its box (x0, y0, x1, y1) of an image.

    Returns:
        shape (height, width), True where the probability is at least 0.5.
    """
    weights = []
    for size, low, high in ((height, box[1], box[3]), (width, box[0], box[2])):
        at = (np.arange(size) + 0.5 - low) / (high - low) * len(mask) - 0.5
        weights.append(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(len(mask)))))
    return weights[0] @ mask @ weights[1].T >= 0.5


def detect(session: Any, metadata: dict[str, Any], picture: Image.Image) -> Detections:
    """Find objects in an RGB picture.

    Returns:
        boxes (N, 4) as x0, y0, x1, y1 in pixels of the picture, scores (N,), classes (N,) and, if
        the model has them, masks (N, H, W).
    """
    order = {"RGB": [0, 1, 2], "BGR": [2, 1, 0]}[metadata["input_format"]]
    height, width = picture.height, picture.width
    new = resized_shape(height, width, metadata["min_size"], metadata["max_size"])
    image = np.asarray(picture.resize(new[::-1], Image.Resampling.BILINEAR), np.float32)
    sides = metadata["size_divisibility"], metadata["min_side"]
    image = pad(image[:, :, order].transpose(2, 0, 1), metadata["pixel_mean"], *sides)
    outputs = dict(zip(metadata["outputs"], session.run(None, {"image": image}), strict=True))
    boxes = outputs["boxes"] * np.float32([width / new[1], height / new[0]] * 2)
    boxes = outputs["boxes"] = np.clip(boxes, 0, [width, height] * 2)
    filled = outputs["scores"] >= 0
    filled &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    found = {name: values[filled] for name, values in outputs.items()}
    if "masks" in found:
        pairs = zip(found["masks"], found["boxes"], strict=True)
        pasted = [paste(mask, box, height, width) for mask, box in pairs]
        found["masks"] = np.stack(pasted) if pasted else np.zeros((0, height, width), bool)
    return found


def draw(picture: Image.Image, found: Detections, names: list[str]) -> Image.Image:
    """Draw boxes, names with scores, and masks."""
    pixels = np.array(picture)
    colours = [
        tuple(int(255 * value) for value in colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.8, 1))
        for number in found["classes"].tolist()
    ]
    for mask, colour in zip(found.get("masks", ()), colours, strict=False):
        pixels[mask] = pixels[mask] * 0.5 + np.array(colour) * 0.5
    drawn = Image.fromarray(pixels)
    pen = ImageDraw.Draw(drawn)
    rows = zip(found["boxes"], found["scores"], found["classes"], colours, strict=True)
    for box, score, number, colour in rows:
        pen.rectangle(box.tolist(), outline=colour, width=2)
        text, corner = f"{names[number]} {score:.2f}", (box[0] + 2, max(0, box[1] - 11))
        pen.rectangle(pen.textbbox(corner, text), fill="black")
        pen.text(corner, text, fill=colour)
    return drawn


def main() -> int:
    """Run; the exit code is 2 if a file cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="an ONNX file of `resnest-d2 export`")
    parser.add_argument("picture", help="a photo")
    parser.add_argument("--output", metavar="FILE", help="draw the detections into this picture")
    parser.add_argument("--json", metavar="FILE", help="write the detections, boxes as x, y, w, h")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score (default: 0.5)")
    args = parser.parse_args()
    try:
        run(args)
    except KeyError as error:
        text = f"{args.model} is of another version than this script: it does not tell {error}"
        print(f"error: {text}", file=sys.stderr)
        return 2
    except Exception as error:  # onnxruntime's own share no base below it
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Find objects, print them, and write what is asked for."""
    import onnxruntime

    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map.get("resnest_d2")
    if facts is None:
        raise ValueError(f"{args.model} was not written by `resnest-d2 export`")
    metadata = json.loads(facts)
    picture = read_picture(args.picture)
    if "boxes" not in metadata["outputs"]:
        raise ValueError(f"{args.model} holds a backbone, which finds no objects")
    found = detect(session, metadata, picture)
    confident = found["scores"] >= args.threshold
    found = {name: values[confident] for name, values in found.items()}
    ids, records = metadata["category_ids"], []
    names = metadata["classes"] or [str(n) for n in range(max(found["classes"], default=-1) + 1)]
    rows = (found["boxes"], found["scores"], found["classes"])
    for (x0, y0, x1, y1), score, number in zip(*(values.tolist() for values in rows), strict=True):
        print(f"{names[number]} {score:.3f} at {x0:.1f} {y0:.1f} {x1:.1f} {y1:.1f}")
        kind = {"category": names[number], "category_id": ids[number] if ids else number}
        records.append({**kind, "score": score, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n")
    if args.output:
        draw(picture, found, names).save(args.output)


if __name__ == "__main__":
    raise SystemExit(main())
