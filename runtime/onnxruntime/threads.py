"""How many threads ONNX Runtime takes for work that nobody named a number for."""

from __future__ import annotations

import os

THREADS = "OMP_NUM_THREADS"


def threads_asked() -> int:
    """What ``OMP_NUM_THREADS`` says, as PyTorch heeds it and ONNX Runtime does not; 0, which to it means all cores, without it.

    Its pool spins while it waits, so that several processes with a pool for every core slow each other down: trying the weights of
    evp-tiny beside other work took 37 s of processor time with two threads, and 21 s with one.
    """
    first = os.environ.get(THREADS, "").partition(",")[0].strip()  # a list has one number for each level of nested loops
    return int(first) if first.isdecimal() else 0
