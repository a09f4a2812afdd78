"""What an artefact has to prove before anything in it is used: whose it is, or that it is one certain artefact."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path

from ..errors import ChecksumError, UsageError
from .manifest import SHA256
from .signature import PublicKey, check_signature, read_public_key


@dataclass(frozen=True)
class Trust:
    """Conditions; none by default.

    Args:
        manifest_sha256: of ``plan.json`` or ``bundle.json``, which lists the SHA-256 of everything else; ``depth-inspect`` prints it. ``""``: any.
        key: whose signature has to lie beside the plan (``x.plan.minisig``) or the bundle's manifest (``bundle.json.minisig``); None: anybody's.

    Raises:
        UsageError: if the SHA-256 is none.
    """

    manifest_sha256: str = ""
    key: PublicKey | None = None

    def __post_init__(self):
        if self.manifest_sha256 and not SHA256.fullmatch(self.manifest_sha256):
            raise UsageError(f"{self.manifest_sha256!r} is no SHA-256", wanted="64 digits of 0-9 and a-f, as depth-inspect prints them")

    @classmethod
    def of(cls, sha256: str | None, key: str | None) -> Trust:
        """From words of a command line; see ``read_public_key``."""
        return cls((sha256 or "").strip().lower(), read_public_key(key) if key else None)

    def check_signed(self, signed: mmap.mmap | bytes, path: Path) -> str:
        """Check the signature beside ``path`` where one is wanted.

        Returns:
            Words about it; ``""`` where none is wanted.

        Raises:
            InputError, ChecksumError, EnvironmentMismatchError: see ``check_signature``.
        """
        if self.key is None:
            return ""
        return f"signed by the key {self.key.name}: {check_signature(signed, path, self.key)}"

    def check_manifest(self, raw: bytes, path: Path) -> None:
        """Compare the manifest's bytes where certain ones are wanted.

        Raises:
            ChecksumError: if they are others.
        """
        digest = hashlib.sha256(raw).hexdigest()
        if self.manifest_sha256 and digest != self.manifest_sha256:
            was = f"the manifest of {path} has the SHA-256 {digest[:12]}…"
            raise ChecksumError(was, wanted=f"{self.manifest_sha256[:12]}…", fix="take the plan that was meant; depth-inspect prints this SHA-256 of any")


ANY = Trust()
