"""Train or evaluate a LazyConfig, with the command line of Detectron2's tool of that name."""

from collections.abc import Sequence

from . import train_net


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is that of ``train_net``."""
    return train_net.main(arguments, "configs/lazy/cascade_resnest101.py", ".py")
