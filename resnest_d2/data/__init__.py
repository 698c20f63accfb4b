"""Data sets that come with the package.

Importing this registers ``digits_train`` and ``digits_val``.
"""

from .digits import build_digits, register_digits

register_digits()

__all__ = ["build_digits", "register_digits"]
