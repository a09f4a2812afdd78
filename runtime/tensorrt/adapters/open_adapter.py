"""The adapter for the package that is installed."""

from __future__ import annotations

from types import ModuleType

from .adapter import Adapter
from .releases import release
from .tensorrt8 import TensorRT8
from .tensorrt10 import TensorRT10
from .tensorrt_rtx import TensorRTRTX

MAJORS = {8: TensorRT8, 10: TensorRT10, 11: TensorRT10}


def open_adapter(trt: ModuleType) -> Adapter:
    """The adapter for ``tensorrt`` or ``tensorrt_rtx``; a major release that is not known yet is called like the latest."""
    if trt.__name__ == "tensorrt_rtx":
        return TensorRTRTX(trt)
    return MAJORS.get(release(trt.__version__)[0], MAJORS[max(MAJORS)])(trt)
