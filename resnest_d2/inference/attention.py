"""Weights of split attention, and Grad-CAM of a detection, show what a detector looks at."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.structures import Instances
from torch import nn

from ..config import InputError, import_extra
from ..modeling.split_attention import SplitAttentionConv2d
from .drawing import import_to_draw
from .predictor import Predictor
from .result import Result

# Grad-CAM (arXiv:1610.02391) weights a feature's channels by their gradients' means over the
# picture, HiResCAM (arXiv:2011.08891) each place of a channel by the gradient there.
METHODS = ("GradCAM", "HiResCAM")
LEGIBLE = 512  # pixels of a drawing's longer side, at least

Weights = Mapping[str, torch.Tensor]


def features_of(model: nn.Module) -> dict[str, nn.Module]:
    """The backbone, or the part of it, that gives each feature, by the features' names."""
    backbone = model.backbone
    owners = dict.fromkeys(backbone.output_shape(), backbone)
    if inner := getattr(backbone, "bottom_up", None):
        owners |= dict.fromkeys(inner.output_shape(), inner)
    return owners


def import_grad_cam() -> ModuleType:
    """Import the library grad-cam.

    Raises:
        ImportError: it is not installed, or as :func:`import_to_draw`.
    """
    import_to_draw("cv2")
    import_to_draw("matplotlib")
    return import_extra("pytorch_grad_cam", "Grad-CAM needs grad-cam, which", "explain")


