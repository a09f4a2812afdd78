"""What differs between releases of TensorRT when an engine runs, behind one interface; ``open_adapter`` chooses. No other file asks for a version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Adapter(Protocol):
    """How one major release is called.

    Attributes:
        captures_itself: it records and replays CUDA graphs on its own.
        shares_profiles: several contexts of one engine may use the same range of batches at the same time.
    """

    captures_itself: bool
    shares_profiles: bool

    def network_flags(self) -> int:
        """For ``Builder.create_network``: explicit batch, and types that are kept where the release can promise that."""

    def limit_sources(self, config: Any) -> None:
        """Keep a builder from asking for kernels of libraries that are not installed: its build would fail even if it chose none of them."""

    def activation_nbytes(self, engine: Any) -> int:
        """Device memory that a run of an engine needs beside its weights."""

    def create_context(self, engine: Any, cache: Any, graphs: bool) -> tuple[Any, bool]:
        """An execution context that allocates no device memory of its own.

        Args:
            cache: TensorRT-RTX's runtime cache, or None.
            graphs: let it capture and replay its work, where ``captures_itself``.

        Returns:
            the context, None if it cannot be made; and whether it took the cache.
        """

    def register_library(self, path: Path) -> Callable[[], None] | None:
        """Register the plugin creators of a library.

        Args:
            path: absolute; its SHA-256 was checked.

        Returns:
            what takes them away again; None if the registry takes none of them: the library is for another release, or one of the names is held.
        """

    def set_device_memory(self, context: Any, address: int, nbytes: int) -> None:
        """Give a context its scratch memory."""
