"""A folder for half-done work, beside the output so that nothing has to cross file systems."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...runtime.errors import InputError
from ...runtime.files import PART, PART_END, full_disk_told, sweep


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A hidden folder next to ``path``, removed at the end whatever happens.

    Raises:
        InputError: if it cannot be made.
        DiskFullError: if what is done inside fails because the disk is full.
    """
    try:
        sweep(path.absolute().parent)
        folder = tempfile.TemporaryDirectory(prefix=PART, suffix=PART_END, dir=path.absolute().parent)
    except OSError as error:
        was = f"{path} cannot be written ({error.strerror or error})"
        raise InputError(was, fix="check the disk and the permissions of its folder") from error
    with folder as name, full_disk_told(path):
        yield Path(name)
