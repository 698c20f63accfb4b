"""Measuring speed and memory side by side; ``tools/benchmark.py`` is the command."""
