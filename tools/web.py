#!/usr/bin/env python3
"""Serve a page of detections: ``resnest-d2 web``."""

import sys

from resnest_d2.commands.web import main

if __name__ == "__main__":
    sys.exit(main())
