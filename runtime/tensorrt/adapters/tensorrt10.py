"""TensorRT 10.3 to 11: strongly typed networks, contexts whose memory the user manages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class TensorRT10:
    """See ``adapter.Adapter``."""

    captures_itself = False
    shares_profiles = True

    def __init__(self, trt: ModuleType):
        self._trt = trt

    def network_flags(self) -> int:
        """See ``adapter.Adapter.network_flags``."""
        return 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def limit_sources(self, config: Any) -> None:
        """See ``adapter.Adapter.limit_sources``: from release 10 on nothing is taken from other libraries unless it is asked for."""

    def activation_nbytes(self, engine: Any) -> int:
        """See ``adapter.Adapter.activation_nbytes``."""
        return int(engine.device_memory_size_v2)

    def create_context(self, engine: Any, cache: Any, graphs: bool) -> tuple[Any, bool]:
        """See ``adapter.Adapter.create_context``."""
        return engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED), True

    def register_library(self, path: Path) -> Callable[[], None] | None:
        """See ``adapter.Adapter.register_library``."""
        registry = self._trt.get_plugin_registry()
        handle = registry.load_library(str(path))
        return None if handle is None else lambda: registry.deregister_library(handle)

    def set_device_memory(self, context: Any, address: int, nbytes: int) -> None:
        """See ``adapter.Adapter.set_device_memory``."""
        context.set_device_memory(address, nbytes)
