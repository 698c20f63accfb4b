#!/usr/bin/env python3
"""Compare two models: ``resnest-d2 compare``."""

import sys

from resnest_d2.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
