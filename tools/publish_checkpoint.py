#!/usr/bin/env python3
"""Make a trained model ready for others: ``resnest-d2 publish``."""

import sys

from resnest_d2.commands.publish_checkpoint import main

if __name__ == "__main__":
    sys.exit(main())
