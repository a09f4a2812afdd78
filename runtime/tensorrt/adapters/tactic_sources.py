"""Are the libraries here that TensorRT 8 takes kernels from beside its own, cuDNN and cuBLAS? A builder that asks for missing ones ends with an error."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

from .releases import release

CUDNN = ("libcudnn.so.8",)
CUBLAS = {(8, 5): ("libcublas.so.11",), (8, 6): ("libcublas.so.11", "libcublas.so.12")}  # 8.6 exists for CUDA 11 and for CUDA 12
LEAST_CUDNN = 8000


def limit_sources(trt: ModuleType, config: Any) -> bool:
    """Take the sources from a builder's configuration whose libraries cannot be loaded here or do not answer a question; it keeps the others, which
    are TensorRT's own: without its edge-mask and just-in-time convolutions some layers have no kernel at all.

    Returns:
        whether cuBLAS is there.
    """
    has_cublas, has_cudnn = any(map(_is_cublas, CUBLAS[release(trt.__version__)[:2]])), any(map(_is_cudnn, CUDNN))
    missing = [] if has_cublas else [trt.TacticSource.CUBLAS, trt.TacticSource.CUBLAS_LT]
    missing += [] if has_cudnn else [trt.TacticSource.CUDNN]
    config.set_tactic_sources(int(config.get_tactic_sources()) & ~sum(1 << int(source) for source in missing))
    return has_cublas


def _is_cudnn(name: str) -> bool:
    try:
        ask = ctypes.CDLL(name).cudnnGetVersion
    except (OSError, AttributeError):
        return False
    ask.restype = ctypes.c_size_t
    return ask() >= LEAST_CUDNN


def _is_cublas(name: str) -> bool:
    value = ctypes.c_int(0)
    try:
        return ctypes.CDLL(name).cublasGetProperty(0, ctypes.byref(value)) == 0 and value.value >= 11  # 0: the major version
    except (OSError, AttributeError):
        return False
