"""Our commands, as a user would type them."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import get_context

from ...runtime.errors import OutOfMemoryError
from ...runtime.onnxruntime.threads import THREADS
from ..our_commands import main_of


class Commands:
    """Runs commands in processes that keep what they have loaded, as its libraries take half of a small network's export; with one thread each
    unless their words say more.

    Args:
        pool: of those processes.
    """

    def __init__(self, pool: ProcessPoolExecutor):
        self._pool = pool

    def __call__(self, name: str, *words: str) -> str:
        """Run one command; returns its standard output. Several threads may call it.

        Raises:
            SystemExit: with its exit code if it fails.
            OutOfMemoryError: if the system ended its process.
        """
        print(f"$ {shlex.join([name, *words])}", flush=True)
        try:
            found = self._pool.submit(_call, name, words).result()
        except BrokenProcessPool as error:
            raise OutOfMemoryError(f"{name} or a command beside it was ended by the system", wanted="1 GiB for each", fix="free memory") from error
        code, out, err = found
        if code:
            print(err, file=sys.stderr)
            raise SystemExit(code)
        return out


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
