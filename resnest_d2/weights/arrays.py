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
    """An array, whose content comes as its state."""

    tensor: torch.Tensor | None = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.tensor = dtype.read(raw, shape, is_fortran)


def _refuse(*arguments: Any) -> None:
    raise pickle.UnpicklingError("GLOBAL numpy.ndarray as a function")


_FUNCTIONS: dict[str, Callable] = {
    "numpy.ndarray": _refuse,  # the class is an argument of _reconstruct
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
    """Reads dicts, lists and plain values around arrays; :func:`plain` makes these tensors."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a function or class; refuse all others."""
        if f"{module}.{name}" not in _FUNCTIONS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _Function(f"{module}.{name}")


def plain(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Rebuild what was unpickled: tensors for arrays, and dicts whose methods are a dict's.

    A pickle may give an OrderedDict or a tensor attributes that hide their methods. ``done`` has
    what was rebuilt so far, by its id: what stands in many places is rebuilt once.
    """
    done = {} if done is None else done
    if id(value) not in done:
        found = value
        if isinstance(value, _Array):
            found = value.tensor
        elif isinstance(value, torch.Tensor):
            found = torch.Tensor.detach(value)
        elif type(value) in (dict, OrderedDict, _Dict):
            found = {key: plain(inner, done) for key, inner in dict.items(value)}
        elif type(value) in (list, tuple):
            found = type(value)(plain(inner, done) for inner in value)
        done[id(value)] = found
    return done[id(value)]
