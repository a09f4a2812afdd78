"""How long every stage takes in every precision on a real card: what a search decides by where there is one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..runtime.files import whole_file
from ..runtime.manifest import SHA256, BundleManifest
from ..runtime.spec import PRECISIONS, fields
from .table import model_fingerprint

FORMAT, VERSION = "fathom-stage-times", 1
MAX_TIMES_BYTES = 1 << 20
MAKE = "make it on the card: depth-build BUNDLE --backend tensorrt --stage-times times.json"


@dataclass(frozen=True)
class StageTimes:
    """Times of whole stages.

    Args:
        device: which card, and what ran the engines, in words.
        stages: stage -> precision -> milliseconds of one run on the device.
        model_sha256: see ``table.model_fingerprint``.
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
    """Write the times; the file appears when it is whole.

    Raises:
        InputError: if the file exists and ``force`` is False, or cannot be written.
    """
    with whole_file(path, force) as part:
        part.write_text(json.dumps(times.to_json(), indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_stage_times(path: str | Path, manifest: BundleManifest) -> StageTimes:
    """Read times, and check that they are of this network.

    Raises:
        InputError: if the file is missing, holds no stage times of a known version, or those of another network.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_TIMES_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes", wanted=f"at most {MAX_TIMES_BYTES}", mend=MAKE)
        times = StageTimes.from_json(json.loads(path.read_bytes()))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", mend=MAKE) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} holds no stage times ({error})", mend=MAKE) from error
    if times.model_sha256 != (wanted := model_fingerprint(manifest)):
        raise InputError(f"{path} was measured with the network {times.model_sha256[:12]}…", wanted=f"times of this bundle ({wanted[:12]}…)", mend=MAKE)
    if unknown := set(times.stages) - {stage.spec.name for stage in manifest.stages}:
        raise InputError(f"{path} names the stage {sorted(unknown)[0]}, which the bundle does not have", mend=MAKE)
    return times
