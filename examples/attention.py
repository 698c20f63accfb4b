#!/usr/bin/env python3
"""Show what a detector looks at in a picture: weights of split attention, Grad-CAM of a detection.

``examples/attention.py photo.jpg --model output/demo --output looked``.
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from resnest_d2 import Predictor, SplitAttentionConv2d
from resnest_d2.inference import Result


@contextmanager
def recording(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple]]:
    """The argument and the output of each module in the block, by its name."""
    kept: dict[str, tuple] = {}

    def keep(name: str, _: nn.Module, taken: tuple, given: object) -> None:
        kept[name] = taken[0], given

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        yield kept


def split_attention_weights(predictor: Predictor, image: np.ndarray) -> dict[str, torch.Tensor]:
    """Weights of the splits by the names of the layers, each of shape (radix, channels)."""
    named = predictor.model.named_modules()
    layers = {name: one for name, one in named if isinstance(one, SplitAttentionConv2d)}
    with recording({name: layer.fc1 for name, layer in layers.items()}) as kept:
        predictor.run([image])
    with torch.no_grad():
        return {n: layers[n].attention(pooled)[0, :, :, 0, 0] for n, (pooled, _) in kept.items()}


def draw_weights(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    """Draw the distribution of each split's weight over the channels, block by block."""
    axis = Figure((max(6, len(weights)), 4), layout="constrained").subplots()
    for place, one in enumerate(weights.values()):
        for split, values in enumerate(one.cpu().numpy()):
            at = place + (split - (len(one) - 1) / 2) * 0.8 / len(one)
            parts = axis.violinplot(values, [at], widths=0.7 / len(one), showmedians=True)
            for part in (*parts.pop("bodies"), *parts.values()):
                part.set_color(f"C{split}")
    labels = [".".join(re.findall(r"res\d|\d+(?=\.conv2)", name)) for name in weights]
    axis.set_xticks(range(len(weights)), labels, rotation=90)
    axis.set(ylabel="weight of a channel", ylim=(0, 1), title="one colour a split")
    axis.figure.savefig(file)


def grad_cam(
    predictor: Predictor, image: np.ndarray, number: int
) -> tuple[dict[str, np.ndarray], str]:
    """Maps of where a feature raises the score of a detection, by its number in this image.

    Grad-CAM (arXiv:1610.02391) weights channels by the mean of their gradients, which is often high
    where the score of a box depends on nothing; HiResCAM (arXiv:2011.08891) is 0 there.

    Returns:
        a map of the picture's height and width, 0 to 1, by method; and the feature, which is the
        level of the pyramid, or the stage, that the score depends on most.
    """
    named = predictor.model.named_modules()
    levels = {n: one for n, one in named if re.fullmatch(r"backbone\.(fpn_output\d|res\d)", n)}
    inputs = predictor.prepare(image)
    inputs["image"].requires_grad_()  # features of frozen stages have gradients then
    with recording(levels) as kept:
        score = predictor.model([inputs])[0]["instances"].scores[number]
    features = [given for _, given in kept.values()]
    gradients = torch.autograd.grad(score, features, materialize_grads=True)
    triples = zip(kept, features, gradients, strict=True)
    layer, feature, gradient = max(triples, key=lambda triple: triple[2].abs().max())
    height, width = inputs["image"].shape[1:]
    padded = predictor.model.preprocess_image([inputs]).tensor.shape[2:]
    ways, maps = {"gradcam": gradient.mean((2, 3), True), "hirescam": gradient}, {}
    for name, weight in ways.items():
        heat = (weight * feature).sum(1, keepdim=True).relu().detach()
        heat = F.interpolate(heat, padded, mode="bilinear")[:, :, :height, :width]
        heat = F.interpolate(heat / heat.max().clamp(min=1e-12), image.shape[:2], mode="bilinear")
        maps[name] = heat[0, 0].cpu().numpy()
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
    maps, layer = grad_cam(predictor, result.image, 0)
    best = result.instances[0]
    if best.has("pred_masks"):  # they would hide the maps
        best.remove("pred_masks")
    for name, heat in maps.items():
        over = np.uint8(0.5 * result.image + 127.5 * colormaps["jet"](heat)[:, :, :3])
        file, scale = args.output / f"{name}.png", max(1.0, 512 / max(over.shape))
        Result({"instances": best}, over, predictor.metadata).save(file, scale, threshold=0)
        print(f"{file}: where {layer} raises the score of the best detection")


if __name__ == "__main__":
    main()
