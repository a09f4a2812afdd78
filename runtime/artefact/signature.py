"""Detached signatures of minisign: whether the owner of a key signed exactly these bytes.

The format is minisign's (Ed25519 over a BLAKE2b-512 of the file), so that keys are made and files signed with that program, and no secret key
ever comes near this one. Its signatures end with a comment that is signed too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ChecksumError, InputError, UsageError, missing_package
from ..files import CHUNK, read_text

ENDING = ".minisig"
MAX_NBYTES = 1 << 14
COMMENT, TRUSTED = "untrusted comment:", "trusted comment: "
KEY_NBYTES, SIGNATURE_NBYTES = 2 + 8 + 32, 2 + 8 + 64
MAKE = "minisign -S -m {} signs it (minisign -G makes the keys)"


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 key of minisign.

    Args:
        number: 8 bytes that name it.
        point: 32 bytes.
    """

    number: bytes
    point: bytes

    @property
    def name(self) -> str:
        """As minisign prints it."""
        return f"{int.from_bytes(self.number, 'little'):016X}"


def read_public_key(argument: str) -> PublicKey:
    """Understand a file that ``minisign -G`` wrote, or the line of letters in it.

    Raises:
        UsageError: if it is neither a key nor the name of a file.
        InputError: if the file holds no key.
    """
    path = Path(argument)
    try:
        there = path.is_file()
    except (OSError, ValueError):
        there = False
    try:
        text = read_text(path, MAX_NBYTES) if there else argument
        (line,) = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(COMMENT)]
        raw = base64.b64decode(line, validate=True)
        if len(raw) != KEY_NBYTES or raw[:2] != b"Ed":
            raise ValueError("it is no Ed25519 key")
    except (OSError, ValueError, binascii.Error) as error:
        wanted = "a public key of minisign: its file, or the line that begins with RW"
        if there:
            raise InputError(f"{argument} holds no public key ({error})", wanted=wanted) from error
        raise UsageError(f"{argument!r} is neither a public key nor a file", wanted=wanted) from error
    return PublicKey(raw[2:10], raw[10:])


def check_signature(signed: mmap.mmap | bytes, path: Path, key: PublicKey) -> str:
    """Check the signature that lies beside ``path`` against the bytes that were read from there.

    Returns:
        The signed comment, printable characters only.

    Raises:
        InputError: if there is no signature, or one of another key or form.
        ChecksumError: if the signature is not of these bytes.
        EnvironmentMismatchError: if the package ``cryptography`` is not installed.
    """
    beside = path.with_name(path.name + ENDING)
    algorithm, number, signature, comment, over_comment = _read(beside, path)
    if algorithm != b"ED":
        raise InputError(f"{beside} is of minisign's old form, without a hash", wanted="a signature of minisign 0.11 or later", fix=MAKE.format(path.name))
    if number != key.number:
        was = f"{beside} is by the key {PublicKey(number, b'').name}"
        raise InputError(was, wanted=f"the key {key.name}", fix="have the owner of that key sign it, or give the key that you trust")
    digest = hashlib.blake2b(digest_size=64)
    with memoryview(signed) as whole:
        for start in range(0, len(whole), CHUNK):
            with whole[start : start + CHUNK] as piece:
                digest.update(piece)
    if not (_verifies(key, signature, digest.digest()) and _verifies(key, over_comment, signature + comment.encode("utf-8", "surrogateescape"))):
        raise ChecksumError(f"{path} is not what the key {key.name} signed", wanted="the signed bytes", fix="copy both files again from whom you trust")
    return "".join(letter for letter in comment if letter.isprintable())


def _read(beside: Path, path: Path) -> tuple[bytes, bytes, bytes, str, bytes]:
    """Algorithm, key's number, signature, signed comment, and the signature over both."""
    try:
        first, main, comment, last = read_text(beside, MAX_NBYTES).splitlines()
        raw, over_comment = base64.b64decode(main, validate=True), base64.b64decode(last, validate=True)
        if not first.startswith(COMMENT) or not comment.startswith(TRUSTED) or len(raw) != SIGNATURE_NBYTES or len(over_comment) != 64:
            raise ValueError("four lines of minisign were wanted")
    except OSError as error:
        was = f"{path} is not signed: {beside.name} cannot be read ({error.strerror})"
        raise InputError(was, wanted="a signature beside it", fix=MAKE.format(path.name)) from error
    except (ValueError, binascii.Error) as error:
        raise InputError(f"{beside} is no signature ({error})", wanted="what minisign wrote", fix=MAKE.format(path.name)) from error
    return raw[:2], raw[2:10], raw[10:], comment[len(TRUSTED) :], over_comment


def _verifies(key: PublicKey, signature: bytes, message: bytes) -> bool:
    ed25519, refused = _ed25519()
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key.point).verify(signature, message)
    except (refused, ValueError):
        return False
    return True


def _ed25519() -> Any:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise missing_package("cryptography", "signed", "it, which checks signatures") from error
    return ed25519, InvalidSignature
