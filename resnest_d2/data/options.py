"""What a user decides about annotation files that can mean two things."""

import argparse
from dataclasses import dataclass
from typing import ClassVar

from ..config import InputError


@dataclass(frozen=True)
class Options:
    """A user's decisions where an annotation file can mean two things.

    Raises:
        InputError: two decisions exclude each other.
    """

    skip_missing: bool = False
    crowd_as_instances: bool = False
    merge_classes: bool = False
    boxes_from_masks: bool = False
    boxes_as_given: bool = False
    skip_bad_annotations: bool = False
    skip_bad_images: bool = False
    """Leave out pictures that cannot be read; an option of training."""
    has_range: bool = False
    """Whether pictures of 32 bits will be read with a range of values."""
    offered: bool = True
    """Whether messages tell the user of these decisions."""

    HELP: ClassVar = {
        "skip_missing": "leave out images whose files are not there",
        "crowd_as_instances": "take annotations with iscrowd 1 as objects",
        "merge_classes": "make one class of categories that have the same name",
        "boxes_from_masks": "compute every box from its mask",
        "boxes_as_given": "keep boxes that are not those of their masks (of whole objects beside "
        "masks of visible parts), and clip those that reach beyond their images",
        "skip_bad_annotations": "leave out annotations that are wrong",
    }

    def __post_init__(self) -> None:
        """Refuse decisions that exclude each other."""
        if self.boxes_from_masks and self.boxes_as_given:
            raise InputError("--boxes-from-masks and --boxes-as-given exclude each other")

    def hint(self, text: str) -> str:
        """The end of a message, of which option is the way out, where there are options."""
        return f"; {text}" if self.offered else ""

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """Add these decisions to a command line."""
        for name, text in cls.HELP.items():
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Options":
        """Take them from parsed arguments; those that a parser does not have are False."""
        names = (*cls.HELP, "skip_bad_images")
        return cls(**{name: vars(args).get(name, False) for name in names})