@contextmanager
def split_attention_weights(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the weights of split attention while a model runs.

    Yields:
        weights by the names of the layers, of shape (N, radix, channels), empty before the model
        has run; a layer that runs again adds to N.
    """
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, layer: SplitAttentionConv2d) -> Any:
        compute = layer.attention

        def attention(pooled: torch.Tensor) -> torch.Tensor:
            weights = compute(pooled)
            new = weights.detach().flatten(2).float().cpu()
            found[name] = torch.cat([found[name], new]) if name in found else new
            return weights

        return mock.patch.object(layer, "attention", attention)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, SplitAttentionConv2d):
                stack.enter_context(collect(name, module))
        yield found


def by_stage(weights: Weights) -> dict[str, list[torch.Tensor]]:
    """Weights of the blocks of each stage, in order, from those by the names of the layers."""
    stages: dict[str, list[torch.Tensor]] = defaultdict(list)
    for name, value in weights.items():
        stage = re.search(r"res\d", name)
        stages[stage[0] if stage else name].append(value)
    return dict(stages)


def summarize(weights: Weights) -> dict[str, list[dict[str, Any]]]:
    """Numbers about each stage's blocks.

    Returns:
        by stage, for each block lists of one number a branch: ``mean`` and ``std`` of its weight
        over the channels, and ``wins``, the share of channels in which it has the largest weight.
    """
    return {
        stage: [
            {
                "channels": value.shape[2],
                "mean": value.mean((0, 2)).tolist(),
                "std": value.std((0, 2), correction=0).tolist(),
                "wins": _wins(value).tolist(),
            }
            for value in blocks
        ]
        for stage, blocks in by_stage(weights).items()
    }


def _wins(value: torch.Tensor) -> torch.Tensor:
    radix = value.shape[1]
    return value.argmax(1).flatten().bincount(minlength=radix) / value[:, 0].numel()


def draw_weights(weights: Weights, file: Path) -> None:
    """Draw the distribution of each branch's weight over the channels, by stage and block.

    Bars below tell in which share of the channels a branch has the largest weight.

    Raises:
        ImportError: as :func:`import_to_draw`.
    """
    stages = by_stage(weights)
    radix = max(value.shape[1] for value in weights.values())
    widths = [max(len(blocks), 2) for blocks in stages.values()]
    size = (min(max(sum(widths) * (0.2 + 0.2 * radix), 7), 40), 4.2)
    figure = import_to_draw("matplotlib.figure").Figure(size, dpi=100, layout="constrained")
    ratios = {"width_ratios": widths, "height_ratios": [3, 1]}
    axes = figure.subplots(2, len(stages), sharex="col", sharey="row", squeeze=False, **ratios)
    for (upper, lower), (stage, blocks) in zip(axes.T, stages.items(), strict=True):
        bottom = np.zeros(len(blocks))
        for branch in range(radix):
            places = np.arange(len(blocks)) + (branch - (radix - 1) / 2) * 0.8 / radix
            values = [block[:, branch].flatten().numpy() for block in blocks]
            violins = upper.violinplot(values, places, widths=0.75 / radix, showmedians=True)
            shares = np.array([_wins(block)[branch].item() for block in blocks])
            for part in (*violins["bodies"], *(violins[k] for k in violins if k != "bodies")):
                part.set_color(f"C{branch}")
            bars = {"color": f"C{branch}", "label": f"branch {branch}"}
            lower.bar(range(len(blocks)), shares, 0.8, bottom, **bars)
            bottom += shares
        upper.axhline(1 / radix if radix > 1 else 0.5, color="0.6", linewidth=0.8, linestyle=":")
        upper.set(title=stage, ylim=(0, 1))
        lower.set(xlabel="block", ylim=(0, 1), xlim=(-0.6, len(blocks) - 0.4))
        lower.set_xticks(range(0, len(blocks), 1 + len(blocks) // 24))
    axes[0, 0].set_ylabel("weight of a channel" if radix > 1 else "gate of a channel (sigmoid)")
    axes[1, 0].set_ylabel("channels won")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=radix)
    figure.savefig(file)


def choose_detection(result: Result, number: int = 1, name: str = "") -> int | None:
    """The index of a detection, None if there are fewer.

    Args:
        result: of the detector.
        number: by the score, 1 is the best.
        name: of a class, among whose detections is counted.
    """
    order = result.instances.scores.argsort(descending=True, stable=True).tolist()
    order = [index for index in order if name in ("", result.names[index])]
    return order[number - 1] if number <= len(order) else None


class _Detector(nn.Module):
    """A detector as grad-cam calls it, with a feature that goes through a layer of its own."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.inputs, self.feature = model, inputs, nn.Identity()

    def forward(self, padded: torch.Tensor) -> list[Instances]:
        height, width = self.inputs["image"].shape[-2:]
        image = padded[0, :, :height, :width]
        return [output["instances"] for output in self.model([{**self.inputs, "image": image}])]


def grad_cam(
    predictor: Predictor, image: np.ndarray, detection: Instances, layer: str = ""
) -> tuple[dict[str, np.ndarray], str]:
    """Maps of where a feature raises the score of a detection, by the library grad-cam.

    HiResCAM is 0 where the score does not depend on the feature: with a pyramid that is nearly
    everywhere outside the box. Grad-CAM is often high there too.

    Args:
        predictor: the detector.
        image: shape (H, W, 3), uint8, RGB.
        detection: one of the model's in this image.
        layer: a feature of the backbone; by default the one that the score depends on most, among
            those that the heads take. With a pyramid it is the level that the box is pooled from.

    Returns:
        by :data:`METHODS` a map of the picture's height and width, 0 to 1, and the feature's name.
        A map is 0 everywhere if the feature does not raise the score.

    Raises:
        InputError: the score does not depend on the feature.
        ImportError: as :func:`import_grad_cam`.
    """
    library, cv2 = import_grad_cam(), import_to_draw("cv2")
    owners, backbone = features_of(predictor.model), predictor.model.backbone
    box, number = detection.pred_boxes.tensor, detection.pred_classes

    def score(instances: Instances) -> torch.Tensor:
        distances = (instances.pred_boxes.tensor - box).abs().sum(1)
        others = instances.pred_classes != number
        return instances.scores[distances.masked_fill(others, torch.inf).argmin()]

    detector = _Detector(predictor.model, predictor.prepare(image))
    pixels = detector.inputs["image"][None].requires_grad_()
    features: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for parameter in detector.parameters():  # whose gradients would take half of the time
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        with ExitStack() as hooks:
            for owner in set(owners.values()):
                hook = owner.register_forward_hook(lambda _, __, output: features.update(output))
                hooks.callback(hook.remove)
            target = score(detector(pixels)[0])
        if not target.requires_grad:
            raise InputError(f"{type(predictor.model).__name__} has scores without gradients")
        given = [layer] if layer else list(backbone.output_shape())
        of = [features[name] for name in given]
        gradients = torch.autograd.grad(target, of, allow_unused=True)
        sizes = [0.0 if one is None else one.abs().max().item() for one in gradients]
        layer = given[int(np.argmax(sizes))]
        if not max(sizes):
            raise InputError(f"--layer {layer}: the score of this detection does not depend on it")

        # A feature covers the picture as it is padded to the feature's stride.
        stride = owners[layer].output_shape()[layer].stride
        height, width = (side * stride for side in features[layer].shape[-2:])
        rows, columns = pixels.shape[2:]
        padded = nn.functional.pad(pixels, (0, width - columns, 0, height - rows))
        hook = owners[layer].register_forward_hook(
            lambda _, __, output: {**output, layer: detector.feature(output[layer])}
        )
        stack.callback(hook.remove)
        maps = {
            name: getattr(library, name)(detector, [detector.feature])(padded, [score])[0]
            for name in METHODS
        }
    size = (image.shape[1], image.shape[0])
    return {name: cv2.resize(one[:rows, :columns], size) for name, one in maps.items()}, layer


def draw_grad_cam(result: Result, index: int, heat: np.ndarray) -> np.ndarray:
    """Draw a map of :func:`grad_cam` over its picture, with the detection's box.

    Returns:
        shape (height, width, 3), uint8, RGB; small pictures are drawn larger.
    """
    found = result.instances[index]
    shown = Instances(found.image_size)
    for name in ("pred_boxes", "scores", "pred_classes"):
        shown.set(name, found.get(name))
    draw = import_grad_cam().utils.image.show_cam_on_image
    over = draw(np.float32(result.image) / 255, heat, use_rgb=True)
    scale = max(1.0, LEGIBLE / max(over.shape))
    return Result({"instances": shown}, over, result.metadata).plot(scale)
