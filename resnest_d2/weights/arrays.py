"""Detectron2's ``.pkl`` files: pickles of NumPy arrays, read without NumPy's own unpickling.

NumPy's constructors are no safe callables: ``ndarray((1,), "O", buffer)`` makes objects of any
bytes. The few functions that arrays are pickled with are stood for by the ones below, which build
tensors of numbers from raw bytes and nothing else.
"""

import io
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

_KINDS = "biuf"  # booleans, integers, floats


# Stands for the class, which is an argument here; a text can be neither called nor changed.
_ARRAY_TYPE = "numpy.ndarray"


class _Dtype:
    """``numpy.dtype("f4")``, and the byte order that its state tells."""

    def __init__(self, kind: str, align: Any = False, copy: Any = False) -> None:
        if np.dtype(str(kind)).kind not in _KINDS:
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({kind!r})")
        self.dtype = np.dtype(str(kind))

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])

    def read(
        self, raw: bytes | str, shape: tuple[int, ...], is_fortran: bool = False
    ) -> torch.Tensor:
        """Make a tensor of raw bytes, which in files of Python 2 are a string."""
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        values = np.ndarray(shape, self.dtype, raw, order="F" if is_fortran else "C")
        # PyTorch takes neither read-only memory nor another byte order.
        return torch.from_numpy(np.array(values, self.dtype.newbyteorder("="), order="C"))


class _Array:
    """An array before its state is known."""

    def __init__(self, kind: str, shape: tuple, code: Any) -> None:
        if kind is not _ARRAY_TYPE:
            raise pickle.UnpicklingError(f"GLOBAL {kind}")
        self.tensor: torch.Tensor | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.tensor = dtype.read(raw, shape, is_fortran)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Python 2's bytes."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Python 3's empty bytes in pickle's second protocol."""
    return b""


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> torch.Tensor:
    """Arrays of pickle's fifth protocol."""
    return dtype.read(bytes(raw), shape, order == "F")


def _scalar(dtype: _Dtype, raw: bytes) -> float:
    return dtype.read(raw, (1,)).item()


_GLOBALS: dict[str, Any] = {
    "numpy.ndarray": _ARRAY_TYPE,
    "numpy.dtype": _Dtype,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
}
for _module in ("numpy.core", "numpy._core"):  # in NumPy 1 and 2
    _GLOBALS[f"{_module}.multiarray._reconstruct"] = _Array
    _GLOBALS[f"{_module}.multiarray.scalar"] = _scalar
    _GLOBALS[f"{_module}.numeric._frombuffer"] = _from_buffer


class ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists and plain values around arrays, which become tensors.

    Args:
        content: of a file.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a function or class; refuse all others."""
        if f"{module}.{name}" in _GLOBALS:
            return _GLOBALS[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def load(self) -> Any:
        """Read the content.

        Raises:
            pickle.UnpicklingError: it holds other objects.
        """
        return _plain(super().load())


def _plain(value: Any) -> Any:
    """Replace arrays by their tensors."""
    if isinstance(value, _Array):
        return value.tensor
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
