#!/usr/bin/env python3
"""Train on handwritten digits: ``resnest-d2 demo``."""

import sys

from resnest_d2.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
