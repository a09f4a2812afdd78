"""Are the libraries here that TensorRT 8 takes kernels from beside its own: cuDNN and cuBLAS?"""

from __future__ import annotations

import ctypes

CUDNN, CUBLAS = ("libcudnn.so.8",), ("libcublas.so.11", "libcublas.so.12")
LEAST_CUDNN = 8000


def external_libraries() -> bool:
    """Whether both can be loaded and answer a question. Without them a build must be told to ask for none of their kernels."""
    return any(map(_is_cudnn, CUDNN)) and any(map(_is_cublas, CUBLAS))


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
