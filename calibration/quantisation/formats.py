"""The number formats that a layer can be quantised to: their grids, and how ONNX stores them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

LEAST_ACTIVATION_SCALE = 2.0**-14  # the smallest normal FP16 number
LEAST_WEIGHT_SCALE = 2.0**-20


@dataclass(frozen=True)
class Format:
    """A symmetric grid of numbers.

    Args:
        name: as in a precision plan.
        kind: ONNX element type.
        greatest: what the end of a range becomes.
        least: the smallest number; QuantizeLinear clips there.
        step: 1 for integers, 0 for a floating-point grid.
        opset: the first in which Q/DQ know it with FP16 scales.
        block: weights have a scale for so many input channels each; 0 for one scale per output channel.
        activations: whether they are quantised as well; otherwise the layer computes in FP16 and only its weight is smaller.
        most_taps: places of the greatest convolution kernel that TensorRT computes in it; 0 for any. Such a format has no kernels for grouped ones either.
    """

    name: str
    kind: int
    greatest: float
    least: float
    step: int
    opset: int = 19
    block: int = 0
    activations: bool = True
    most_taps: int = 0

    @property
    def dtype(self) -> np.dtype:
        """Of stored values, one a byte at least."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.kind))

    def on_grid(self, values: np.ndarray, scales: np.ndarray, least: float | None = None) -> np.ndarray:
        """What QuantizeLinear stores, as float32: divided, rounded half to even, clipped.

        Args:
            scales: of the same number of dimensions, or a scalar.
            least: clip there instead.
        """
        found = np.clip(np.asarray(values, np.float32) / scales, self.least if least is None else least, self.greatest)
        return np.rint(found) if self.step else found.astype(self.dtype).astype(np.float32)

    def rounded(self, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """What DequantizeLinear gives back, float32."""
        return (self.on_grid(values, scales) * scales).astype(np.float32)


INT8 = Format("int8", TensorProto.INT8, 127, -128, 1)
# E4M3: 4 bits of exponent, 3 of mantissa, no infinity. TensorRT's release notes (10.16.1): no FP8 kernels above 32 places (7 x 7), nor for groups.
FP8 = Format("fp8", TensorProto.FLOAT8E4M3FN, 448, -448, 0, most_taps=32)
INT4 = Format("int4", TensorProto.INT4, 7, -8, 1, opset=21, block=64, activations=False)  # TensorRT takes blocks of 64 or 128
FORMATS = {form.name: form for form in (INT8, FP8, INT4)}


def weight_scales(weight: np.ndarray, axis: int | None, form: Format = INT8) -> np.ndarray:
    """Scale per output channel (or one), float32, such that the greatest weight becomes the format's greatest; a channel of zeros gets 1."""
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    amax = np.maximum(weight.max(axis=others), -weight.min(axis=others)).astype(np.float32)
    return _scales(amax, form)


def block_scales(weight: np.ndarray, axis: int, form: Format = INT4) -> np.ndarray:
    """Scale per block of input channels, float32: the weight's shape, divided by the block along ``axis``."""
    shape = list(weight.shape)
    shape[axis : axis + 1] = [shape[axis] // form.block, form.block]
    return _scales(np.abs(np.asarray(weight, np.float32).reshape(shape)).max(axis=axis + 1), form)


def activation_scale(amax: float, form: Format = INT8) -> np.ndarray:
    """Scale of a tensor whose magnitude ``amax`` becomes the format's greatest, float32 scalar that FP16 holds exactly."""
    return _as_fp16_upwards(np.asarray(max(amax / form.greatest, LEAST_ACTIVATION_SCALE), np.float32)).reshape(())


def quantize_weight(weight: np.ndarray, scales: np.ndarray, axis: int | None, form: Format = INT8) -> np.ndarray:
    """Values of a weight in the format's dtype, with a scale per channel along ``axis``, or for the whole; INT8 within -127 .. 127."""
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    return form.on_grid(weight, scales.reshape(shape), -form.greatest).astype(form.dtype)


def quantize_blocks(weight: np.ndarray, scales: np.ndarray, axis: int, form: Format = INT4) -> np.ndarray:
    """Values of a weight in the format's dtype, with a scale per block along ``axis``."""
    return form.on_grid(weight, np.repeat(scales, form.block, axis)).astype(form.dtype)


def _scales(amax: np.ndarray, form: Format) -> np.ndarray:
    scales = np.where(amax > 0, np.maximum(amax / np.float32(form.greatest), np.float32(LEAST_WEIGHT_SCALE)), np.float32(1))
    return _as_fp16_upwards(scales)


def _as_fp16_upwards(scales: np.ndarray) -> np.ndarray:
    """The next FP16 number that is not smaller: the same scale then serves FP32 and FP16 graphs, and the greatest still suffices."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    up = np.where(half.astype(np.float32) < scales, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)
    return np.where(np.isfinite(up), up, scales).astype(np.float32)
