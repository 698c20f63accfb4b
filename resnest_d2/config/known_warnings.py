"""Importing this silences what others say on every run and no user can change."""

import logging
import warnings

# Raised in Detectron2, fvcore and PyTorch on every run: category, beginning and module.
KNOWN_WARNINGS = (
    (FutureWarning, "`broadcast_buffers` is deprecated", r"detectron2\.engine"),
    (FutureWarning, "`torch.jit.script` is deprecated", r"torch\.jit\."),
    (UserWarning, "torch.meshgrid: in an upcoming release", r"torch\.functional"),
    (UserWarning, "The given NumPy array is not writable", r"detectron2\.data\."),
    (UserWarning, "pkg_resources is deprecated", r"detectron2\.model_zoo"),
)
for _category, _message, _module in KNOWN_WARNINGS:
    warnings.filterwarnings("ignore", _message, _category, _module)
# Lines of PyTorch's log on every run on a CPU: logger and beginning.
KNOWN_LINES = {
    "torch.fx._symbolic_trace": "is_fx_tracing will return true",
    "torch.utils.cpp_extension": "No CUDA runtime is found",
}
for _name, _start in KNOWN_LINES.items():
    logging.getLogger(_name).addFilter(lambda r, start=_start: not str(r.msg).startswith(start))
