"""Predictions that run in the background: a few at a time, several photos together where that fills a batch, no endless queue in memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .sequences import zip_equal

Work = Callable  # (list of what was submitted) -> list of results


@dataclass
class _Item:
    work: Work
    kind: Hashable
    most: int
    what: Any
    future: Future = field(default_factory=Future)


class Submissions:
    """Threads that carry work out in the order in which it came.

    Args:
        threads: how many calls are carried out at the same time.
        waiting: how many more items may wait; ``submit`` blocks when there are as many.
    """

    def __init__(self, threads: int, waiting: int):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fathom-submit")
        self._places = threading.Semaphore(threads + waiting)
        self._items: deque[_Item] = deque()
        self._lock = threading.Lock()

    def submit(self, work: Work, kind: Hashable, most: int, what: Any) -> Future:
        """Let ``work([what, ...])`` be called as soon as a thread is free; the future gets the result for ``what``.

        Args:
            kind: what waits behind it and is of the same kind may go along.
            most: how many may go together. If they fail together, each is tried alone.

        Raises:
            ValueError: if this is closed.
        """
        self._places.acquire()
        item = _Item(work, kind, most, what)
        try:
            with self._lock:
                self._pool.submit(self._work)
                self._items.append(item)
        except RuntimeError as error:
            self._places.release()
            raise ValueError("the pipeline is closed") from error
        item.future.add_done_callback(lambda _: self._places.release())
        return item.future

    def _work(self) -> None:
        some: list[_Item] = []
        with self._lock:
            while self._items and len(some) < (some[0].most if some else 1) and (not some or self._items[0].kind == some[0].kind):
                item = self._items.popleft()
                if item.future.set_running_or_notify_cancel():
                    some.append(item)
        if some:
            _carry_out(some)

    def close(self) -> None:
        """Drop what did not start, wait for the rest; may be called twice."""
        with self._lock:
            while self._items:
                self._items.popleft().future.cancel()
        self._pool.shutdown(wait=True)


def _carry_out(items: list[_Item]) -> None:
    try:
        results = items[0].work([item.what for item in items])
    except BaseException as error:
        if len(items) > 1:
            for item in items:
                _carry_out([item])
        else:
            items[0].future.set_exception(error)
        return
    for item, result in zip_equal(items, results):
        item.future.set_result(result)
