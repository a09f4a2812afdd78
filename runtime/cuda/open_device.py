"""Opening a GPU through one of the two bindings."""

from __future__ import annotations

import importlib.util
import os
import sys

from ..errors import UsageError
from .device import Device

BINDINGS = ("cuda-bindings", "pycuda")


def open_device(index: int = 0, binding: str | None = None) -> Device:
    """Open a GPU.

    Args:
        index: which one, as ``nvidia-smi -L`` counts the visible ones.
        binding: ``cuda-bindings`` or ``pycuda``; None takes the environment's ``FATHOM_CUDA``, or else the first of them that is installed.

    Raises:
        UsageError: if there is no such binding.
        EnvironmentMismatchError: if package, driver or device is missing.
    """
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # CUDA's own default from 12.2 on, which TensorRT 8 is older than
    chosen = binding or os.environ.get("FATHOM_CUDA") or _installed()
    if chosen not in BINDINGS:
        raise UsageError(f"FATHOM_CUDA is {chosen!r}", wanted=" or ".join(BINDINGS))
    if chosen == "pycuda":
        from .pycuda import PyCudaDevice

        return PyCudaDevice(index)
    from .bindings import CudaBindingsDevice

    return CudaBindingsDevice(index)


def _installed() -> str:
    """cuda-bindings, which can do more, unless pycuda alone is there, or can be: for JetPack 5's Python 3.8 no cuda-bindings was made."""
    alone = _found("pycuda") or sys.version_info < (3, 9)
    return "pycuda" if alone and not _found("cuda.bindings") else "cuda-bindings"


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # of the package that it would be in
        return False
