"""What a calibration has done so far, on disk: boundary tensors and half-filled histograms, so that it can be taken up again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import InputError

JOURNAL = "journal.json"
LOCK = f".{JOURNAL}.lock"


class Journal:
    """A folder that belongs to one calibration (same network, data and settings); another one's content is thrown away.

    Args:
        folder: is made if it is missing.
        key: what must be equal for the content to count.

    Attributes:
        resumed: whether an earlier run's content is taken up.

    Raises:
        InputError: if the folder exists and is no journal, or cannot be written.
    """

    def __init__(self, folder: Path, key: dict[str, Any]):
        self.folder, self._facts = folder, {"key": key, "done": {}}
        file = folder / JOURNAL
        self.resumed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock(folder)
            if file.is_file():
                found = self._read(file)
                if found.get("key") == json.loads(json.dumps(key)) and isinstance(found.get("done"), dict):
                    self._facts, self.resumed = found, True
                else:
                    for item in set(folder.iterdir()) - {folder / LOCK}:
                        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
            elif any(not item.name.startswith(f".{JOURNAL}") for item in folder.iterdir()):  # killed while it wrote its first line
                raise InputError(f"{folder} is no journal of a calibration", fix="remove it yourself, or name another output")
        except OSError as error:
            raise InputError(f"the journal {folder} cannot be written ({error.strerror})", fix="check the disk and its permissions") from error
        if not self.resumed:
            self._write()

    def _lock(self, folder: Path) -> None:
        """One calibration at a time: two would mix what they have seen. The system takes the lock away when the process ends, however it ends."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self._held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.lockf(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # systems say either
            os.close(self._held)
            self._held = None
            raise InputError(f"another calibration of this bundle is running (it holds {folder})", fix="wait for it, or calibrate a copy") from error

    def __del__(self):
        if getattr(self, "_held", None) is not None:
            os.close(self._held)

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        part = self.folder / f".{JOURNAL}.part"
        part.write_text(json.dumps(self._facts))
        os.replace(part, self.folder / JOURNAL)

    def fact(self, name: str) -> Any:
        """What was noted under ``name``, or None."""
        return self._facts["done"].get(name)

    def note(self, name: str, value: Any) -> None:
        """Note a JSON value."""
        self._facts["done"][name] = value
        self._write()

    def put(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays under a name, replacing older ones."""
        part = self.folder / f".{name}.part.npz"
        np.savez(part, **{f"a{number}": values for number, values in enumerate(arrays.values())}, names=np.array(list(arrays), dtype="U"))
        os.replace(part, self.folder / f"{name}.npz")

    def get(self, name: str) -> dict[str, np.ndarray]:
        """The arrays kept under a name; empty if there are none."""
        file = self.folder / f"{name}.npz"
        if not file.is_file():
            return {}
        with np.load(file, allow_pickle=False) as held:
            return {str(key): held[f"a{number}"] for number, key in enumerate(held["names"])}

    def drop(self, name: str) -> None:
        """Forget the arrays kept under a name."""
        (self.folder / f"{name}.npz").unlink(missing_ok=True)

    def remove(self) -> None:
        """The calibration is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
