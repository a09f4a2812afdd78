"""How long every stage takes in every precision on a real card: what a search decides by where there is one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.artefact.manifest import SHA256, BundleManifest
from ...runtime.artefact.spec import PRECISIONS, fields
from ...runtime.errors import InputError
from ..artefact import read_artefact, require_model, write_artefact

FORMAT, VERSION = "fathom-stage-times", 1
MAX_TIMES_BYTES = 1 << 20
MAKE = "make it on the card: depth-build BUNDLE --backend tensorrt --stage-times times.json"


@dataclass(frozen=True)
class StageTimes:
    """Times of whole stages.

    Args:
        device: which card, and what ran the engines, in words.
        stages: stage -> precision -> milliseconds of one run on the device.
        model_sha256: see ``artefact.model_fingerprint``.
    """

    device: str
    stages: dict[str, dict[str, float]]
    model_sha256: str

    def __post_init__(self):
        if not SHA256.fullmatch(self.model_sha256):
            raise ValueError(f"not a SHA-256: {self.model_sha256!r}")
        for stage, times in self.stages.items():
            if not isinstance(times, dict) or set(times) - set(PRECISIONS):
                raise ValueError(f"stages.{stage}: milliseconds by precision were wanted")
            for precision, ms in times.items():
                if not isinstance(ms, (int, float)) or isinstance(ms, bool) or not math.isfinite(ms) or not 0 < ms < 1e9:
                    raise ValueError(f"stages.{stage}.{precision}: {ms!r} is no number of milliseconds")

    def compares(self, stage: str) -> bool:
        """Whether it is known what INT8 saves in a stage."""
        return {"fp16", "int8"} <= set(self.stages.get(stage, {}))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"format": FORMAT, "version": VERSION, "model_sha256": self.model_sha256, "device": self.device, "stages": self.stages}

    @classmethod
    def from_json(cls, data: Any) -> StageTimes:
        """From JSON values.

        Raises:
            ValueError: if it is another format or version, or a key is missing, unknown or of the wrong kind.
        """
        form, version, model, device, stages = fields(data, "stage times", format=str, version=int, model_sha256=str, device=str, stages=dict)
        if (form, version) != (FORMAT, VERSION):
            raise ValueError(f"format {form!r} version {version}, wanted {FORMAT!r} version {VERSION}")
        return cls(device, stages, model)


def write_stage_times(times: StageTimes, path: str | Path, force: bool = False) -> None:
    """Write the times; see ``write_artefact``."""
    write_artefact(times.to_json(), path, force)


def read_stage_times(path: str | Path, manifest: BundleManifest) -> StageTimes:
    """Read times, and check that they are of this network.

    Raises:
        InputError: if the file is missing, holds no stage times of a known version, or those of another network.
    """
    times = read_artefact(path, StageTimes.from_json, "holds no stage times", MAX_TIMES_BYTES, MAKE)
    require_model(path, times.model_sha256, manifest, "times", MAKE, how="was measured with")
    if unknown := set(times.stages) - {stage.spec.name for stage in manifest.stages}:
        raise InputError(f"{path} names the stage {sorted(unknown)[0]}, which the bundle does not have", fix=MAKE)
    return times
