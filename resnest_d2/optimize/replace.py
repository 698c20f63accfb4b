"""Faster layers take the places of those that they compute the same as."""

import torch
from torch import nn

from .fold import has_hooks


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


def in_graph() -> bool:
    """Whether a graph is being traced, exported or compiled, for which a layer must not branch."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
