"""A video through the network: one thread decodes, the pipeline works, one thread writes; frames keep their order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import AccuracyError, FathomError
from .video import Frame, VideoSource

if TYPE_CHECKING:
    from ..photo.depth_map import DepthMap

    Sink = Callable[[Frame, "DepthMap | None"], None]

WAITING = 4


@dataclass(frozen=True)
class VideoFacts:
    """How a video went.

    Args:
        frames: that were shown to the network.
        failed: of these, whose map was NaN, infinite or constant; they were written without depth.
        dropped: that a camera or stream gave while the network was busy.
        seconds: from the first frame read to the last written.
        first_failure: why the first one failed, or None.
    """

    frames: int
    failed: int
    dropped: int
    seconds: float
    first_failure: AccuracyError | None = None

    @property
    def fps(self) -> float:
        """Frames per second, end to end: decoding, network and writing."""
        return self.frames / self.seconds if self.seconds else 0.0


def run_video(
    source: VideoSource, predict: Callable[[Any], Future], write: Sink, interrupt: Callable[[], None], on_progress: Callable[[int], None] | None = None
) -> VideoFacts:
    """Run all frames of a source through the network.

    Args:
        source: open; a live one drops frames that come too fast, a file waits.
        predict: pixels -> Future of a map (``Pipeline.submit``).
        write: takes every frame with its map (None if that frame failed), in order, always from the same thread.
        interrupt: makes predictions that are under way end (``Pipeline.interrupt``); called if the run fails.
        on_progress: called after each frame with the number written so far.

    Returns:
        The facts, also when a live source was ended with Ctrl-C.

    Raises:
        FathomError: if decoding, the network or writing fails; what was written before stays for the caller to keep or drop.
    """
    return _VideoRun(source, predict, write, interrupt, on_progress).work()


class _VideoRun:
    def __init__(
        self, source: VideoSource, predict: Callable[[Any], Future], write: Sink, interrupt: Callable[[], None], on_progress: Callable[[int], None] | None
    ):
        self.source, self.predict, self.write, self.interrupt, self.on_progress = source, predict, write, interrupt, on_progress
        self.decoded: queue.Queue = queue.Queue(WAITING)
        self.predicted: queue.Queue = queue.Queue(WAITING)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.written = self.failed = self.dropped = 0
        self.first_failure: AccuracyError | None = None

    def work(self) -> VideoFacts:
        start = time.perf_counter()
        reader = threading.Thread(target=self._guard, args=(self._read, self.decoded), name="fathom-decode", daemon=True)
        writer = threading.Thread(target=self._guard, args=(self._write_all, None), name="fathom-write", daemon=True)
        reader.start()
        writer.start()
        try:
            while (frame := self._take(self.decoded)) is not None:
                self._put(self.predicted, (frame, self.predict(frame.pixels)))
        except KeyboardInterrupt:
            if not self.source.live:
                self._give_up()
                raise
        except BaseException:
            self._give_up()
            raise
        finally:
            self._put(self.predicted, None)
            writer.join()
            self.stop.set()
            reader.join(1.0)  # a camera may be in the middle of waiting for a picture
        if self.error is not None:
            raise self.error
        return VideoFacts(self.written, self.failed, self.dropped, time.perf_counter() - start, self.first_failure)

    def _give_up(self) -> None:
        self.stop.set()
        self.interrupt()

    def _guard(self, body: Callable[[], None], end: queue.Queue | None) -> None:
        try:
            body()
        except BaseException as error:
            if self.error is None:
                self.error = error
            if end is None:
                self.stop.set()
        if end is not None:
            self._put(end, None)

    def _read(self) -> None:
        for frame in self.source:
            if self.stop.is_set():
                return
            if not self.source.live:
                self._put(self.decoded, frame)
                continue
            try:
                self.decoded.put_nowait(frame)
            except queue.Full:
                self.dropped += 1

    def _write_all(self) -> None:
        while (item := self._take(self.predicted)) is not None:
            frame, future = item
            try:
                depth = future.result()
            except AccuracyError as error:
                depth, self.failed = None, self.failed + 1
                self.first_failure = self.first_failure or error
            self.write(frame, depth)
            self.written += 1
            if self.on_progress is not None:
                self.on_progress(self.written)

    def _put(self, place: queue.Queue, item: Any) -> None:
        """Wait for room, but not after the end."""
        while not self.stop.is_set():
            try:
                place.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def _take(self, place: queue.Queue) -> Any:
        """Wait for an item; None at the end."""
        while not self.stop.is_set():
            try:
                return place.get(timeout=0.1)
            except queue.Empty:
                continue
        return None


def failure_of(facts: VideoFacts, name: str) -> FathomError | None:
    """The error to report for a video some of whose frames failed."""
    if facts.first_failure is None:
        return None
    first = facts.first_failure
    return AccuracyError(f"{name}: {facts.failed} of {facts.frames} frames have no depth; the first: {first.was}", wanted=first.wanted, fix=first.fix)
