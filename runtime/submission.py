"""Predictions that run in the background: a few at a time, and no endless queue of photos in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Submissions:
    """Threads that carry calls out in the order in which they came.

    Args:
        threads: how many calls are carried out at the same time.
        waiting: how many more may wait; ``submit`` blocks when there are as many.
    """

    def __init__(self, threads: int, waiting: int):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fathom-submit")
        self._places = threading.Semaphore(threads + waiting)
        self._waiting: set[Future] = set()

    def submit(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Future:
        """Start a call as soon as a thread is free.

        Raises:
            ValueError: if this is closed.
        """
        self._places.acquire()
        try:
            future = self._pool.submit(call, *arguments, **named)
        except RuntimeError as error:
            self._places.release()
            raise ValueError("the pipeline is closed") from error
        self._waiting.add(future)
        future.add_done_callback(self._leave)
        return future

    def _leave(self, future: Future) -> None:
        self._waiting.discard(future)
        self._places.release()

    def close(self) -> None:
        """Drop what did not start, wait for the rest; may be called twice."""
        for future in list(self._waiting):  # one that runs already cannot be cancelled
            future.cancel()
        self._pool.shutdown()
