"""What a compiler measured on this GPU, kept so that the next build need not measure it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

MAX_NBYTES = 1 << 30


class TimingCache:
    """One file of measurements for one build.

    Args:
        path: of the file; it need not be there. Empty: nothing is kept.
    """

    def __init__(self, path: str):
        self._path = Path(path) if path else None

    def give_to(self, config: Any) -> bool:
        """Let a build use what is there. TensorRT itself refuses measurements of another release or GPU; it measures anew then.

        Returns:
            False if there were measurements and they were refused.
        """
        if self._path is None:
            return True
        try:
            raw = self._path.read_bytes() if self._path.stat().st_size <= MAX_NBYTES else b""
        except OSError:
            raw = b""
        cache = config.create_timing_cache(raw)
        if cache is not None and config.set_timing_cache(cache, False):
            return True
        config.set_timing_cache(config.create_timing_cache(b""), False)
        return not raw

    def keep(self, config: Any) -> None:
        """Write what the build measured beside what was there; a disk that is full loses time, not the engine."""
        cache = config.get_timing_cache() if self._path is not None else None
        if cache is None:
            return
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with memoryview(cache.serialize()) as view:
                part.write_bytes(view)
            os.replace(part, self._path)
        except (OSError, TypeError):
            part.unlink(missing_ok=True)
