"""Measuring speed and memory side by side; ``python -m benchmarks`` is the command."""
