#!/usr/bin/env python3
"""Train or evaluate a detector: ``resnest-d2 train``."""

import sys

from resnest_d2.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
