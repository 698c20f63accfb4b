"""Faster layers that take the places of those that they compute the same as."""

import torch
from detectron2.layers import ROIAlign
from torch import nn
from torch.nn import functional as F

from ..modeling.split_attention import HALF, SplitAttentionConv2d
from .fold import CONVOLUTIONS, CONVOLUTIONS_WITH_NORM, has_hooks, takes_norm

CHUNK = 64  # boxes at once, of similar widths, as all bins take as many pixels as the largest
MOST_SAMPLES = 64  # of a bin in a direction; boxes with more would take much memory


class Replacement(nn.Module):
    """The base of layers that stand for those of another class, which is their other base.

    Args:
        source: the layer whose parts and settings are taken over.
    """

    kind: type[nn.Module]
    """The class whose layers are replaced, but not those of its subclasses."""

    def __init__(self, source: nn.Module) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(source))

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer of that class is as its class made it."""
        return not has_hooks(layer)


def replace_layers(model: nn.Module, replacement: type[Replacement]) -> int:
    """Put a replacement in every place below ``model`` that it fits.

    Returns:
        how many there were.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is replacement.kind and replacement.fits(child):
                setattr(parent, name, replacement(child))
                count += 1
    return count


class FusedSplitAttentionConv2d(Replacement, SplitAttentionConv2d):
    """A :class:`SplitAttentionConv2d` that pools and sums in fewer passes."""

    kind = SplitAttentionConv2d

    @staticmethod
    def fits(layer: SplitAttentionConv2d) -> bool:
        """Whether no part has hooks, and convolutions are of known kinds."""
        convolutions = (layer.conv, layer.fc1, layer.fc2)
        return not any(map(has_hooks, layer.modules())) and all(
            takes_norm(conv, CONVOLUTIONS | CONVOLUTIONS_WITH_NORM) for conv in convolutions
        )

    def pool(self, splits: torch.Tensor) -> torch.Tensor:
        """Pool before summing the splits: one pass, and no temporary of the map's size."""
        dtype = torch.float32 if splits.dtype in HALF else splits.dtype
        return (
            splits.flatten(1, 2)
            .mean((2, 3), keepdim=True, dtype=dtype)
            .view(splits.shape[0], self.radix, self.channels, 1, 1)
            .sum(1)
        )

    def weighted_sum(self, splits: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Interpolate between two splits, whose weights sum to 1."""
        if self.radix == 1:
            return splits[:, 0] * attention[:, 0]
        if self.radix == 2:
            return torch.lerp(splits[:, 1], splits[:, 0], attention[:, 0])
        return super().weighted_sum(splits, attention)


class SparseROIAlign(Replacement, ROIAlign):
    """ROIAlign as an embedding bag: each pixel is a table row, each bin a weighted sum of rows.

    A bin is the mean of bilinear samples on a grid (arXiv:1703.06870, section 3), so the weight of
    a pixel is that of its row times that of its column. torchvision's code for CPUs reads four
    pixels for each sample, channel by channel and in one thread; it is used where this one is not:
    on other devices, with gradients, in traced and exported graphs.
    """

    kind = ROIAlign

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool boxes.

        Args:
            input: shape (N, C, H, W).
            rois: shape (R, 5): index in the batch, x0, y0, x1, y1.

        Returns:
            shape (R, C, height, width).
        """
        in_graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
        is_wide = input.dtype in (torch.float32, torch.float64)
        if in_graph or not is_wide or input.device.type != "cpu" or input.requires_grad:
            return super().forward(input, rois)
        # In torchvision's order: rounding decides how many samples a bin has.
        corners = rois[:, 1:].to(input.dtype) * self.spatial_scale - (0.5 if self.aligned else 0)
        low, high = corners.split(2, dim=1)
        sides = high - low if self.aligned else (high - low).clamp(min=1)
        size = self.output_size
        height, width = (size, size) if isinstance(size, int) else size
        rows, columns = input.shape[2:]
        steps = sides / sides.new_tensor((width, height))
        if not len(rois) or not steps.abs().max() <= MOST_SAMPLES:  # NaN, too, is not
            return super().forward(input, rois)
        table = input.permute(0, 2, 3, 1).flatten(0, 2)
        bins = input.new_empty(len(rois), height, width, input.shape[1])
        for at in steps[:, 0].argsort().split(CHUNK):
            x, across = _axis(low[at, 0], steps[at, 0], width, columns, self.sampling_ratio)
            y, down = _axis(low[at, 1], steps[at, 1], height, rows, self.sampling_ratio)
            y = y + rois[at, :1, None].long() * rows
            pixels = y[:, :, None, :, None] * columns + x[:, None, :, None]
            weights = down[:, :, None, :, None] * across[:, None, :, None]
            given = {"mode": "sum", "per_sample_weights": weights.flatten(3).flatten(0, 2)}
            sums = F.embedding_bag(pixels.flatten(3).flatten(0, 2), table, **given)
            bins[at] = sums.view(-1, *bins.shape[1:])
        return bins.permute(0, 3, 1, 2)


def _axis(
    low: torch.Tensor, step: torch.Tensor, bins: int, size: int, ratio: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of pixels and their weights in each bin along one axis, shape (R, bins, pixels).

    Args:
        low: where a box begins, in pixels of the features, shape (R,).
        step: size of a bin, shape (R,).
        bins: of a box.
        size: of the features.
        ratio: samples of a bin; with 0 they are at most a pixel apart.
    """
    step = step[:, None, None]
    count = torch.full_like(step, ratio) if ratio > 0 else step.ceil().clamp(min=0)
    sample = torch.arange(int(count.max().clamp(min=1)))
    bin = torch.arange(bins)[:, None]
    at = low[:, None, None] + bin * step + (sample + 0.5) * step / count
    weight = ((sample < count) & (at >= -1) & (at <= size)) / count.clamp(min=1)
    at = at.nan_to_num().clamp(min=0)
    left = at.clamp(max=size - 1).floor()
    share = torch.where(left < size - 1, at - left, 0)
    first = left.amin(2, keepdim=True)
    offset = (left - first).long()
    pixel = torch.arange(int(offset.max()) + 2)
    weights = weight.new_zeros(*first.shape[:2], len(pixel))
    weights.scatter_add_(2, offset, weight * (1 - share)).scatter_add_(
        2, offset + 1, weight * share
    )
    return (first.long() + pixel).clamp(max=size - 1), weights
