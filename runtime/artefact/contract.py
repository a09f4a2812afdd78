"""How a network's input is made and what its output means, as data that travels in the bundle and the plan.

``Protocol.steps`` shape a photo, ``Protocol.lefts`` cut windows from it, ``ImageInput`` makes each window a tensor; the depth of the
windows goes back through the same steps, in reverse, onto the photo's own pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Union

from .spec import NAME, TENSOR_NAME, fields
from .text_input import TextInput

INTERPOLATIONS = ("bilinear", "bilinear-corners", "bilinear-antialias", "bicubic-antialias", "nearest")
ANCHORS = ("center", "bottom-center", "top-left")
MAX_PIXELS_PER_SIDE = 1 << 14
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels as shares of 1, red, green, blue


def _side(value: int, what: str, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_PIXELS_PER_SIDE:
        raise ValueError(f"{what}: {value!r} is no number of pixels from {least} to {MAX_PIXELS_PER_SIDE}")


def _finite(values: tuple[float, ...], what: str, count: int) -> None:
    if len(values) != count or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        raise ValueError(f"{what}: {count} finite numbers were wanted, got {values!r}")


def _values_of(part: Any) -> dict[str, Any]:
    return {name: list(v) if isinstance(v := getattr(part, name), tuple) else v for name in part.__dataclass_fields__}


@dataclass(frozen=True)
class Require:
    """The picture must have exactly this size in pixels, else the protocol does not apply to it. This and every step raises ValueError if a
    number is none of pixels, from 0 or 1 to ``MAX_PIXELS_PER_SIDE``."""

    height: int
    width: int
    op = "require"

    def __post_init__(self):
        _side(self.height, "require.height"), _side(self.width, "require.width")


@dataclass(frozen=True)
class Resize:
    """Resize to ``height`` x ``width``; with ``width`` 0, in proportion but to at least ``min_width``.

    ``interpolation``: ``bilinear`` samples half-pixel centres without filtering (PyTorch ``align_corners=False``, OpenCV),
    ``bilinear-corners`` is PyTorch ``align_corners=True``, the ``-antialias`` kinds filter as Pillow does.
    """

    height: int
    width: int
    interpolation: str
    min_width: int = 0
    op = "resize"

    def __post_init__(self):
        _side(self.height, "resize.height"), _side(self.width, "resize.width", 0), _side(self.min_width, "resize.min_width", 0)
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"resize.interpolation: {self.interpolation!r}, wanted one of {', '.join(INTERPOLATIONS)}")


@dataclass(frozen=True)
class Crop:
    """Cut a ``height`` x ``width`` part, ``top`` and ``left`` pixels from the anchor's place.

    ``top-left`` counts from the corner; ``center`` from the centred place; ``bottom-center`` from the bottom edge and the
    horizontal middle (the KITTI benchmark crop). Offsets are rounded down.
    """

    height: int
    width: int
    anchor: str
    top: int = 0
    left: int = 0
    op = "crop"

    def __post_init__(self):
        _side(self.height, "crop.height"), _side(self.width, "crop.width"), _side(self.top, "crop.top", 0), _side(self.left, "crop.left", 0)
        if self.anchor not in ANCHORS:
            raise ValueError(f"crop.anchor: {self.anchor!r}, wanted one of {', '.join(ANCHORS)}")
        if self.anchor != "top-left" and (self.top or self.left):
            raise ValueError("crop: offsets go with the anchor top-left only")


@dataclass(frozen=True)
class Pad:
    """Add black pixels (0 before normalisation) around the picture."""

    top: int
    left: int
    bottom: int
    right: int
    op = "pad"

    def __post_init__(self):
        for side in ("top", "left", "bottom", "right"):
            _side(getattr(self, side), f"pad.{side}", 0)


Step = Union[Require, Resize, Crop, Pad]
STEPS: dict[str, type] = {kind.op: kind for kind in (Require, Resize, Crop, Pad)}


def step_to_json(step: Step) -> dict[str, Any]:
    """As JSON values, ``op`` first."""
    return {"op": step.op, **{name: getattr(step, name) for name in step.__dataclass_fields__}}


def step_from_json(data: Any) -> Step:
    """From JSON values.

    Raises:
        ValueError: if the op is unknown, or a key is missing, unknown or of the wrong kind.
    """
    kind = STEPS.get(data.get("op")) if isinstance(data, dict) and isinstance(data.get("op"), str) else None
    if kind is None:
        raise ValueError(f"unknown preprocessing step {data!r}, wanted an op of {', '.join(STEPS)}")
    kinds = {name: (str if name in ("interpolation", "anchor") else int) for name in kind.__dataclass_fields__}
    return kind(*fields(data, kind.op, op=str, **kinds)[1:])


@dataclass(frozen=True)
class ImageInput:
    """How one window of pixels becomes the network's tensor [batch, 3, canvas height, canvas width], float32, RGB.

    Args:
        tensor: name of the input tensor.
        window: height and width in pixels of what the network is given of the shaped picture at once.
        canvas: height and width of the tensor; the window lies at the top left, the rest is 0 *after* normalisation.
        mean, std: per channel, for values in [0, 1]: ``(x - mean) / std``.

    Raises:
        ValueError: if a value is not of that form, or the window is larger than the canvas.
    """

    tensor: str
    window: tuple[int, int]
    canvas: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self):
        if not isinstance(self.tensor, str) or not TENSOR_NAME.fullmatch(self.tensor):
            raise ValueError(f"input.tensor: {self.tensor!r} is no tensor name")
        for what in ("window", "canvas"):
            if len(getattr(self, what)) != 2:
                raise ValueError(f"input.{what}: height and width were wanted")
            for side in getattr(self, what):
                _side(side, f"input.{what}")
        if self.window[0] > self.canvas[0] or self.window[1] > self.canvas[1]:
            raise ValueError(f"input: the window {self.window} does not fit on the canvas {self.canvas}")
        _finite(self.mean, "input.mean", 3)
        _finite(self.std, "input.std", 3)
        if min(self.std) <= 0:
            raise ValueError(f"input.std: positive numbers were wanted, got {self.std}")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return _values_of(self)

    @classmethod
    def from_json(cls, data: Any) -> ImageInput:
        """From JSON values.

        Raises:
            ValueError: if a key is missing, unknown or of the wrong kind.
        """
        tensor, *rest = fields(data, "input", tensor=str, window=list, canvas=list, mean=list, std=list)
        return cls(tensor, *map(tuple, rest))


@dataclass(frozen=True)
class OutputContract:
    """What the numbers of the output tensor mean.

    Args:
        tensor: name of the output tensor: [batch, 1, h, w] for depth, [batch, 2, h, w] logits (background, object) for a mask.
        kind: ``metric`` (metres), ``relative`` (order only, no unit) or ``mask``.
        unit: ``"m"`` for metric output, else ``""``.
        near, far: the range the network was trained for, in metres for metric output, else in the output's own scale. Not a clamp.
        larger_is: ``"far"`` (depth) or ``"near"`` (disparity-like); ``""`` for a mask.
        upsample: interpolation that brings [h, w] to the window's size.
        focal_px: 0, or for metric output the focal length of the camera that the numbers are for: metres are value fx / focal_px, with
            fx of the photo's camera in pixels of the shaped picture.
        focal_assumed: a photo whose camera nobody knows is taken for one of that camera; else its camera must be given.

    Raises:
        ValueError: if a value is not of that form, or unit, ``larger_is``, ``focal_px`` or ``focal_assumed`` does not go with the rest.
    """

    tensor: str
    kind: str
    unit: str
    near: float
    far: float
    larger_is: str
    upsample: str
    focal_px: float = 0.0
    focal_assumed: bool = False

    def __post_init__(self):
        if not isinstance(self.tensor, str) or not TENSOR_NAME.fullmatch(self.tensor):
            raise ValueError(f"output.tensor: {self.tensor!r} is no tensor name")
        if self.kind not in ("metric", "relative", "mask"):
            raise ValueError(f"output.kind: {self.kind!r}, wanted metric, relative or mask")
        if self.unit != ("m" if self.kind == "metric" else ""):
            raise ValueError(f"output.unit: {self.unit!r} does not go with {self.kind} output; only metric output has a unit, and it is 'm'")
        _finite((self.near, self.far), "output.near and far", 2)
        if not 0 <= self.near < self.far:
            raise ValueError(f"output: 0 <= near < far was wanted, got {self.near} and {self.far}")
        wanted = ("",) if self.kind == "mask" else ("far",) if self.kind == "metric" else ("far", "near")
        if self.larger_is not in wanted:
            raise ValueError(f"output.larger_is: {self.larger_is!r}, wanted {' or '.join(map(repr, wanted))} for {self.kind} output")
        if self.upsample not in ("bilinear", "bilinear-corners", "nearest"):
            raise ValueError(f"output.upsample: {self.upsample!r}, wanted bilinear, bilinear-corners or nearest")
        if not isinstance(self.focal_px, (int, float)) or not (self.focal_px == 0 or (self.kind == "metric" and 1 <= self.focal_px < math.inf)):
            raise ValueError(f"output.focal_px: {self.focal_px!r}, wanted 0, or for metric output a focal length of at least 1 pixel")
        if not isinstance(self.focal_assumed, bool) or (self.focal_assumed and not self.focal_px):
            raise ValueError(f"output.focal_assumed: {self.focal_assumed!r}, wanted true or false, and true only with a focal_px")

    def to_json(self) -> dict[str, Any]:
        """As JSON values; ``focal_px`` and ``focal_assumed`` only where there is one."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if not name.startswith("focal_") or getattr(self, name)}

    @classmethod
    def from_json(cls, data: Any) -> OutputContract:
        """From JSON values.

        Raises:
            ValueError: if a key is missing, unknown or of the wrong kind.
        """
        number = (int, float)
        kinds = {"tensor": str, "kind": str, "unit": str, "near": number, "far": number, "larger_is": str, "upsample": str}
        kinds.update({name: kind for name, kind in (("focal_px", number), ("focal_assumed", bool)) if isinstance(data, dict) and name in data})
        return cls(**dict(zip(kinds, fields(data, "output", **kinds))))


