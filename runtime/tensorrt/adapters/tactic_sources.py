"""Are the libraries here that TensorRT 8 takes kernels from beside its own: cuDNN and cuBLAS?"""

from __future__ import annotations

import ctypes
from types import ModuleType

CUDNN, CUBLAS = ("libcudnn.so.8",), ("libcublas.so.11", "libcublas.so.12")
LEAST_CUDNN = 8000


def tactic_sources(trt: ModuleType) -> int:
    """The builder's mask of the sources whose libraries can be loaded here and answer a question."""
    sources = [trt.TacticSource.CUBLAS, trt.TacticSource.CUBLAS_LT] if any(map(_is_cublas, CUBLAS)) else []
    if any(map(_is_cudnn, CUDNN)):
        sources.append(trt.TacticSource.CUDNN)
    return sum(1 << int(source) for source in sources)


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
