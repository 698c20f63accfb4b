#!/usr/bin/env python3
"""Look into predictions: ``resnest-d2 analyze``."""

import sys

from resnest_d2.commands.analyze import main

if __name__ == "__main__":
    sys.exit(main())