@dataclass(frozen=True)
class Protocol:
    """How a whole photo is shaped and cut into windows for the network, and its map put together from theirs.

    Args:
        name: lower-case words joined by hyphens.
        steps: applied to the photo in order; undone in reverse on the depth map.
        lefts: left edges of full-height windows on the shaped picture; their overlaps are averaged.
        fill_lefts: windows that only fill columns no window of ``lefts`` covers (the published code leaves them NaN).
        flip: every window also runs mirrored, and both maps are averaged.
        source: where the protocol comes from.

    Raises:
        ValueError: if a value is not of that form, or there are more than 16 steps or 256 windows.
    """

    name: str
    steps: tuple[Step, ...]
    lefts: tuple[int, ...]
    fill_lefts: tuple[int, ...]
    flip: bool
    source: str

    def __post_init__(self):
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name.replace("-", "_")):
            raise ValueError(f"not a protocol name: {self.name!r}")
        if not self.lefts or len(self.lefts) + len(self.fill_lefts) > 256:
            raise ValueError(f"protocol {self.name}: 1 to 256 windows were wanted")
        for left in self.lefts + self.fill_lefts:
            _side(left, f"protocol {self.name}: window", 0)
        if len(self.steps) > 16:
            raise ValueError(f"protocol {self.name}: at most 16 steps")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**_values_of(self), "steps": [step_to_json(step) for step in self.steps]}

    @classmethod
    def from_json(cls, data: Any) -> Protocol:
        """From JSON values.

        Raises:
            ValueError: if a key is missing, unknown or of the wrong kind.
        """
        kinds = {"name": str, "steps": list, "lefts": list, "fill_lefts": list, "flip": bool, "source": str}
        name, steps, lefts, fill_lefts, flip, source = fields(data, "protocol", **kinds)
        return cls(name, tuple(map(step_from_json, steps)), tuple(lefts), tuple(fill_lefts), flip, source)


