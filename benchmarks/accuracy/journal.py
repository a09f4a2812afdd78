"""What of a long measurement is done already, kept line by line on disk so that an interruption costs one image."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ...runtime.errors import InputError

FORMAT = "fathom-accuracy-journal"


class Journal:
    """Finished groups of images by (row, number of the group); a group is there once or not at all.

    The first line says which measurement this is; a half-written last line (the machine went down) is cut off.

    Args:
        path: of the file, or None to remember nothing.
        run: all that decides the numbers, as JSON values.
        fresh: replace the journal of another measurement.

    Raises:
        InputError: if the file is the journal of another measurement and ``fresh`` is False, or cannot be written.
    """

    def __init__(self, path: Path | None, run: dict[str, Any], fresh: bool = False):
        self.path, self._file = path, None
        self.done: dict[tuple[int, int], dict[str, Any]] = {}
        self._key = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
        if path is not None:
            try:
                self._file = self._open(path, fresh)
            except OSError as error:
                raise InputError(f"{path} cannot be written ({error.strerror})", fix="another --output") from error

    def _open(self, path: Path, fresh: bool) -> TextIO:
        size = self._read(path, fresh) if path.is_file() else 0
        file = open(path, "r+" if size else "w", encoding="utf-8")  # noqa: SIM115 (closed by close)
        file.seek(size)
        file.truncate()
        if not size:
            self._write(file, {"format": FORMAT, "run": self._key})
        return file

    def _read(self, path: Path, fresh: bool) -> int:
        """Fill ``done``; returns how many bytes of the file count."""
        good = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                entry = _entry(line)
                if number == 0:
                    ours = entry is not None and entry.get("format") == FORMAT
                    if ours and entry.get("run") == self._key:
                        good += len(line)
                        continue
                    if fresh or (entry is None and not line.endswith(b"\n")):
                        return 0
                    raise InputError(
                        f"{path} is the journal of another measurement" if ours else f"{path} is no journal of a measurement",
                        wanted="the same data, evaluation and engines as before",
                        fix="remove it, choose another --output, or pass --force to begin anew",
                    )
                if entry is None or not isinstance(entry.get("row"), int) or not isinstance(entry.get("group"), int):
                    break
                self.done.setdefault((entry["row"], entry["group"]), entry)
                good += len(line)
        return good

    def add(self, row: int, group: int, facts: dict[str, Any]) -> None:
        """Keep one finished group; it is on disk when this returns."""
        entry = {"row": row, "group": group, **facts}
        if (row, group) in self.done:
            raise ValueError(f"row {row}, group {group} is in the journal already")
        self.done[row, group] = entry
        if self._file is not None:
            self._write(self._file, entry)

    @staticmethod
    def _write(file: TextIO, entry: dict[str, Any]) -> None:
        file.write(json.dumps(entry, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())

    def remove(self) -> None:
        """The measurement is complete and written elsewhere."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """May be called twice; the file stays."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close() if self.done else self.remove()


def _entry(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
