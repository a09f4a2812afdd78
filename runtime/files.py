"""Outputs that appear under their final name only when they are whole."""

from __future__ import annotations

import errno
import hashlib
import io
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ChecksumError, DiskFullError, FathomError, InputError

CHUNK = 1 << 22
PART, PART_END = ".fathom-", ".part"  # names of what is being written; short, so that every legal name can be written
LEFT_ENDS = (PART_END, ".old", ".part.d")  # also of a directory that was being replaced, and of a bag
STALE_S, SWEEP_EVERY_S = 86_400, 3600
_SWEPT: dict[str, float] = {}  # when this process looked through a folder, by time.monotonic()
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_BELOW_NBYTES = 1 << 16


def refuse_existing(path: Path, force: bool) -> None:
    """Check before the work starts that ``path`` may be written.

    Raises:
        InputError: if it exists and ``force`` is False, or its folder does not exist or cannot be written.
    """
    if os.path.exists(path) and not force:  # False for a name that cannot be
        raise InputError(f"{path} exists already", wanted="a name that is free", fix="choose another one, or pass --force to replace it")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist", fix=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"the folder {folder} cannot be written", fix="choose another one, or change its permissions")


@contextmanager
def whole_file(path: str | Path, force: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``, synced and renamed to it at the end, removed if anything goes wrong (also Ctrl-C).

    Raises:
        InputError: if ``path`` exists and ``force`` is False, is a directory, or its folder cannot be written.
    """
    path = Path(path)
    refuse_existing(path, force)
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory", wanted="the name of a file")
    with _os_errors(path):
        _check_name(path)
        sweep(path.absolute().parent)
    part = _part_beside(path)  # named before it is made: an interrupt in between leaves nothing
    try:
        with _os_errors(path):
            part.touch(exist_ok=False)  # with the rights that the umask leaves: asking what it is would change it for all threads
        with full_disk_told(path):
            yield part
        with _os_errors(path):
            _sync(part)
            os.replace(part, path)
            _sync(path.absolute().parent)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


@contextmanager
def whole_directory(path: str | Path, force: bool = False, marker: str = "") -> Iterator[Path]:
    """Like ``whole_file`` for a directory.

    With ``force`` an existing directory is replaced only if it is empty or holds the file ``marker``: a slip of the hand must not
    delete somebody's folder.

    Raises:
        InputError: if ``path`` exists and may not be replaced, or its folder cannot be written.
    """
    path = Path(path)
    refuse_existing(path, force)
    if path.exists() and not (path.is_dir() and not path.is_symlink() and (not any(path.iterdir()) or (marker and (path / marker).is_file()))):
        raise InputError(f"{path} is no earlier output ({marker} is not in it), so it is not replaced", fix="remove it yourself or choose another name")
    with _os_errors(path):
        _check_name(path)
        sweep(path.absolute().parent)
    part = _part_beside(path)
    old = part.with_suffix(".old")
    try:
        with _os_errors(path):
            part.mkdir()
        with full_disk_told(path):
            yield part
        with _os_errors(path):
            for file in sorted(part.rglob("*")):
                _sync(file)
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(part, path)
            except OSError:
                if old.exists():
                    os.replace(old, path)
                raise
            _sync(path.absolute().parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


class BoundedReader(io.BufferedReader):
    """A file that gives no more than it has: decoders ask for as many bytes as a damaged header says, and Python makes room for them first."""

    def __init__(self, path: str | Path):
        super().__init__(io.FileIO(path))
        self._nbytes = os.fstat(self.fileno()).st_size

    def read(self, count: int | None = -1) -> bytes:
        """Up to ``count`` bytes; all that are left for -1 or None."""
        left = max(self._nbytes - self.tell(), 0)
        return super().read(left if count is None or count < 0 else min(count, left))


def read_text(path: str | Path, limit_nbytes: int) -> str:
    """A small text file as people save it: UTF-8, or UTF-16 where it begins with that mark; a byte-order mark is no part of the text.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is larger than ``limit_nbytes``, or no text of these encodings.
    """
    with open(path, "rb") as file:
        raw = file.read(limit_nbytes + 1)
    if len(raw) > limit_nbytes:
        raise ValueError(f"it has more than {limit_nbytes} bytes")
    return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file in lower-case hex; reads it piece by piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(view: memoryview | mmap.mmap | bytes, wanted: str, what: str) -> None:
    """Compare bytes with a recorded SHA-256, piece by piece.

    Raises:
        ChecksumError: if they differ; ``what`` is named.
    """
    digest = hashlib.sha256()
    with memoryview(view) as whole:
        for start in range(0, len(whole), CHUNK):
            with whole[start : start + CHUNK] as piece:
                digest.update(piece)
    if digest.hexdigest() != wanted:
        was = f"{what} has SHA-256 {digest.hexdigest()[:12]}…"
        raise ChecksumError(was, wanted=f"{wanted[:12]}…, as it was written", fix="copy or download it again; if it was changed on purpose, make it again")


def sweep(folder: Path) -> None:
    """Remove what runs that were killed left half-written in a folder, once it is older than a day.

    A folder is looked through once an hour, not once a file: it may hold many thousands.
    """
    key, now = str(folder), time.monotonic()
    if now - _SWEPT.get(key, -SWEEP_EVERY_S) < SWEEP_EVERY_S:
        return
    _SWEPT[key] = now
    with suppress(OSError), os.scandir(folder) as entries:
        for left in entries:
            if left.name.startswith(PART) and left.name.endswith(LEFT_ENDS):
                with suppress(OSError):
                    if time.time() - left.stat(follow_symlinks=False).st_mtime > STALE_S:
                        shutil.rmtree(left.path) if left.is_dir(follow_symlinks=False) else os.unlink(left.path)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Report any error raised inside as ``DiskFullError`` if the disk of ``path`` is full.

    Raises:
        DiskFullError: instead of the error, which libraries word in many ways, when there is no room left.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        folder = next(place for place in (path, *path.absolute().parents) if place.is_dir())
        told = (isinstance(error, OSError) and error.errno in FULL) or os.strerror(errno.ENOSPC) in str(error)
        room = FULL_BELOW_NBYTES
        with suppress(OSError):
            room = shutil.disk_usage(folder).free
        if told or (room < FULL_BELOW_NBYTES and isinstance(error, (OSError, FathomError, RuntimeError, ValueError))):
            raise disk_full(path) from error
        raise


def disk_full(path: Path) -> DiskFullError:
    """The error for an output that the disk has no room for."""
    return DiskFullError(f"the disk is full: {path} cannot be written", wanted="room on the disk", fix="free some, or choose an --output elsewhere")


def _part_beside(path: Path) -> Path:
    return path.absolute().parent / f"{PART}{secrets.token_hex(8)}{PART_END}"


def _check_name(path: Path) -> None:
    """Refuse a name that the file system cannot hold, before a system call fails with a less clear error."""
    try:
        longest = os.pathconf(path.absolute().parent, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        longest = 255
    if len(os.fsencode(path.name)) > longest:
        raise InputError(
            f"the name {path.name[:40]}… has {len(os.fsencode(path.name))} bytes", wanted=f"at most {longest}", fix="give the input a shorter name"
        )


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path) from error
        raise InputError(f"{path} cannot be written ({error.strerror or error})", fix="check the disk and the permissions of its folder") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
