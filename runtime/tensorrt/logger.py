"""TensorRT's messages while it builds and runs, for builder and runtime alike; needs nothing but the standard library."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable

KEPT = 5  # errors; of which the last three are reported


def make_logger(trt: ModuleType, on_message: Callable[[bool, str], None] = lambda is_error, text: None) -> Any:
    """A logger that keeps the latest errors, and the latest warning: TensorRT 8 warns of a driver that fails, and then gives nothing.

    ``errors()`` gives the errors as one line, or the warning where there is none, and forgets them; ``forget()`` before a call keeps what an
    earlier one left from being taken for its reason.

    Args:
        on_message: called with every message, and whether it is an error.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.forget()

        def log(self, severity: Any, message: str) -> None:
            is_error = severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            if is_error:
                self._errors = [*self._errors[1 - KEPT :], " ".join(message.split())]
            elif severity == trt.ILogger.WARNING:
                self._warning = " ".join(message.split())
            on_message(is_error, message)

        def forget(self) -> None:
            self._errors: list[str] = []
            self._warning = ""

        def errors(self) -> str:
            words, warning = " | ".join(self._errors[-3:])[:2000], self._warning[:2000]
            self.forget()
            return words or ("it gave no reason" + (f", and warned before: {warning}" if warning else ""))

    return Logger()
