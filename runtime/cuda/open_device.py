"""Opening a GPU through one of the two bindings."""

from __future__ import annotations

import os

from ..errors import UsageError
from .device import Device

BINDINGS = ("cuda-bindings", "pycuda")


def open_device(index: int = 0, binding: str | None = None) -> Device:
    """Open a GPU.

    Args:
        index: which one, as ``nvidia-smi -L`` counts the visible ones.
        binding: ``cuda-bindings`` or ``pycuda``; None takes the environment's ``FATHOM_CUDA``, or else cuda-bindings.

    Raises:
        UsageError: if there is no such binding.
        EnvironmentMismatchError: if package, driver or device is missing.
    """
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # CUDA's own default from 12.2 on, which TensorRT 8 is older than
    chosen = binding or os.environ.get("FATHOM_CUDA") or "cuda-bindings"
    if chosen not in BINDINGS:
        raise UsageError(f"FATHOM_CUDA is {chosen!r}", wanted=" or ".join(BINDINGS))
    if chosen == "pycuda":
        from .pycuda import PyCudaDevice

        return PyCudaDevice(index)
    from .bindings import CudaBindingsDevice

    return CudaBindingsDevice(index)
