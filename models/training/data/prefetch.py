"""Batches made ahead of the step that needs them, in worker threads. Which batch a step gets does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Calls ``make`` for a step and, in the background, for the steps after it.

    Args:
        make: step -> what the step needs; called in worker threads if there are any. Decoding, resizing and NumPy run there beside
            the step's own work, as they do not hold the interpreter.
        workers: threads, and how many steps ahead; 0: each is made when it is asked for.
        steps: no step from this one on is made ahead.
    """

    def __init__(self, make: Callable[[int], T], workers: int, steps: int):
        self._make, self._ahead, self._steps = make, workers, steps
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch") if workers else None
        self._waiting: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """What ``make`` gives for ``step``; re-raises what it raised."""
        if self._pool is None:
            return self._make(step)
        for each in range(step, min(step + self._ahead + 1, self._steps)):
            if each not in self._waiting:
                self._waiting[each] = self._pool.submit(self._make, each)
        return self._waiting.pop(step).result()

    def close(self) -> None:
        """Drop what is not needed any more; returns when no worker runs. May be called twice."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()
