"""How far the work is, on stderr: a bar on a terminal, else at most one plain line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any, TextIO

from .command import printable

EVERY_S = 10.0
PAST_LINES = 12  # the time that is left follows from what was done since then


class Progress:
    """Counts steps of a known total; use as a context manager.

    Args:
        total: number of steps; 0 if nobody knows.
        what: what is counted, in the plural (``photos``).
        quiet: show nothing.
        stream: stderr if None.
        every_s: seconds between two plain lines.
    """

    def __init__(self, total: int, what: str, quiet: bool = False, stream: TextIO | None = None, every_s: float = EVERY_S):
        self.total, self.what, self.done = total, what, 0
        self._quiet, self._every_s = quiet, every_s
        self._stream = sys.stderr if stream is None else stream
        self._past = deque([(time.monotonic(), 0)], PAST_LINES)
        self._bar = None if quiet else self._make_bar()

    def _make_bar(self) -> Any:
        if not self._stream.isatty():
            return None
        try:
            from tqdm import tqdm
        except ImportError:
            return None
        return tqdm(total=self.total or None, unit=f" {self.what}", file=self._stream, leave=False, dynamic_ncols=True)

    def advance(self, steps: int = 1) -> None:
        """Some more steps are done."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(steps)
            return
        now = time.monotonic()
        if not self._quiet and (self.done < self.total or not self.total) and now - self._past[-1][0] >= self._every_s:
            then, before = self._past[0]
            self._past.append((now, self.done))
            if not self.total:
                self.message(f"{self.done} {self.what}")
                return
            steps = self.done - before
            left = f", about {_duration((now - then) / steps * (self.total - self.done))} to go" if steps else ""
            self.message(f"{self.done} of {self.total} {self.what}{left}")

    def advance_to(self, done: int, earlier: bool = False) -> None:
        """At least that many steps are done; ``earlier``: by an interrupted run, so that they say nothing about the time that is left."""
        if earlier:
            self.done = done
            self._past = deque([(time.monotonic(), done)], PAST_LINES)
            if self._bar is not None:
                self._bar.initial = self._bar.n = done
                self._bar.refresh()
        elif done > self.done:
            self.advance(done - self.done)

    def result(self, text: str) -> None:
        """One line on stdout, above the bar where there is one."""
        text = printable(text).replace("\n", "\\x0a")  # one photo, one line
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(text, flush=True)

    def message(self, text: str) -> None:
        """One line on the stream, above the bar where there is one; nothing if quiet."""
        if not self._quiet:
            self.alarm(text)

    def alarm(self, text: str) -> None:
        """Like ``message``, but not silenced by quiet: for warnings."""
        text = printable(text)
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Take the bar away; may be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _duration(seconds: float) -> str:
    whole = int(seconds + 0.5)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"
