#!/usr/bin/env python3
"""Export a detector: ``resnest-d2 export``."""

import sys

from resnest_d2.commands.export_model import main

if __name__ == "__main__":
    sys.exit(main())
