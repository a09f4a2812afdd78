"""Reading a bundle: the directory of ONNX stages that ``depth-export`` makes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..errors import ChecksumError, InputError
from ..files import sha256_of
from .manifest import BundleManifest
from .manifest_json import MAX_MANIFEST_BYTES, manifest_from_bytes
from .other_kinds import refuse_other_folders
from .trust import ANY, Trust

MANIFEST = "bundle.json"


class BundleDirectory:
    """A checked bundle: its manifest and the paths of its files."""

    def __init__(self, path: Path, manifest: BundleManifest, manifest_sha256: str, signed: str = ""):
        self.path_of_bundle, self.manifest, self.manifest_sha256, self.signed = path, manifest, manifest_sha256, signed

    @classmethod
    def open(cls, path: str | Path, verify: bool = True, trust: Trust = ANY) -> BundleDirectory:
        """Read ``bundle.json`` and check that every listed file is there; with ``verify``, or where ``trust`` wants anything, also its SHA-256.

        Raises:
            InputError: if it is no bundle, of an unknown version, a file is missing, a link, or lies outside the directory.
            ChecksumError: if a file's size or bytes changed.
            InputError, ChecksumError, EnvironmentMismatchError: if it is not what ``trust`` wants.
        """
        path = Path(path)
        source = path / MANIFEST
        if not source.exists():
            refuse_other_folders(path)
        try:
            if source.stat().st_size > MAX_MANIFEST_BYTES:
                raise InputError(f"{source} has {source.stat().st_size} bytes", wanted=f"at most {MAX_MANIFEST_BYTES}")
            raw = source.read_bytes()
        except OSError as error:
            raise InputError(f"{path} is not a bundle ({MANIFEST}: {error.strerror})", wanted="a directory made by depth-export") from error
        signed = trust.check_signed(raw, source)
        trust.check_manifest(raw, path)
        manifest = manifest_from_bytes(raw, BundleManifest, str(source))
        bundle = cls(path, manifest, hashlib.sha256(raw).hexdigest(), signed)
        for name, facts in manifest.files.items():
            file = bundle.path(name)
            if file.stat().st_size != facts.size:
                raise ChecksumError(f"{file} has {file.stat().st_size} bytes", wanted=str(facts.size), fix="copy or export the bundle again")
            if (verify or trust != ANY) and (digest := sha256_of(file)) != facts.sha256:
                raise ChecksumError(f"{file} has SHA-256 {digest[:12]}…", wanted=f"{facts.sha256[:12]}…", fix="copy or export the bundle again")
        return bundle

    def path(self, name: str) -> Path:
        """The path of a listed file.

        Raises:
            InputError: if the manifest does not list it, or it is missing, no plain file, or reached through a link.
        """
        if name not in self.manifest.files:
            raise InputError(f"{self.path_of_bundle} lists no file {name!r}")
        file = self.path_of_bundle.joinpath(*name.split("/"))
        if os.path.realpath(file) != os.path.join(os.path.realpath(self.path_of_bundle), *name.split("/")):
            raise InputError(f"{file} is a link that leads elsewhere", wanted="a plain file inside the bundle")
        if not file.is_file():
            raise InputError(f"{file} is missing", fix="copy or export the bundle again")
        return file

    def read(self, name: str) -> bytes:
        """The bytes of a listed file.

        Raises:
            InputError: if it cannot be read.
        """
        try:
            return self.path(name).read_bytes()
        except OSError as error:
            raise InputError(f"{name} cannot be read ({error.strerror})") from error

    def close(self) -> None:
        """Does nothing, because no file is held open; plans and bundles are used alike."""

    def __enter__(self) -> BundleDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
