"""The correction of one camera's metres: depth_m = scale * (depth from the network) + shift_m. Stored beside a plan, never in it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, UsageError
from ..files import read_text, whole_file

FORM = "fathom-scale/1"
MAX_BYTES = 1 << 20
LEAST, GREATEST = 0.05, 20.0  # beyond, it is a mistake of units, not of a camera
GREATEST_SHIFT_M = 10.0
CAMERA_TOLERANCE = 0.02  # of focal lengths in widths of the photo: beyond, it is another camera
SUFFIX = ".scale.json"
SCALE_NAME = "scale.json"  # in a folder of results that were corrected


@dataclass(frozen=True)
class CameraScale:
    """A correction of metric depth.

    Args:
        scale: factor, 0.05 to 20.
        shift_m: added after the factor, metres, -10 to 10.
        name: what outputs call it: the file's name, or what was typed.
        network, manifest_sha256, protocol, scene: what it was measured with; empty for one that was typed, the scene for networks that know none.
        fx: focal length of the measured photos in pixels, and their ``width``; 0 if the camera was not known.
        measurements, photos: how many it was fitted to.
        error_before, error_after: mean of |log(measured / depth)| without and with it.
    """

    scale: float
    shift_m: float = 0.0
    name: str = ""
    network: str = ""
    manifest_sha256: str = ""
    protocol: str = ""
    scene: str = ""
    fx: float = 0.0
    width: int = 0
    measurements: int = 0
    photos: int = 0
    error_before: float = 0.0
    error_after: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, text = getattr(self, field.name), field.type == "str"
            if text != isinstance(value, str) or (not text and (isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value))):
                raise ValueError(f"scale.{field.name}: {'a text' if text else 'a finite number'} was wanted, got {value!r}")
        if not LEAST <= self.scale <= GREATEST:
            raise ValueError(f"a scale of {self.scale:g}: {LEAST:g} to {GREATEST:g} was wanted (metres, not millimetres?)")
        if abs(self.shift_m) > GREATEST_SHIFT_M:
            raise ValueError(f"a shift of {self.shift_m:g} m: -{GREATEST_SHIFT_M:g} to {GREATEST_SHIFT_M:g} was wanted")

    @property
    def words(self) -> str:
        """For outputs: ``depth_m = 1.4286 * network + 0.05 (hall.scale.json)``."""
        shift = f" {'-' if self.shift_m < 0 else '+'} {abs(self.shift_m):.6g}" if self.shift_m else ""
        return f"depth_m = {self.scale:.6g} * network{shift} ({self.name or 'given'})"

    def refuse_other(self, network: str, protocol: str, scene: str = "", fx: float = 0.0, width: int = 0) -> None:
        """Raise unless it was measured with this network, protocol, scene and (where both are known) camera.

        Args:
            scene: the kind of room that the network is told or was built for, which changes what it says; empty for networks that know none.
            fx, width: of the camera in use, pixels; 0 if not known.

        Raises:
            InputError: if it was not.
        """
        for what, was, now in (("network", self.network, network), ("protocol", self.protocol, protocol), ("scene", self.scene, scene)):
            if was and was != now:
                wanted = f"one for {now}" if now else f"one without a {what}"
                raise InputError(f"{self.name} was measured with the {what} {was}", wanted=wanted, fix="depth-calibrate-scale with this plan")
        if self.fx and fx:
            was, now = (self.fx / self.width, fx / width) if self.width and width else (self.fx, fx)  # per width, if both widths are known
            if abs(now / was - 1) > CAMERA_TOLERANCE:
                raise InputError(f"{self.name} was measured with another camera (focal length {self.fx:g} px, here {fx:g} px)", wanted="one per camera")

    def write(self, path: str | Path, force: bool = False) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            InputError: if the file exists and ``force`` is False, or cannot be written.
        """
        with whole_file(path, force) as part:
            part.write_text(self.json())

    def json(self) -> str:
        """The JSON text that ``write`` writes."""
        return json.dumps({"form": FORM, **dataclasses.asdict(self)}, indent=1) + "\n"


def beside(plan: str | Path) -> Path:
    """Where the correction for a plan or bundle lies unless told otherwise: ``x.plan`` has ``x.scale.json``."""
    path = Path(plan)
    path = path if path.name not in ("", "..") else path.resolve()  # a folder that is named as "." has a name too
    return path.parent / ((path.stem if path.is_file() else path.name) + SUFFIX)


def read_scale(argument: str) -> CameraScale:
    """Understand a factor (``1.4``), a factor and a shift in metres (``1.4,0.05``), or the path of a file.

    Raises:
        UsageError: if it is none of these, or numbers that no camera has.
        InputError: if the file holds no correction.
    """
    path = Path(argument)
    if not path.is_file():
        try:
            if argument.count(",") > 1:
                raise ValueError("more than two numbers")
            scale, shift_m = [*map(float, argument.split(",")), 0.0][:2]
            return CameraScale(scale, shift_m, f"--scale {argument}")
        except ValueError as error:
            raise UsageError(f"--scale {argument}: {error}", wanted="a factor, factor,shift in metres, or a file of depth-calibrate-scale") from error
    try:
        data = json.loads(read_text(path, MAX_BYTES))
        if not isinstance(data, dict) or data.pop("form", None) != FORM:
            raise ValueError(f"its form is not {FORM}")
        return dataclasses.replace(CameraScale(**data), name=path.name)
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} holds no scale ({error})", wanted="a file that depth-calibrate-scale wrote") from error
