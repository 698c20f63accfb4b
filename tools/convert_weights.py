#!/usr/bin/env python3
"""Convert published ResNeSt weights to a file in Detectron2's names: ``resnest-d2 convert``."""

import sys

from resnest_d2.commands.convert_weights import main

if __name__ == "__main__":
    sys.exit(main())
