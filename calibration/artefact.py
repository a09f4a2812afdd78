"""The JSON files of a calibration: written whole, read with every check, each bound to the network it was made on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..runtime.artefact.manifest import BundleManifest
from ..runtime.artefact.manifest_json import manifest_to_json
from ..runtime.errors import InputError
from ..runtime.files import whole_file

T = TypeVar("T")


def model_fingerprint(manifest: BundleManifest) -> str:
    """SHA-256 over network, contract and stages with the hashes of their files: what a calibration stands for.

    Goldens, parity and the calibration's own files do not count, so that adding those to a bundle leaves it calibrated.
    """
    whole = manifest_to_json(manifest)
    names = {name for stage in manifest.stages for name in manifest.stage_files(stage)}
    facts = {key: whole[key] for key in ("network", "contract", "stages")} | {"files": {name: whole["files"][name]["sha256"] for name in sorted(names)}}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_artefact(data: dict[str, Any], path: str | Path, force: bool) -> None:
    """Write JSON values; the file appears when it is whole.

    Raises:
        InputError: if the file exists and ``force`` is False, or cannot be written.
    """
    with whole_file(path, force) as part:
        part.write_text(json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_artefact(path: str | Path, parse: Callable[[Any], T], refusal: str, limit_nbytes: int, fix: str) -> T:
    """Read JSON and make of it what ``parse`` makes.

    Args:
        parse: raises ValueError or TypeError on values that are not what they should be.
        refusal: what to say of a file that is not (``is no calibration table``).
        fix: how to get a good one, for messages.

    Raises:
        InputError: if the file is missing, too large, no JSON, or not what it should be.
    """
    path = Path(path)
    try:
        if path.stat().st_size > limit_nbytes:
            raise InputError(f"{path} has {path.stat().st_size} bytes", wanted=f"at most {limit_nbytes}", fix=fix)
        return parse(json.loads(path.read_bytes()))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", fix=fix) from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} {refusal} ({error})", fix=fix) from error


def require_model(path: str | Path, model_sha256: str, manifest: BundleManifest, what: str, fix: str, how: str = "was made on") -> None:
    """Refuse what comes from another network.

    Raises:
        InputError: naming both networks by their hashes.
    """
    if model_sha256 != (wanted := model_fingerprint(manifest)):
        raise InputError(f"{path} {how} the network {model_sha256[:12]}…", wanted=f"{what} of this bundle ({wanted[:12]}…)", fix=fix)
