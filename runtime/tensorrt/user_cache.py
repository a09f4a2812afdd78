"""A folder of this user's own for what can be made again: never shared, and refused if another user could have written to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import InputError

VARIABLE = "FATHOM_CACHE_DIR"


def cache_root() -> Path:
    """``$FATHOM_CACHE_DIR``, or ``fathom`` in ``$XDG_CACHE_HOME`` (``~/.cache``)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get(VARIABLE) or Path(home) / "fathom")


def cache_folder(name: str) -> Path:
    """The sub-folder ``name`` of the cache, made with mode 0700.

    Raises:
        InputError: if it cannot be made, belongs to somebody else, or others may write to it.
    """
    root = cache_root()
    folder = root / name
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in (root, folder):
            refuse_shared(path)
            path.chmod(0o700)
    except OSError as error:
        raise InputError(f"the cache folder {folder} cannot be made ({error.strerror})", fix=f"set {VARIABLE} to another folder") from error
    return folder


def refuse_shared(path: Path) -> None:
    """Raise InputError if ``path`` is no directory of this user's own, or others may write to it."""
    facts = path.lstat()
    foreign = hasattr(os, "getuid") and facts.st_uid != os.getuid()
    if not stat.S_ISDIR(facts.st_mode) or foreign or facts.st_mode & 0o022:
        raise InputError(f"the cache folder {path} could be written by others", wanted="mode 0700, owned by you", fix=f"set {VARIABLE} to another folder")
