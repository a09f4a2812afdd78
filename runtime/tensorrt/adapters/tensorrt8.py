"""TensorRT 8.5 and 8.6: a context is created without memory and takes an address through a property; its size is not passed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .library_by_hand import register_by_hand
from .tactic_sources import limit_sources


class TensorRT8:
    """See ``adapter.Adapter``."""

    captures_itself = False
    shares_profiles = False  # an engine with one profile serves one context; a fixed batch needs no profile

    def __init__(self, trt: ModuleType):
        self._trt = trt

    def network_flags(self) -> int:
        """See ``adapter.Adapter.network_flags``."""
        return 1 << int(self._trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)

    def limit_sources(self, config: Any) -> None:
        """See ``adapter.Adapter.limit_sources``."""
        limit_sources(self._trt, config)

    def activation_nbytes(self, engine: Any) -> int:
        """See ``adapter.Adapter.activation_nbytes``."""
        return int(engine.device_memory_size)

    def create_context(self, engine: Any, cache: Any, graphs: bool) -> tuple[Any, bool]:
        """See ``adapter.Adapter.create_context``."""
        return engine.create_execution_context_without_device_memory(), True

    def register_library(self, path: Path) -> Callable[[], None] | None:
        """See ``adapter.Adapter.register_library``: 8.6 opens it itself, 8.5 does not."""
        registry = self._trt.get_plugin_registry()
        if not hasattr(registry, "load_library"):
            return register_by_hand(path)
        handle = registry.load_library(str(path))
        return None if handle is None else lambda: registry.deregister_library(handle)

    def set_device_memory(self, context: Any, address: int, nbytes: int) -> None:
        """See ``adapter.Adapter.set_device_memory``."""
        context.device_memory = address
