"""What every worker of a run is told, and the record that says what the files in a folder are."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import whole_file

if TYPE_CHECKING:
    from ..photo.depth_map import Intrinsics
    from ..scale.camera_scale import CameraScale

RECORD, LOCK, BROKEN = "_depth-run.json", "_depth-run.lock", "_broken.parquet"  # readers of Parquet folders pass over names that begin so
MOST_RECORD_BYTES = 1 << 16
COLORS = ("colormap", "near", "far")  # not in the record of a folder without colour pictures


@dataclass(frozen=True)
class FleetJob:
    """One run, the same for every worker.

    Args:
        run: random name of this run.
        plan: path of the plan or bundle.
        manifest_sha256: of its manifest.
        out: folder of the files, or ``""`` if maps travel on as rows.
        suffixes: kind of file -> its ending, for the kinds that are written.
        protocol, scale, mask_edges, prompt: as in ``Pipeline``.
        camera: likewise, or ``exif_camera.EXIF``.
        colormap, near, far: of colour pictures.
        device, threads, batch, streams: as in ``Pipeline.open``.
        force: redo what is there.
    """

    run: str
    plan: str
    manifest_sha256: str
    out: str
    suffixes: tuple[tuple[str, str], ...]
    protocol: str
    camera: Intrinsics | str | None = None
    scale: CameraScale | None = None
    mask_edges: bool = False
    prompt: str | None = None
    colormap: str = "turbo"
    near: float | None = None
    far: float | None = None
    device: str | None = None
    threads: int | None = None
    batch: int | None = None
    streams: int = 1
    force: bool = False

    def targets(self, name: str) -> dict[str, Path]:
        """The files of one photo by kind."""
        return {kind: Path(self.out) / (name + suffix) for kind, suffix in self.suffixes}

    def record(self) -> dict[str, Any]:
        """Everything that changes what the results say, as JSON values."""
        camera = asdict(self.camera) if is_dataclass(self.camera) else self.camera
        scale = "" if self.scale is None else self.scale.words
        colors = {key: getattr(self, key) for key in COLORS} if "color" in dict(self.suffixes) else {}
        facts = {"manifest_sha256": self.manifest_sha256, "save": [kind for kind, _ in self.suffixes] or ["parquet"], "protocol": self.protocol}
        return {**facts, "intrinsics": camera, "scale": scale, "mask_edges": self.mask_edges, "prompt": self.prompt, **colors}

    def changed(self, before: dict[str, Any]) -> set[str]:
        """What an earlier record says otherwise of the results, but for which kinds of files they are; one without colour pictures says nothing of
        their colours."""
        now = self.record()
        return {key for key in now if key != "save" and before.get(key, now[key] if key in COLORS else None) != now[key]}

    def record_bytes(self) -> bytes:
        """The record as it is written."""
        return _written(self.record())

    def refuse_other(self, raw: bytes, where: str) -> None:
        """Results of one folder mean the same, or the run does not start.

        Args:
            raw: the record of an earlier run.

        Raises:
            InputError: if it was made with another plan or other options; the first difference is named.
        """
        try:
            before = json.loads(raw[:MOST_RECORD_BYTES])
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is no record of depth-run ({error})", fix="another --output") from error
        now = self.record()
        for key in sorted({*before, *now}) if isinstance(before, dict) else ("record",):
            if not isinstance(before, dict) or before.get(key) != now.get(key):
                was = f"the results in {where.rpartition('/')[0]} were made with another {key.replace('_', ' ')}"
                raise InputError(was, wanted="one meaning per folder", fix="another --output, or --force to make them all again")


def read_record(raw: bytes | None) -> dict[str, Any]:
    """What a record says; empty if there is none, or it is no record."""
    with suppress(ValueError, RecursionError):
        found = json.loads(raw or b"")
        return found if isinstance(found, dict) else {}
    return {}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a folder's results, in place of an earlier one.

    Raises:
        InputError: if it cannot be written.
    """
    with whole_file(folder / RECORD, force=True) as part:
        part.write_bytes(_written(record))


def _written(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
