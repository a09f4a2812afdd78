"""How much memory a process and its descendants take together, sampled while they run."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ...runtime.process_memory import process_nbytes

EVERY_S = 0.1


class TreeMemory:
    """Largest memory of a process and its descendants together, sampled; pages of mapped files count once per process."""

    def __init__(self, pid: int):
        self.peak_nbytes, self.peak_anonymous_nbytes = 0, 0
        self._pid, self._stop = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            total = anonymous = 0
            for pid in _tree(self._pid):
                found = process_nbytes(pid)
                total, anonymous = total + found.get("VmRSS", 0), anonymous + found.get("RssAnon", 0)
            self.peak_nbytes = max(self.peak_nbytes, total)
            self.peak_anonymous_nbytes = max(self.peak_anonymous_nbytes, anonymous)

    def stop(self) -> None:
        """No more samples."""
        self._stop.set()
        self._thread.join()


def _tree(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found
