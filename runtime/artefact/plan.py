"""Reading ``x.plan``: an uncompressed zip whose engines are used where they lie in the file."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from ..errors import ChecksumError, InputError
from ..files import check_sha256
from .manifest import FILE_NAME, MAX_FILES, PlanManifest
from .manifest_json import MAX_MANIFEST_BYTES, manifest_from_bytes
from .other_kinds import refuse_other_kinds
from .trust import ANY, Trust

MANIFEST = "plan.json"
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
MAX_DIRECTORY_BYTES = 4 << 20


class PlanFile:
    """An open plan: manifest and read-only views of its files, mapped from disk, never copied. ``signed`` says who signed it, where that was checked.

    Use as a context manager, or call ``close()`` (which may be called twice).
    """

    def __init__(self, path: Path, mapping: mmap.mmap, extents: dict[str, tuple[int, int]], manifest: PlanManifest, signed: str = ""):
        self.path, self.manifest, self.signed, self._mapping, self._extents = path, manifest, signed, mapping, extents

    @classmethod
    def open(cls, path: str | Path, verify: bool = True, trust: Trust = ANY) -> PlanFile:
        """Map a plan and check its structure; with ``verify``, or where ``trust`` wants anything, also every file's SHA-256.

        Raises:
            InputError: if it is missing, no plan, truncated, of an unknown version, or built to mislead (traversal names,
                compressed or overlapping entries, sizes that do not add up).
            ChecksumError: if the bytes of a file changed.
            InputError, ChecksumError, EnvironmentMismatchError: if it is not what ``trust`` wants.
        """
        path = Path(path)
        refuse_other_kinds(path)
        mapping = _map(path)
        try:
            signed = trust.check_signed(mapping, path)
            extents, checksum = _extents(path, mapping)
            manifest = cls._read_manifest(path, mapping, extents, checksum, trust)
            if verify or trust != ANY:
                for name, facts in manifest.files.items():
                    offset, size = extents[name]
                    with memoryview(mapping)[offset : offset + size] as view:
                        check_sha256(view, facts.sha256, f"{name} in {path}")
        except BaseException:
            mapping.close()
            raise
        return cls(path, mapping, extents, manifest, signed)

    @staticmethod
    def _read_manifest(path: Path, mapping: mmap.mmap, extents: dict[str, tuple[int, int]], checksum: int, trust: Trust) -> PlanManifest:
        if MANIFEST not in extents:
            raise InputError(f"{path} holds no {MANIFEST}", wanted="a plan made by depth-build")
        offset, size = extents[MANIFEST]
        if size > MAX_MANIFEST_BYTES:
            raise InputError(f"{MANIFEST} in {path} has {size} bytes", wanted=f"at most {MAX_MANIFEST_BYTES}")
        raw = mapping[offset : offset + size]
        if zlib.crc32(raw) != checksum:
            raise ChecksumError(f"{MANIFEST} in {path} was changed or damaged", wanted="the bytes that depth-build wrote", fix="copy or build it again")
        trust.check_manifest(raw, path)
        manifest = manifest_from_bytes(raw, PlanManifest, f"{MANIFEST} in {path}")
        listed, present = set(manifest.files) | {MANIFEST}, set(extents)
        if listed != present:
            raise InputError(f"{path}: files and manifest differ by {sorted(listed ^ present)[:4]}", fix="build it again")
        for name, facts in manifest.files.items():
            if extents[name][1] != facts.size:
                raise ChecksumError(f"{name} in {path} has {extents[name][1]} bytes", wanted=f"{facts.size}", fix="copy or build it again")
        return manifest

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of ``plan.json``, which names every other file's."""
        return hashlib.sha256(self.read(MANIFEST)).hexdigest()

    def extent(self, name: str) -> tuple[int, int]:
        """Offset and size in bytes of one file inside the plan."""
        return self._extents[name]

    def view(self, name: str) -> memoryview:
        """The bytes of one file, mapped; release it before ``close()``."""
        offset, size = self._extents[name]
        return memoryview(self._mapping)[offset : offset + size]

    def read(self, name: str) -> bytes:
        """A copy of one file."""
        with self.view(name) as view:
            return bytes(view)

    def drop_pages(self, name: str) -> None:
        """Give the memory of one file's pages back to the system; a later access reads them from disk again."""
        if hasattr(self._mapping, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            offset, size = self._extents[name]
            start = offset - offset % mmap.PAGESIZE
            self._mapping.madvise(mmap.MADV_DONTNEED, start, offset + size - start)

    def close(self) -> None:
        """Unmap; views that are still in use keep the mapping alive until they are gone."""
        with suppress(BufferError):  # a view is still in use; the mapping goes with the last one
            self._mapping.close()

    def __enter__(self) -> PlanFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _map(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InputError(f"{path} is empty", wanted="a plan made by depth-build")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", wanted="a plan made by depth-build", fix="depth-export and depth-build make one") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})", wanted="a plan made by depth-build") from error


def _extents(path: Path, mapping: mmap.mmap) -> tuple[dict[str, tuple[int, int]], int]:
    """Offset and size of each entry, and the CRC-32 of the manifest (which lists a SHA-256 of every file but itself).

    An entry is accepted only if central directory, local header and file size agree.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            directory = archive.start_dir
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, struct.error, OverflowError) as error:
        raise InputError(f"{path} is not a whole plan ({error})", wanted="a plan made by depth-build", fix="copy or build it again") from error
    if len(entries) > MAX_FILES or len(mapping) - directory > MAX_DIRECTORY_BYTES:
        raise InputError(f"{path} lists {len(entries)} files", wanted=f"at most {MAX_FILES}")
    extents: dict[str, tuple[int, int]] = {}
    checksums: dict[str, int] = {}
    for entry in entries:
        name = entry.filename
        if not FILE_NAME.fullmatch(name):
            raise InputError(f"{path} holds a file with the unsafe name {name!r}")
        if name in extents:
            raise InputError(f"{path} holds {name} twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1 or entry.file_size != entry.compress_size:
            raise InputError(f"{name} in {path} is compressed or encrypted", wanted="stored bytes, as depth-build writes them")
        start = entry.header_offset
        if not 0 <= start <= directory - LOCAL_HEADER.size:
            raise InputError(f"{name} in {path} lies outside the file", fix="copy or build it again")
        signature, *_, name_size, extra_size = LOCAL_HEADER.unpack_from(mapping, start)
        begin = start + LOCAL_HEADER.size + name_size + extra_size
        written = mapping[start + LOCAL_HEADER.size : start + LOCAL_HEADER.size + name_size]
        if signature != b"PK\x03\x04" or written != name.encode() or begin + entry.file_size > directory:
            raise InputError(f"{name} in {path} lies outside the file or has another name there", fix="copy or build it again")
        extents[name], checksums[name] = (begin, entry.file_size), entry.CRC
    end = 0
    for begin, size, name in sorted((begin, size, name) for name, (begin, size) in extents.items()):
        if begin < end:
            raise InputError(f"{name} in {path} overlaps another file", fix="build it again")
        end = begin + size
    return extents, checksums.get(MANIFEST, 0)
