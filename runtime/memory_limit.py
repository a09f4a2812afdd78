"""Limits on this process' memory (``ulimit -v``, a cgroup), looked at before the work: at the edge of a limit native libraries crash instead of telling."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

from .artefact.manifest import Manifest, PlanManifest
from .artefact.spec import DTYPES, largest_tensor
from .errors import OutOfMemoryError
from .process_memory import process_nbytes

SPARE_NBYTES = 320 << 20  # of address space: libraries, stacks of threads, one photo of ordinary size
PYTORCH_NBYTES = 1200 << 20
SPARE_RESIDENT_NBYTES = 48 << 20
COPIES = 4  # of the largest tensor at a stage's end: in, out, and what lies between
M_ARENA_MAX = -8  # of mallopt


def refuse_small_limit(manifest: Manifest) -> None:
    """Raise unless the limits of this process leave room for the artefact.

    Under a limit of the address space, the C library is told to keep one heap for all threads instead of 64 MiB for each.

    Raises:
        OutOfMemoryError: naming limit, what is left of it, what is wanted, and the largest tensor.
    """
    batch = manifest.batch[1] if isinstance(manifest, PlanManifest) else 1
    tensors = [tensor for spec in manifest.specs() for tensor in spec.tensors]
    symbols = {size: batch for tensor in tensors for size in tensor.shape if isinstance(size, str)}
    largest = max(_nbytes(tensor.shape, symbols, tensor.dtype) for tensor in tensors)
    if (limit := _address_space_nbytes()) is not None:
        _one_heap()
        weights = sum(facts.size for facts in manifest.files.values())
        _refuse("ulimit -v", limit, limit - process_nbytes().get("VmSize", 0), SPARE_NBYTES + weights + COPIES * largest, largest_tensor(tensors, symbols))
    if (limit := _cgroup_nbytes()) is not None:
        _refuse("its cgroup", limit, limit - process_nbytes().get("VmRSS", 0), SPARE_RESIDENT_NBYTES + COPIES * largest, largest_tensor(tensors, symbols))


def refuse_limit_for_pytorch() -> None:
    """Raise unless PyTorch and its libraries can be loaded: under a tight limit some of them end the process by themselves.

    Raises:
        OutOfMemoryError: naming the limit.
    """
    if (limit := _address_space_nbytes()) is not None and limit < PYTORCH_NBYTES:
        was = f"this process may have {limit >> 20} MiB of address space (ulimit -v)"
        raise OutOfMemoryError(was, wanted=f"{PYTORCH_NBYTES >> 20} MiB for PyTorch, its libraries and their threads", fix="raise the limit")


def _refuse(what: str, limit: int, left: int, wanted: int, largest: str) -> None:
    if left < wanted:
        was = f"this process may have {limit >> 20} MiB ({what}), of which {max(left, 0) >> 20} are left"
        raise OutOfMemoryError(was, wanted=f"{-(-wanted >> 20)} MiB; the largest tensor is {largest}", fix="raise the limit, or use a smaller batch")


def _nbytes(shape: tuple[int | str, ...], symbols: dict[str, int], dtype: str) -> int:
    count = DTYPES[dtype].itemsize
    for size in shape:
        count *= symbols[size] if isinstance(size, str) else size
    return count


def _address_space_nbytes() -> int | None:
    with suppress(ImportError, OSError, ValueError):  # no such thing on Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        return None if limit == resource.RLIM_INFINITY else limit
    return None


def _cgroup_nbytes() -> int | None:
    """The smallest limit of this process' cgroup and those above, version 2 or 1."""
    found = []
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, kinds, place = line.split(":", 2)
            if number == "0" or "memory" in kinds.split(","):
                root, name = ("/sys/fs/cgroup", "memory.max") if number == "0" else ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
                folder = Path(root, place.lstrip("/"))
                for above in (folder, *folder.parents):
                    with suppress(OSError, ValueError):
                        found.append(int((above / name).read_text()))
    return min(found, default=None)


def _one_heap() -> None:
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
