"""TensorRT-RTX: kernels come from its runtime cache, and it captures CUDA graphs by itself."""

from __future__ import annotations

from typing import Any

from .tensorrt10 import TensorRT10


class TensorRTRTX(TensorRT10):
    """See ``adapter.Adapter``."""

    captures_itself = True

    def create_context(self, engine: Any, cache: Any, graphs: bool) -> tuple[Any, bool]:
        """See ``adapter.Adapter.create_context``."""
        trt, config = self._trt, engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if graphs else trt.CudaGraphStrategy.DISABLED
        took = cache is None or bool(config.set_runtime_cache(cache))
        return engine.create_execution_context(config), took
