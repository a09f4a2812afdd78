"""Our commands, as a user would type them."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import get_context

from ...runtime.errors import OutOfMemoryError
from ..our_commands import command_line, main_of

THREADS = "OMP_NUM_THREADS"


def command(name: str, *words: str, threads: int) -> str:
    """Run one command in a process of its own; returns its standard output.

    Raises:
        SystemExit: with its exit code if it fails.
    """
    _say(name, words)
    result = subprocess.run([*command_line(name), *words], capture_output=True, text=True, env={**os.environ, THREADS: str(threads)})
    return _checked(result.returncode, result.stdout, result.stderr)


class Commands:
    """Runs commands with one thread each in processes that keep what they have loaded, as its libraries take half of a small network's export.

    Args:
        pool: of those processes.
    """

    def __init__(self, pool: ProcessPoolExecutor):
        self._pool = pool

    def __call__(self, name: str, *words: str) -> str:
        """As ``command``; several threads may call it.

        Raises:
            OutOfMemoryError: if the system ended its process.
        """
        _say(name, words)
        try:
            found = self._pool.submit(_call, name, words).result()
        except BrokenProcessPool as error:
            raise OutOfMemoryError(f"{name} or a command beside it was ended by the system", wanted="1 GiB for each", fix="free memory") from error
        return _checked(*found)


@contextmanager
def loaded_commands(jobs: int) -> Iterator[Commands]:
    """``Commands`` with ``jobs`` processes, which end with the block."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"  # libraries look when they are loaded, so a process must begin with it
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            yield Commands(pool)
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def _call(name: str, words: tuple[str, ...]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main_of(name)(list(words))
        except SystemExit as leaving:  # of words that argparse refuses
            code = leaving.code
    return code or 0, out.getvalue(), err.getvalue()


def _say(name: str, words: tuple[str, ...]) -> None:
    print(f"$ {shlex.join([name, *words])}", flush=True)


def _checked(code: int, out: str, err: str) -> str:
    if code:
        print(err, file=sys.stderr)
        raise SystemExit(code)
    return out
