"""One thread that owns a GPU session: every CUDA call of a pipeline is made by it, whichever thread calls the pipeline.

It sends the next job to the device before the one before is done, so that the device is not idle while the host prepares. A second thread
does nothing but sleep until the oldest job is done and say so; nothing polls. Whatever fails in here reaches the callers who wait.
"""

from __future__ import annotations

import queue
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

from ..errors import FathomError

LEAVE_S = 30.0
INTERRUPTED = "the prediction was interrupted"


class Pending(Protocol):
    """A job that was sent to the device."""

    def wait(self) -> None:
        """Sleep until it is done."""
        ...

    def finish(self) -> Any:
        """Wait for it, give its slot back, return its result."""
        ...


class Session(Protocol):
    """What lives in the thread.

    Attributes:
        any_thread: whether ``Pending.wait`` may be called from another thread.
    """

    any_thread: bool

    def has_idle_slot(self) -> bool:
        """Whether another job can be sent now."""
        ...

    def begin(self, job: Any) -> Pending:
        """Send a job to the device; there is a place for it."""
        ...

    def close(self) -> None:
        """Release everything on the device."""
        ...


class _Inbox:
    """Messages to the thread: jobs with their futures, jobs that are done, interruption, the end. Refuses jobs once they are not read any more."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue = queue.SimpleQueue()
        self.interrupted = False
        self._lock = threading.Lock()
        self._refusal: Exception | None = None

    def put_job(self, job: Any, future: Future) -> None:
        """Append a job; raises the reason if jobs are refused."""
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            self.messages.put((job, future))

    def interrupt(self) -> None:
        """Refuse further jobs, and wake the thread so that it fails those that wait."""
        with self._lock:
            self.interrupted = True
            self._refusal = self._refusal or FathomError(INTERRUPTED)
            self.messages.put(_WAKE)

    def end(self) -> None:
        """Refuse further jobs, and let the thread end after those that wait."""
        with self._lock:
            self._refusal = ValueError("the pipeline is closed")
            self.messages.put(_END)

    def fail_unread(self, error: BaseException) -> None:
        """Set the error of every job that will not be read any more, and refuse more."""
        with self._lock:
            self._refusal = self._refusal or FathomError(f"the GPU's thread ended ({type(error).__name__}: {error})", fix="open the pipeline again")
            while not self.messages.empty():
                if isinstance(item := self.messages.get(), tuple):
                    _fail(item[1], error)


_END, _WAKE, _DONE = "end", "wake", "done"


class GpuWorker:
    """Runs jobs in its own thread, in order. ``close()`` may be called twice; a forgotten worker is closed at the latest at exit."""

    def __init__(self, open_session: Callable[[], Session]):
        """Start the thread and open the session in it; re-raises whatever opening the session raised."""
        self._inbox = _Inbox()
        opened: Future = Future()
        thread = threading.Thread(target=_serve, args=(open_session, opened, self._inbox), name="fathom-gpu", daemon=True)
        thread.start()
        self._closing = threading.Lock()
        self._finalizer = weakref.finalize(self, _stop, self._inbox, thread)
        try:
            opened.result()
        except BaseException:
            self._finalizer()
            raise

    def submit(self, job: Any) -> Future:
        """Hand a job over.

        Raises:
            ValueError: if the worker is closed.
            FathomError: after ``interrupt``, or if the thread ended.
        """
        future: Future = Future()
        self._inbox.put_job(job, future)
        return future

    def interrupt(self) -> None:
        """Fail the jobs that did not start yet, and refuse any other."""
        self._inbox.interrupt()

    def close(self) -> None:
        """Finish what was handed over, release everything and end the thread."""
        with self._closing:
            self._finalizer()


def _stop(inbox: _Inbox, thread: threading.Thread) -> None:
    inbox.end()
    if thread is not threading.current_thread():
        thread.join(LEAVE_S)


def _serve(open_session: Callable[[], Session], opened: Future, inbox: _Inbox) -> None:
    try:
        session = open_session()
    except BaseException as error:
        _set_error(opened, error)
        return
    del open_session
    opened.set_result(None)
    del opened
    pending: deque[tuple[Pending, Future]] = deque()
    waiting: deque[tuple[Any, Future]] = deque()
    sent: queue.SimpleQueue = queue.SimpleQueue()
    waiter = threading.Thread(target=_wait, args=(sent, inbox.messages), name="fathom-gpu-wait", daemon=True)
    failure: BaseException = FathomError("the pipeline was closed")
    try:
        if session.any_thread:
            waiter.start()
        _work(session, inbox, waiting, pending, sent)
    except BaseException as error:
        failure = error
    finally:
        sent.put(None)
        while pending:
            _finish(pending)
        if waiter.ident is not None:
            waiter.join()
        with suppress(BaseException):  # release what can be released; there is nothing left to report to
            session.close()
        for _, future in waiting:
            _fail(future, failure)
        inbox.fail_unread(failure)


def _work(session: Session, inbox: _Inbox, waiting: deque, pending: deque, sent: queue.SimpleQueue) -> None:
    ending = False
    while True:
        while waiting and (inbox.interrupted or session.has_idle_slot()):
            job, future = waiting.popleft()
            if inbox.interrupted:
                _fail(future, FathomError(INTERRUPTED))
            elif future.set_running_or_notify_cancel():
                _begin(session, job, future, pending, sent)
            del job, future
        if ending and not pending and not waiting:
            return
        if pending and not session.any_thread and (waiting or inbox.messages.empty()):
            _finish(pending)  # only this thread may wait
            continue
        message = inbox.messages.get()
        if isinstance(message, tuple):
            waiting.append(message)
        ending = ending or message is _END
        if message is _DONE:
            _finish(pending)
        del message


def _begin(session: Session, job: Any, future: Future, pending: deque, sent: queue.SimpleQueue) -> None:
    try:
        begun = session.begin(job)
    except BaseException as error:
        _set_error(future, error)
        return
    pending.append((begun, future))
    sent.put(begun)


def _finish(pending: deque) -> None:
    done, future = pending.popleft()
    try:
        result = done.finish()
    except BaseException as error:
        _set_error(future, error)
    else:
        future.set_result(result)


def _fail(future: Future, error: BaseException) -> None:
    if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
        _set_error(future, error)


def _set_error(future: Future, error: BaseException) -> None:
    """Give a future its error without the variables of its frames: an engine must not live as long as the error does."""
    traceback.clear_frames(error.__traceback__)
    future.set_exception(error)


def _wait(sent: queue.SimpleQueue, messages: queue.SimpleQueue) -> None:
    """Sleep until each job is done, in the order in which they were sent."""
    while (pending := sent.get()) is not None:
        with suppress(BaseException):  # finish() waits again, and what it raises goes to the caller
            pending.wait()
        del pending
        messages.put(_DONE)
