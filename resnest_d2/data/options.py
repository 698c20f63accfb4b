"""What a user decides about annotation files that can mean two things."""

import argparse
from dataclasses import dataclass

HELP = {
    "skip_missing": "leave out images whose files are not there",
    "crowd_as_instances": "take annotations with iscrowd 1 as objects",
    "merge_classes": "make one class of categories that have the same name",
    "skip_bad_annotations": "leave out annotations that are wrong",
    "boxes_from_masks": "compute every box from its mask",
    "boxes_as_given": "keep boxes that are not those of their masks (of whole objects beside masks "
    "of visible parts), and clip those that reach beyond their images",
}


@dataclass(frozen=True)
class Options:
    """A user's decisions where an annotation file can mean two things; :data:`HELP` tells them."""

    skip_missing: bool = False
    crowd_as_instances: bool = False
    merge_classes: bool = False
    skip_bad_annotations: bool = False
    boxes_from_masks: bool = False
    boxes_as_given: bool = False
    skip_bad_images: bool = False
    """Leave out pictures that cannot be read; an option of training."""
    has_range: bool = False
    """Whether pictures of 32 bits will be read with a range of values."""

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """Add these decisions to a command line."""
        of_boxes = parser.add_mutually_exclusive_group()
        for name, text in HELP.items():
            group = of_boxes if name.startswith("boxes_") else parser
            group.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Options":
        """Take them from parsed arguments; those that a parser does not have are False."""
        names = (*HELP, "skip_bad_images")
        return cls(**{name: vars(args).get(name, False) for name in names})
