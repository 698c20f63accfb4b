#!/usr/bin/env python3
"""Evaluate published models: ``resnest-d2 reproduce``."""

import sys

from resnest_d2.commands.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
