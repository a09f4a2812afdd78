"""What a calibration has done so far, on disk: boundary tensors and half-filled histograms, so that it can be taken up again."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import InputError
from ...runtime.files import PART, whole_file

JOURNAL = "journal.json"
LOCK = f".{JOURNAL}.lock"


class Journal:
    """A folder that belongs to one calibration (same network, data and settings).

    Args:
        folder: is made if it is missing.
        key: what must be equal for the content to count.
        force: throw away the tensors of another calibration; without them there is nothing to lose.

    Attributes:
        resumed: whether an earlier run's content is taken up.

    Raises:
        InputError: if the folder exists and is no journal, or holds tensors of another calibration and ``force`` is False, or cannot be written.
    """

    def __init__(self, folder: Path, key: dict[str, Any], force: bool = False):
        self.folder, self._facts = folder, {"key": key, "done": {}}
        key = json.loads(json.dumps(key))
        file = folder / JOURNAL
        self.resumed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock(folder)
            if file.is_file():
                found = self._read(file)
                if found.get("key") == key and isinstance(found.get("done"), dict):
                    self._facts, self.resumed = found, True
                    for part in folder.glob(f"{PART}*"):
                        part.unlink()
                else:
                    if isinstance(found.get("key"), dict) and any(folder.glob("*.npz")) and not force:
                        raise InputError(
                            f"{folder} holds an interrupted calibration with other settings: {_differences(found['key'], key)}",
                            wanted="the same command again, to go on with it",
                            fix="give those settings again, or pass --force to throw away what was done",
                        )
                    for item in set(folder.iterdir()) - {folder / LOCK}:
                        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
            elif any(not item.name.startswith((LOCK, PART)) for item in folder.iterdir()):  # PART: killed while it wrote its first line
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
        with whole_file(self.folder / JOURNAL, force=True) as part:
            part.write_text(json.dumps(self._facts))

    def fact(self, name: str) -> Any:
        """What was noted under ``name``, or None."""
        return self._facts["done"].get(name)

    def note(self, name: str, value: Any) -> None:
        """Note a JSON value."""
        self._facts["done"][name] = value
        self._write()

    def put(self, name: str, arrays: dict[str, np.ndarray], synced: bool = True) -> None:
        """Keep arrays under a name, replacing older ones.

        Args:
            synced: wait until they are on the disk; not worth it for what is quickly made anew.
        """
        part = self.folder / f"{PART}{name}"
        with open(part, "wb") as file:
            np.savez(file, **{f"a{number}": values for number, values in enumerate(arrays.values())}, names=np.array(list(arrays), dtype="U"))
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, self.folder / f"{name}.npz")

    def get(self, name: str) -> dict[str, np.ndarray]:
        """The arrays kept under a name; empty if there are none, or the file is damaged: what was in it is made anew."""
        file = self.folder / f"{name}.npz"
        if not file.is_file():
            return {}
        try:
            with np.load(file, allow_pickle=False) as held:
                return {str(key): held[f"a{number}"] for number, key in enumerate(held["names"])}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return {}

    def drop(self, name: str) -> None:
        """Forget the arrays kept under a name."""
        (self.folder / f"{name}.npz").unlink(missing_ok=True)

    def remove(self) -> None:
        """The calibration is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """``hours 2.0, now 3.0; data``: what is long is only named."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        if (values := (before.get(name), now.get(name)))[0] != values[1]:
            found.append(f"{name} {values[0]}, now {values[1]}" if not any(isinstance(value, (dict, str)) for value in values) else name)
    return "; ".join(found)
