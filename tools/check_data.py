#!/usr/bin/env python3
"""Check a data set: ``resnest-d2 check-data``."""

import sys

from resnest_d2.commands.check_data import main

if __name__ == "__main__":
    sys.exit(main())
