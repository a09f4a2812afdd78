"""One pinned file of the Hugging Face hub: resumed where a download broke off, and accepted only if its SHA-256 is right."""

from __future__ import annotations

import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from ..runtime.errors import ChecksumError, InputError
from ..runtime.files import CHUNK, sha256_of

ENDPOINT = "https://huggingface.co"  # $HF_ENDPOINT, as in the hub's own client
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class HubFile:
    """A file that never changes.

    Args:
        repository: ``owner/name``.
        revision: a commit, never a branch.
        file: path in it.
        nbytes: its size.
        sha256: lower-case hex; at least the first 8 digits, where no more were published.

    Raises:
        ValueError: for a branch, or a hash of another form.
    """

    repository: str
    revision: str
    file: str
    nbytes: int
    sha256: str

    def __post_init__(self):
        if not re.fullmatch(r"[0-9a-f]{7,40}", self.revision) or not re.fullmatch(r"[0-9a-f]{8,64}", self.sha256) or self.nbytes <= 0:
            raise ValueError(f"a commit, a size and a SHA-256 were wanted, got {self}")

    @property
    def doubt(self) -> str:
        """What of the pin is not known in full, as a sentence; empty for a whole commit and a whole SHA-256."""
        pins = ((self.revision, 40, "commit"), (self.sha256, 64, "SHA-256"))
        known = [f"{len(digits)} of {whole} digits of its {what}" for digits, whole, what in pins if len(digits) < whole]
        if not known:
            return ""
        advice = "compare the whole SHA-256, which the bundle's manifest keeps, with the hub's page"
        return f"{self.repository}/{self.file} is known by {' and '.join(known)}, and by its size: {advice}"

    @property
    def url(self) -> str:
        """Where it is; ``$HF_ENDPOINT`` names another hub."""
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT
        return f"{endpoint}/{self.repository}/resolve/{self.revision}/{self.file}"


def download(wanted: HubFile, folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """The file in ``folder``, downloaded if it is not there yet, or no longer what it was.

    What arrived is kept beside it as ``.part`` when the connection breaks or the user interrupts; the next call asks only for the rest.

    Args:
        on_progress: called with the bytes that are there, and those of the whole file.

    Raises:
        InputError: if ``$HF_HUB_OFFLINE`` is set, the hub cannot be reached, does not have the file or breaks off, or the disk is full;
            says what to fetch from where.
        ChecksumError: if the bytes are not the pinned ones; they are removed.
    """
    target = folder / f"{wanted.sha256[:8]}-{Path(wanted.file).name}"
    part = target.with_name(target.name + ".part")
    damaged = False
    if target.is_file():  # hashed each time, seconds before minutes of exporting: a disk that loses bits changes neither size nor date
        damaged = target.stat().st_size != wanted.nbytes or not sha256_of(target).startswith(wanted.sha256)
        if not damaged:
            return target
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        was = f"{target} is damaged" if damaged else f"{wanted.url} is not here yet"
        raise InputError(f"{was}, and HF_HUB_OFFLINE forbids downloads", fix=_by_hand(wanted))
    target.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() else 0
    if have > wanted.nbytes:
        part.unlink()
        have = 0
    free = shutil.disk_usage(folder).free
    if free < wanted.nbytes - have:
        raise InputError(f"the disk of {folder} has {free:,} bytes free", wanted=f"{wanted.nbytes - have:,}", fix=f"make room, or {_by_hand(wanted)}")
    if have < wanted.nbytes:
        _fetch(wanted, part, have, on_progress)
    found = sha256_of(part)
    if not found.startswith(wanted.sha256):
        part.unlink()
        raise ChecksumError(f"{wanted.url} gave bytes with SHA-256 {found[:12]}…", wanted=f"{wanted.sha256[:12]}…", fix=f"try again, or {_by_hand(wanted)}")
    os.replace(part, target)
    return target


def _by_hand(wanted: HubFile) -> str:
    return f"download {wanted.url} ({wanted.nbytes:,} bytes, SHA-256 {wanted.sha256[:12]}…) elsewhere and give it with --weights"


def _fetch(wanted: HubFile, part: Path, have: int, on_progress: Callable[[int, int], None]) -> None:
    request = urllib.request.Request(wanted.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            if answer.status != 206:
                have = 0  # the server knows no ranges and begins at the start
            _check_size(wanted, answer, have)
            _store(wanted, answer, part, have, on_progress)
    except urllib.error.HTTPError as error:
        raise InputError(f"{wanted.url} answered {error.code} {error.reason}", fix=_by_hand(wanted)) from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{wanted.url} cannot be reached ({reason})", fix=f"try again, which goes on where it ended, or {_by_hand(wanted)}") from error


def _check_size(wanted: HubFile, answer: HTTPResponse, have: int) -> None:
    part = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or f"bytes {have}-")
    if have and (part is None or int(part[1]) != have):
        raise InputError(f"{wanted.url} gave another part than the one from byte {have:,}", fix=_by_hand(wanted))
    length = answer.headers.get("Content-Length")
    if length is not None and have + int(length) != wanted.nbytes:
        raise InputError(f"{wanted.url} has {have + int(length):,} bytes", wanted=f"{wanted.nbytes:,}", fix=_by_hand(wanted))


def _store(wanted: HubFile, answer: HTTPResponse, part: Path, have: int, on_progress: Callable[[int, int], None]) -> None:
    try:
        file = open(part, "ab" if have else "wb")  # noqa: SIM115 - an OSError of the disk is told apart from one of the network
    except OSError as error:
        raise _disk(part, error, wanted) from error
    with file:
        while chunk := answer.read(CHUNK):
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise _disk(part, error, wanted) from error
            have += len(chunk)
            on_progress(min(have, wanted.nbytes), wanted.nbytes)
    if have != wanted.nbytes:
        was = f"the download broke off after {have:,} of {wanted.nbytes:,} bytes"
        raise InputError(was, fix=f"run the same command again, which goes on where it ended, or {_by_hand(wanted)}")


def _disk(part: Path, error: OSError, wanted: HubFile) -> InputError:
    return InputError(f"{part} cannot be written ({error.strerror or error})", fix=f"make room, or {_by_hand(wanted)}")
