"""Detectron2's ``.pkl`` files: pickles of NumPy arrays, read without NumPy's own unpickling.

NumPy's constructors are no safe callables: ``ndarray((1,), "O", buffer)`` makes objects of any
bytes. The few functions that arrays are pickled with are stood for by the ones below, which build
tensors of numbers from raw bytes and nothing else.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_KINDS = "biuf"  # booleans, integers, floats
# Stands for the class, which is an argument here; a text can be neither called nor changed.
_ARRAY_TYPE = "numpy.ndarray"


class _Dict(dict):
    """A dict that drops the state of an OrderedDict, such as a module's ``_metadata``."""

    def __setstate__(self, state: Any) -> None:
        pass


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


_FUNCTIONS: dict[str, Callable] = {
    "numpy.dtype": _Dtype,
    "collections.OrderedDict": _Dict,
    # Python 2's bytes, and Python 3's empty ones in pickle's second protocol.
    "_codecs.encode": lambda text, encoding="latin1": text.encode("latin1"),
    "__builtin__.bytes": lambda: b"",
}
for _module in ("numpy.core", "numpy._core"):  # in NumPy 1 and 2
    _FUNCTIONS[f"{_module}.multiarray._reconstruct"] = _Array
    _FUNCTIONS[f"{_module}.multiarray.scalar"] = lambda dtype, raw: dtype.read(raw, (1,)).item()
    # Arrays of pickle's fifth protocol.
    _FUNCTIONS[f"{_module}.numeric._frombuffer"] = lambda raw, dtype, shape, order: dtype.read(
        bytes(raw), shape, order == "F"
    )


class _Function:
    """Stands for a function or class: a pickle can call it, and not change it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        return _FUNCTIONS[self.name](*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"GLOBAL {self.name} with a state")


class ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists and plain values around arrays; :func:`plain` makes these tensors.

    Args:
        content: of a file.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a function or class; refuse all others."""
        full = f"{module}.{name}"
        if full == _ARRAY_TYPE:
            return _ARRAY_TYPE
        if full in _FUNCTIONS:
            return _Function(full)
        raise pickle.UnpicklingError(f"GLOBAL {full}")


def plain(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Rebuild what was unpickled: tensors for arrays, and dicts whose methods are a dict's.

    A pickle may give an OrderedDict or a tensor attributes that hide their methods.

    Args:
        value: what was unpickled.
        done: what was rebuilt so far, by its id: what stands in many places is rebuilt once.
    """
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Array):
        found = value.tensor
    elif isinstance(value, torch.Tensor):
        found = torch.Tensor.detach(value)
    elif type(value) in (dict, OrderedDict, _Dict):
        found = {key: plain(inner, done) for key, inner in dict.items(value)}
    elif type(value) in (list, tuple):
        found = type(value)(plain(inner, done) for inner in value)
    else:
        found = value
    done[id(value)] = found
    return found
