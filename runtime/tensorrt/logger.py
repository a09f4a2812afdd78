"""TensorRT's messages while it builds and runs, for builder and runtime alike; needs nothing but the standard library."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable

KEPT = 5  # errors; of which the last three are reported


def make_logger(trt: ModuleType, on_message: Callable[[bool, str], None] = lambda is_error, text: None) -> Any:
    """A logger that keeps the latest errors.

    ``errors()`` gives them as one line and forgets them; ``forget()`` before a call keeps what an earlier one left from being taken for
    its reason.

    Args:
        on_message: called with every message, and whether it is an error.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            is_error = severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            if is_error:
                self._errors = [*self._errors[1 - KEPT :], " ".join(message.split())]
            on_message(is_error, message)

        def forget(self) -> None:
            self._errors = []

        def errors(self) -> str:
            words, self._errors = " | ".join(self._errors[-3:])[:2000], []
            return words or "it gave no reason"

    return Logger()
