"""One plan for all workers of a machine: brought there, and its bytes checked, by the first of them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..artefact.bundle import BundleDirectory
from ..artefact.plan import MANIFEST, PlanFile
from ..errors import EnvironmentMismatchError, FathomError
from ..files import STALE_S, whole_file
from ..tensorrt.user_cache import refuse_shared


def manifest_sha256(path: str | Path) -> str:
    """SHA-256 of the manifest, which holds the SHA-256 of everything else; nothing else is read.

    Raises:
        InputError, ChecksumError: if it is no plan and no bundle.
    """
    if Path(path).is_dir():
        with BundleDirectory.open(path, verify=False) as bundle:
            return bundle.manifest_sha256
    with PlanFile.open(path, verify=False) as plan:
        return hashlib.sha256(plan.read(MANIFEST)).hexdigest()


def plan_on_node(path: str, sha256: str, run: str, fetch: Callable[[], bytes] | None = None) -> tuple[Path, int]:
    """Where the plan lies on this machine, every byte of it checked once per run and machine.

    Args:
        path: where the driver found it; used where it is the same here.
        sha256: of its manifest.
        run: random name of the run.
        fetch: gets the bytes of the plan where it is not; None if nobody has them.

    Returns:
        the path, and how often this run has read the plan on this machine so far.

    Raises:
        EnvironmentMismatchError: if it is not here and cannot be fetched.
        ChecksumError, InputError: if its bytes are not right.
    """
    folder = Path(tempfile.gettempdir()) / f"fathom-fleet-{os.getuid() if hasattr(os, 'getuid') else 'all'}"
    folder.mkdir(mode=0o700, exist_ok=True)
    refuse_shared(folder)
    with open(folder / f"{sha256[:32]}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait here, and read nothing
        except OSError as error:
            raise EnvironmentMismatchError(f"{folder} cannot be locked ({error.strerror})", wanted="a file system with locks", fix="another TMPDIR") from error
        place, marker = Path(path), folder / f"{sha256[:32]}-{run}.checked"
        if not _is_it(place, sha256):
            place = folder / f"{sha256[:32]}.plan"
            if not _is_it(place, sha256):
                if fetch is None:
                    raise EnvironmentMismatchError(f"{path} is not on this machine", wanted="a folder that all machines share", fix="give a plan: it travels")
                with whole_file(place, force=True) as part:
                    part.write_bytes(fetch())
        if not marker.exists():
            (BundleDirectory if place.is_dir() else PlanFile).open(place, verify=True).close()
            with open(marker, "ab") as reads:  # one byte for each
                reads.write(b"1")
            _sweep(folder)
        return place, marker.stat().st_size


def _is_it(path: Path, sha256: str) -> bool:
    try:
        return manifest_sha256(path) == sha256
    except FathomError:
        return False


def _sweep(folder: Path) -> None:
    """Markers and copies of runs long past."""
    for left in folder.iterdir():
        with suppress(OSError):
            if left.suffix != ".lock" and time.time() - left.stat().st_atime > 7 * STALE_S and time.time() - left.stat().st_mtime > 7 * STALE_S:
                left.unlink()
