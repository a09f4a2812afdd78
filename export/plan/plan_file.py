"""Writing ``x.plan``: an uncompressed zip, entries aligned to pages so that engines and weights can be mapped."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

from ...runtime.artefact.manifest import FileFacts, PlanManifest
from ...runtime.artefact.manifest_json import manifest_bytes
from ...runtime.artefact.plan import MANIFEST
from ...runtime.files import sha256_of, whole_file

ALIGNMENT = 4096
PADDING_FIELD = 0xD935  # the zip extra field that Android's zipalign uses for the same purpose
TIMESTAMP = (1980, 1, 1, 0, 0, 0)


def file_facts(source: Path | bytes) -> FileFacts:
    """Size and SHA-256 of a file or of bytes."""
    if isinstance(source, bytes):
        return FileFacts(len(source), hashlib.sha256(source).hexdigest())
    return FileFacts(source.stat().st_size, sha256_of(source))


def write_plan(path: str | Path, manifest: PlanManifest, sources: dict[str, Path | bytes], force: bool = False) -> None:
    """Write manifest and files as one plan; the same input always gives the same bytes.

    Args:
        path: of the plan; it appears only when it is whole.
        manifest: its ``files`` must list exactly ``sources`` (see ``file_facts``).
        sources: file name inside the plan -> file on disk, or bytes.

    Raises:
        ValueError: if ``sources`` and ``manifest.files`` differ.
        InputError: if ``path`` exists and ``force`` is False, or cannot be written.
    """
    if set(sources) != set(manifest.files):
        raise ValueError(f"the manifest lists {sorted(manifest.files)}, the sources are {sorted(sources)}")
    with whole_file(path, force) as part, open(part, "wb") as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, MANIFEST, manifest_bytes(manifest))
        for name, source in sorted(sources.items()):
            _add(archive, name, source)


def _add(archive: zipfile.ZipFile, name: str, source: Path | bytes) -> None:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    entry = zipfile.ZipInfo(name, TIMESTAMP)
    entry.external_attr = 0o644 << 16
    entry.file_size = size
    zip64 = size >= zipfile.ZIP64_LIMIT
    header = archive.fp.tell() + 30 + len(name) + (20 if zip64 else 0)
    gap = -(header + 4) % ALIGNMENT
    entry.extra = PADDING_FIELD.to_bytes(2, "little") + gap.to_bytes(2, "little") + bytes(gap)
    with archive.open(entry, "w", force_zip64=zip64) as target:
        if isinstance(source, bytes):
            target.write(source)
        else:
            with open(source, "rb") as file:
                shutil.copyfileobj(file, target, 1 << 22)
