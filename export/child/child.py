"""Risky work in a child process: compilers crash, eat memory and take minutes; none of that may take the command down with it.

Three native crashes were seen while this was written (a compiler's SIGSEGV and SIGABRT, and one while ONNX Runtime opened a session);
a crash in a child is an ordinary error with the stage's name on it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime import errors
from ...runtime.errors import BuildFailedError, FathomError, OutOfMemoryError, words_of_no_memory
from ...runtime.jetson import read_jetson
from ...runtime.process_memory import process_nbytes

GIB = 1 << 30
POLL_S = 0.1
RESERVE_NBYTES = 1 * GIB
MIN_LIMIT_NBYTES = 512 << 20
LAST_LINES = 12
SWAP_HINT = "close other programs, add swap or zram, or give --memory a larger number of GiB"
CHILD = "fathom.export.plan.build_child"
TENSORRT_PYTHON, TENSORRT8_TASKS = "FATHOM_TENSORRT_PYTHON", ("tensorrt8", "tensorrt-version", "prove8")
VISIBLE = "CUDA_VISIBLE_DEVICES"
LAZY = {"CUDA_MODULE_LOADING": "LAZY"}  # TensorRT 8 holds thousands of kernels: all are loaded at its start unless CUDA waits until one is wanted
BORROWED = """
import runpy, sys
from importlib import util
spec = util.spec_from_file_location("fathom", {init!r}, submodule_search_locations=[{folder!r}])
sys.modules["fathom"] = util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["fathom"])
runpy.run_module({child!r}, run_name="__main__")
"""
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ChildResult:
    """What a child gave back.

    Args:
        values: the JSON object it ended with.
        seconds: wall time.
        peak_nbytes: largest resident size, mapped files included; 0 where the system does not tell.
    """

    values: dict[str, Any]
    seconds: float
    peak_nbytes: int


def available_nbytes() -> int:
    """Memory that can be had without swapping; 0 where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def default_limit_nbytes() -> int:
    """Most of what is available now; 0 means no limit can be kept here."""
    available = available_nbytes()
    return max(MIN_LIMIT_NBYTES, available - max(RESERVE_NBYTES, available // 10)) if available else 0


def resident(pid: int) -> tuple[int, int]:
    """Bytes of a process that cannot be dropped (anonymous memory), and its peak with mapped files; zeros when it is gone."""
    facts = process_nbytes(pid)
    return facts.get("RssAnon", 0) + facts.get("RssShmem", 0), facts.get("VmHWM", 0)


def _command(task: str) -> list[str]:
    """How the child is started. TensorRT 8 may be at home in another Python, as on JetPack 5: that one gets this package, and nothing else of ours."""
    python = os.environ.get(TENSORRT_PYTHON, "") if task in TENSORRT8_TASKS else ""
    if not python:
        return [sys.executable, "-m", CHILD]
    package = Path(__file__).parents[2]
    return [python, "-c", BORROWED.format(init=str(package / "__init__.py"), folder=str(package), child=CHILD)]


def only_device(number: int) -> dict[str, str]:
    """The environment in which a process finds this GPU under the number 0, where TensorRT builds; the first one needs no change.

    CUDA reads a list of numbers or names from ``CUDA_VISIBLE_DEVICES`` and counts what is on it; so does the number that is asked for.
    """
    listed = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return {VISIBLE: listed[number] if number < len(listed) else str(number)} if number else {}


def run_child(request: dict[str, Any], *, what: str, limit_nbytes: int = 0, on_progress: Progress | None = None, device: int = 0) -> ChildResult:
    """Run one request of ``build_child`` and wait for it.

    Args:
        request: a JSON object; ``task`` says which one.
        what: how messages call the work (``stage unet``).
        limit_nbytes: the child is stopped when its own memory passes this; 0 for no limit. On a Jetson, whose GPU shares the memory, also when so
            much less is available than at the start, whoever took it.
        on_progress: told (what is done now, part done from 0 to 1).
        device: the only GPU that the child shall find.

    Raises:
        OutOfMemoryError: if the limit was reached, or the system killed the child.
        BuildFailedError: if it crashed.
        FathomError: whatever error the child reported.
    """
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        environment = {**LAZY, **os.environ, **only_device(device), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "0"}
        child = subprocess.Popen(
            _command(request["task"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        lines = _Lines(child.stdout, on_progress)
        before = available_nbytes() if limit_nbytes and read_jetson() else 0  # what its GPU takes is the system's memory, and no process's
        peak, over = 0, 0
        try:
            child.stdin.write((json.dumps(request) + "\n").encode())
            child.stdin.flush()  # stays open: when it closes, the child knows that its parent is gone
            while child.poll() is None:
                own, high = resident(child.pid)
                own = max(own, before - available_nbytes()) if before else own
                peak = max(peak, high)
                if limit_nbytes and own > limit_nbytes:
                    over = own
                    break
                lines.handle(POLL_S)
        except BrokenPipeError:
            child.wait()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            lines.join()
            child.stdin.close()
            child.stdout.close()
        lines.handle(0)
        log.seek(0)
        said = log.read()[-65536:].decode("utf-8", "replace").splitlines()
    if over:
        raise OutOfMemoryError(
            f"{what}: the compiler took {over / GIB:.2f} GiB and was stopped at the limit of {limit_nbytes / GIB:.2f} GiB", wanted="less", fix=SWAP_HINT
        )
    if lines.error:
        raise lines.error
    if child.returncode or lines.result is None:
        raise _death(child.returncode, what, lines.last, said, peak)
    return ChildResult(lines.result, time.monotonic() - start, peak)


class _Lines:
    """The child's JSON lines, read in a thread, handled in the loop that watches its memory."""

    def __init__(self, stream, on_progress: Progress | None):
        self.result: dict[str, Any] | None = None
        self.error: FathomError | None = None
        self.last: list[str] = []
        self._progress, self._queue = on_progress, queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream) -> None:
        for raw in stream:
            try:
                event = json.loads(raw)
                event["event"]
            except (ValueError, KeyError, TypeError):
                continue
            self._queue.put(event)

    def handle(self, wait_s: float) -> None:
        """Everything said so far; waits that long for something new."""
        try:
            event = self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
            while True:
                self._take(event)
                event = self._queue.get_nowait()
        except queue.Empty:
            return

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self.last = (self.last + [event["what"]])[-LAST_LINES:]
            if self._progress:
                self._progress(event["what"], event["done"])
        elif kind == "log":
            self.last = (self.last + [event["text"]])[-LAST_LINES:]
        elif kind == "error":
            self.error = getattr(errors, event["kind"], BuildFailedError)(event["was"], wanted=event["wanted"], fix=event["fix"])
        elif kind == "result":
            self.result = event["values"]

    def join(self) -> None:
        """After the child ended: nothing more can come."""
        self._thread.join(5)


def _limited_to() -> int:
    """The limit of the address space in bytes; 0 if there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 0 if limit == resource.RLIM_INFINITY else limit


def _death(code: int, what: str, last: list[str], said: list[str], peak: int) -> FathomError:
    tail = [line for line in said if line.strip()][-LAST_LINES:] or last
    words = f"; the last lines were: {' | '.join(tail)[-1500:]}" if tail else ""
    if code == -signal.SIGKILL:
        free = available_nbytes()
        return OutOfMemoryError(
            f"{what}: the compiler was killed (SIGKILL), as Linux does when memory runs out; it had reached {peak / GIB:.2f} GiB, "
            f"{free / GIB:.2f} GiB are available now{words}",
            fix=SWAP_HINT,
        )
    if words_of_no_memory(" ".join(tail)):
        return OutOfMemoryError(f"{what}: memory ran out{words}", fix=SWAP_HINT)
    if -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS) and (limit := _limited_to()):
        was = f"{what}: the compiler died ({signal.Signals(-code).name}) while its address space is limited to {limit >> 20} MiB (ulimit -v)"
        return OutOfMemoryError(f"{was}; native libraries often die so where memory ends{words}", fix="raise the limit")
    name = signal.Signals(-code).name if code < 0 and -code in set(signal.Signals) else f"exit code {code}"
    return BuildFailedError(f"{what}: the compiler died ({name}){words}", fix="report it with the bundle's name and these lines; other backends may still work")
