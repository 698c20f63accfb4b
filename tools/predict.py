#!/usr/bin/env python3
"""Draw detections: ``resnest-d2 predict``."""

import sys

from resnest_d2.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
