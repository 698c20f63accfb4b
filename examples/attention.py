#!/usr/bin/env python3
"""Show what a detector looks at in a picture: weights of split attention, Grad-CAM of a detection.

``pip install 'resnest_d2[examples]'``, then
``examples/attention.py photo.jpg --model output/demo --output looked``.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Instances
from matplotlib.figure import Figure
from PIL import Image
from pytorch_grad_cam import GradCAM, HiResCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from torch import nn

from resnest_d2 import Predictor, SplitAttentionConv2d
from resnest_d2.inference import Result


def split_attention_weights(predictor: Predictor, image: np.ndarray) -> dict[str, torch.Tensor]:
    """Weights of the splits by the names of the layers, each of shape (radix, channels)."""
    pooled: dict[str, torch.Tensor] = {}
    named = predictor.model.named_modules()
    layers = {name: one for name, one in named if isinstance(one, SplitAttentionConv2d)}
    hooks = [
        layer.fc1.register_forward_pre_hook(
            lambda _, args, name=name: pooled.update({name: args[0]})
        )
        for name, layer in layers.items()
    ]
    predictor.run([image])
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        return {name: layers[name].attention(one)[0, :, :, 0, 0] for name, one in pooled.items()}


def draw_weights(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    """Draw the distribution of each split's weight over the channels, block by block."""
    figure = Figure((max(6, len(weights)), 4), layout="constrained")
    axis = figure.subplots()
    for place, one in enumerate(weights.values()):
        for split, values in enumerate(one.cpu().numpy()):
            at = place + (split - (len(one) - 1) / 2) * 0.8 / len(one)
            parts = axis.violinplot(values, [at], widths=0.7 / len(one), showmedians=True)
            for part in (*parts.pop("bodies"), *parts.values()):
                part.set_color(f"C{split}")
    labels = [".".join(re.findall(r"res\d|\d+(?=\.conv2)", name)) for name in weights]
    axis.set_xticks(range(len(weights)), labels, rotation=90)
    axis.set(ylabel="weight of a channel", ylim=(0, 1), title="one colour a split")
    figure.savefig(file)


class Detector(nn.Module):
    """A detector as grad-cam calls it: padded pixels in, instances out."""

    def __init__(self, predictor: Predictor, image: np.ndarray) -> None:
        super().__init__()
        self.model, self.inputs = predictor.model, predictor.prepare(image)
        height, width = self.inputs["image"].shape[1:]
        divisor = self.model.backbone.size_divisibility or 32
        self.padding = (0, -width % divisor, 0, -height % divisor)

    def forward(self, padded: torch.Tensor) -> list[Instances]:
        height, width = self.inputs["image"].shape[1:]
        image = padded[0, :, :height, :width]
        return [output["instances"] for output in self.model([{**self.inputs, "image": image}])]


def grad_cam(
    predictor: Predictor, image: np.ndarray, detection: Instances
) -> tuple[dict[str, np.ndarray], str]:
    """Maps of where a feature raises the score of a detection.

    Grad-CAM (arXiv:1610.02391) weights channels by the mean of their gradients, which is often high
    where the score of a box depends on nothing; HiResCAM (arXiv:2011.08891) is 0 there.

    Args:
        predictor: the detector.
        image: shape (H, W, 3), uint8, RGB.
        detection: one of the model's in this image.

    Returns:
        a map of the picture's height and width, 0 to 1, by method; and the feature, which is the
        level of the pyramid, or the stage, that the score depends on most.
    """

    def score(found: Instances) -> torch.Tensor:
        apart = (found.pred_boxes.tensor - detection.pred_boxes.tensor).abs().sum(1)
        others = found.pred_classes != detection.pred_classes
        return found.scores[apart.masked_fill(others, torch.inf).argmin()]

    detector = Detector(predictor, image)
    pixels = nn.functional.pad(detector.inputs["image"][None], detector.padding).requires_grad_()
    features, hooks = {}, []
    for name, module in predictor.model.named_modules():
        if re.fullmatch(r"backbone\.(fpn_output\d|res\d)", name):
            keep = partial(lambda name, _, __, output: features.update({name: output}), name)
            hooks.append(module.register_forward_hook(keep))
    target = score(detector(pixels)[0])
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(target, list(features.values()), allow_unused=True)
    sizes = [0.0 if one is None else one.abs().max().item() for one in gradients]
    layer = list(features)[int(np.argmax(sizes))]
    height, width = detector.inputs["image"].shape[1:]
    maps = {}
    for method in (GradCAM, HiResCAM):
        with method(detector, [predictor.model.get_submodule(layer)]) as cam:
            heat = Image.fromarray(cam(pixels, [score])[0, :height, :width])
        maps[method.__name__] = np.asarray(
            heat.resize(image.shape[1::-1], Image.Resampling.BILINEAR)
        )
    predictor.model.zero_grad()
    return maps, layer


def main(arguments: Sequence[str] | None = None) -> None:
    """Write weights.png, gradcam.png and hirescam.png of a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", required=True, help="as that of resnest-d2 predict")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    predictor = Predictor(args.model)
    result = predictor(args.image)
    if weights := split_attention_weights(predictor, result.image):
        draw_weights(weights, args.output / "weights.png")
    if not result:
        raise SystemExit(f"{args.image} has no detection to explain")
    best = result.instances[result.instances.scores.argmax()[None]]
    maps, layer = grad_cam(predictor, result.image, best)
    if best.has("pred_masks"):  # they would hide the maps
        best.remove("pred_masks")
    for name, heat in maps.items():
        over = show_cam_on_image(np.float32(result.image) / 255, heat, use_rgb=True)
        scale = max(1.0, 512 / max(over.shape))
        file = args.output / f"{name.lower()}.png"
        Result({"instances": best}, over, predictor.metadata).save(file, scale, threshold=0)
        print(f"{file}: where {layer} raises the score of the best detection")


if __name__ == "__main__":
    main()
