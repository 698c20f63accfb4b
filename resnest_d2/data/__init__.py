"""Data sets that come with the package; importing this registers ``digits_train``, ``digits_val``."""

from .digits import DigitsSpec, build_digits, register_digits

register_digits()

__all__ = ["DigitsSpec", "build_digits", "register_digits"]