@dataclass(frozen=True)
class Contract:
    """Input, output and protocols of a network; the first protocol is the default. ``text`` is there if it takes words too.

    Raises:
        ValueError: if there is no protocol, or a name is used twice.
    """

    input: ImageInput
    output: OutputContract
    protocols: tuple[Protocol, ...]
    text: TextInput | None = None

    def __post_init__(self):
        names = [protocol.name for protocol in self.protocols]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"protocols with different names were wanted, got {names}")
        if self.text and self.input.tensor in (self.text.ids, self.text.mask):
            raise ValueError(f"the tensor {self.input.tensor} cannot be picture and text at once")

    def to_json(self) -> dict[str, Any]:
        """As JSON values; also the form of the file that ``depth-export --contract`` reads."""
        data = {"input": self.input.to_json(), "output": self.output.to_json(), "protocols": [p.to_json() for p in self.protocols]}
        return {**data, **({"text": self.text.to_json()} if self.text else {})}

    @classmethod
    def from_json(cls, data: Any) -> Contract:
        """From JSON values.

        Raises:
            ValueError: if a key is missing, unknown or of the wrong kind.
        """
        kinds = {"input": dict, "output": dict, "protocols": list}
        if isinstance(data, dict) and "text" in data:
            kinds["text"] = dict
        image, output, protocols, *text = fields(data, "contract", **kinds)
        return cls(ImageInput.from_json(image), OutputContract.from_json(output), tuple(map(Protocol.from_json, protocols)), *map(TextInput.from_json, text))
