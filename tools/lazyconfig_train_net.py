#!/usr/bin/env python3
"""Train or evaluate a LazyConfig."""

import sys

from resnest_d2.commands.lazyconfig_train_net import main

if __name__ == "__main__":
    sys.exit(main())
