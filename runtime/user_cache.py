"""A folder of this user's own for what can be made again: never shared, never trusted when somebody else could have written it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import InputError

VARIABLE = "FATHOM_CACHE_DIR"


def cache_folder(name: str) -> Path:
    """``$FATHOM_CACHE_DIR``, or ``fathom`` in ``$XDG_CACHE_HOME`` (``~/.cache``), with the sub-folder ``name``; made with mode 0700.

    Raises:
        InputError: if it cannot be made, belongs to somebody else, or others may write to it.
    """
    chosen = os.environ.get(VARIABLE)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(chosen) if chosen else Path(home) / "fathom"
    folder = root / name
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in (root, folder):
            facts = path.lstat()
            foreign = hasattr(os, "getuid") and facts.st_uid != os.getuid()
            if not stat.S_ISDIR(facts.st_mode) or foreign or facts.st_mode & 0o022:
                was = f"the cache folder {path} could be written by others"
                raise InputError(was, wanted="mode 0700, owned by you", mend=f"set {VARIABLE} to another folder")
            if facts.st_mode & 0o077:
                path.chmod(0o700)
    except OSError as error:
        raise InputError(f"the cache folder {folder} cannot be made ({error.strerror})", mend=f"set {VARIABLE} to another folder") from error
    return folder
