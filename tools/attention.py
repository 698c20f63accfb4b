#!/usr/bin/env python3
"""Draw what a detector looks at: ``resnest-d2 attention``."""

import sys

from resnest_d2.commands.attention import main

if __name__ == "__main__":
    sys.exit(main())
