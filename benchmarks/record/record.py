"""One form for every result of ``depth-bench``: who measured what, with which words, on which system.

Field names are those of MLPerf Inference (``scenario``, ``samples_per_second``, ``host_processor_model_name`` …) and of nvbench (``meta``,
``argv``, ``is_skipped``, ``skip_reason``, ``sample_size`` …) where they have one; ``docs/results.md`` says which is whose, and
``schemas/result.schema.json`` says it to programs.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ... import __version__
from ...runtime.errors import InputError
from ...runtime.files import whole_file

FORMAT, VERSION = "fathom-bench", 1
KINDS = ("accuracy", "latency", "masks", "study")
ROOT = Path(__file__).parents[2]
MAX_NBYTES = 1 << 28


def header(kind: str, argv: Sequence[str], packages: Iterable[str] = ("numpy", "onnxruntime"), seed: int | None = None) -> dict[str, Any]:
    """What every record begins with.

    Args:
        kind: one of ``KINDS``.
        argv: the command that repeats it; folders of this machine are left out.
        packages: whose versions decide the numbers.
        seed: of whatever was drawn, or None.
    """
    meta = {"argv": [short(word) for word in argv], "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    meta |= {"commit": commit(), "seed": seed, "version": versions(packages)}
    return {"format": FORMAT, "version": VERSION, "kind": kind, "meta": meta}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Fathom, Python and those packages that are installed."""
    found = {"fathom": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Short name of the checkout's commit, with ``+`` behind it if files were changed; empty outside a checkout."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def short(word: str) -> str:
    """A word of a command line without the folders before a file's name."""
    return ":".join(Path(part).name if os.sep in part else part for part in word.split(":"))


def study(name: str, results: dict[str, Any], packages: Iterable[str] = (), room: str = "studies") -> dict[str, Any]:
    """The record of a script in ``studies/`` or another room, whose results have a form of their own."""
    return header("study", ["python", "-m", f"fathom.benchmarks.{room}.{name}"], packages) | {"study": name, "results": results}


def read_study(path: str | Path) -> dict[str, Any]:
    """Results of a study that was written before; empty if there is no such file.

    Raises:
        InputError: see ``read_record``.
    """
    return read_record(path, ("study",))["results"] if Path(path).exists() else {}


def write_record(path: str | Path, record: dict[str, Any], force: bool = False) -> None:
    """Write a record whole.

    Raises:
        InputError: if it cannot be written.
    """
    with whole_file(path, force) as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(path: str | Path, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """A record from its file.

    Raises:
        InputError: if it is no record, of another version, or of a kind that is not wanted.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_NBYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes", wanted=f"a result of at most {MAX_NBYTES}")
        record = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", wanted="a result of depth-bench") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error})", wanted="a result of depth-bench") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path} is no result of depth-bench", wanted=f'"format": "{FORMAT}"')
    if record.get("version") != VERSION:
        raise InputError(f"{path} is of version {record.get('version')!r}", wanted=f"version {VERSION}", fix="measure again with this release")
    problem = _problem(record)
    if problem:
        raise InputError(f"{path}: {problem}", wanted="what schemas/result.schema.json says")
    if record["kind"] not in kinds:
        raise InputError(f"{path} holds a result of kind {record['kind']!r}", wanted=" or ".join(kinds))
    return record


def _problem(record: dict[str, Any]) -> str:
    """What of a record is not as the readers of this package count on; the schema says more."""
    meta = record.get("meta")
    if record.get("kind") not in KINDS or not isinstance(meta, dict) or not isinstance(meta.get("argv"), list) or not isinstance(meta.get("date"), str):
        return "kind or meta are broken"
    if record["kind"] == "study":
        return "" if isinstance(record.get("results"), dict) else "results are missing"
    rows = record.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows):
        return "rows are broken"
    if not isinstance(record.get("system"), dict):
        return "system is missing"
    return ""
