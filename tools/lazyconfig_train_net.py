#!/usr/bin/env python3
"""Train or evaluate a LazyConfig, with the command line of Detectron2's tool of that name."""

import train_net

if __name__ == "__main__":
    train_net.main(example="configs/lazy/cascade_resnest101.py", ending=".py")
