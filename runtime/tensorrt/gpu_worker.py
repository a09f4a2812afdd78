"""One thread that owns a GPU session: every CUDA call of a pipeline is made by it, whoever asks.

It sends the next job to the device before it waits for the one before, so that the device is not idle while the host prepares.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

from ..errors import FathomError

POLL_S = 20e-6  # while a job runs and another could come: short enough not to be seen in a latency
LEAVE_S = 30.0


class Pending(Protocol):
    """A job that was sent to the device."""

    def reached(self) -> bool:
        """Whether it is done, without waiting."""
        ...

    def finish(self) -> Any:
        """Wait for it, give its slot back, return its result."""
        ...


class Session(Protocol):
    """What lives in the thread."""

    def has_idle_slot(self) -> bool:
        """Whether another job can be sent now."""
        ...

    def begin(self, job: Any) -> Pending:
        """Send a job to the device; there is a place for it."""
        ...

    def close(self) -> None:
        """Release everything on the device."""
        ...


class GpuWorker:
    """Runs jobs in its own thread, in order. ``close()`` may be called twice; a forgotten worker is closed at the latest at exit."""

    def __init__(self, open_session: Callable[[], Session]):
        """Start the thread and open the session in it; re-raises whatever opening the session raised."""
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._lock, self._refusing = threading.Lock(), False
        opened: Future = Future()
        thread = threading.Thread(target=_serve, args=(open_session, opened, self._jobs), name="fathom-gpu", daemon=True)
        thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._jobs, thread)
        try:
            opened.result()
        except BaseException:
            self._finalizer()
            raise

    def submit(self, job: Any) -> Future:
        """Hand a job over.

        Raises:
            ValueError: if the worker is closed.
            FathomError: after ``interrupt``.
        """
        future: Future = Future()
        with self._lock:
            if not self._finalizer.alive:
                raise ValueError("the pipeline is closed")
            if self._refusing:
                raise FathomError("the prediction was interrupted")
            self._jobs.put((job, future))
        return future

    def interrupt(self) -> None:
        """Fail the jobs that did not start yet, and refuse any other."""
        with self._lock, suppress(queue.Empty):
            self._refusing = True
            while True:
                item = self._jobs.get_nowait()
                if item is None:  # somebody closes at this moment: leave the mark where it was
                    self._jobs.put(None)
                    return
                item[1].set_exception(FathomError("the prediction was interrupted"))

    def close(self) -> None:
        """Finish what was handed over, free everything and end the thread."""
        with self._lock:
            self._finalizer()


def _stop(jobs: queue.SimpleQueue, thread: threading.Thread) -> None:
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join(LEAVE_S)


def _serve(open_session: Callable[[], Session], opened: Future, jobs: queue.SimpleQueue) -> None:
    try:
        session = open_session()
    except BaseException as error:
        opened.set_exception(error)
        return
    del open_session
    opened.set_result(None)
    del opened
    pending: deque[tuple[Pending, Future]] = deque()
    try:
        while (item := _next(session, jobs, pending)) is not None:
            job, future = item
            if future.set_running_or_notify_cancel():
                try:
                    pending.append((session.begin(job), future))
                except BaseException as error:
                    future.set_exception(error)
            del item, job, future
        while pending:
            _finish(pending)
    finally:
        with suppress(FathomError):  # device loss was already reported
            session.close()


def _next(session: Session, jobs: queue.SimpleQueue, pending: deque) -> Any:
    """The next job, once there is a place for it; finishes what is done meanwhile. None at the end."""
    while pending:
        if not session.has_idle_slot() or _reached(pending[0][0]):
            _finish(pending)
            continue
        with suppress(queue.Empty):
            return jobs.get_nowait()
        time.sleep(POLL_S)
    return jobs.get()


def _reached(pending: Pending) -> bool:
    try:
        return pending.reached()
    except FathomError:  # finish() raises it again, to the caller who waits
        return True


def _finish(pending: deque) -> None:
    done, future = pending.popleft()
    try:
        future.set_result(done.finish())
    except BaseException as error:
        future.set_exception(error)
