"""What there is to say about something that runs, each thing once."""

from __future__ import annotations

import threading
from typing import List


class Remarks(List[str]):
    """Words for people, in the order in which they came; several threads may add some and take the new ones."""

    def __init__(self, *words: str):
        super().__init__(words)
        self._lock, self._told = threading.Lock(), 0

    def add(self, words: str) -> None:
        """Say something that was not said yet."""
        with self._lock:
            if words not in self:
                self.append(words)

    def new(self) -> list[str]:
        """Those that came since this was last called."""
        with self._lock:
            told, self._told = self._told, len(self)
            return self[told:]
