"""QuantizeLinear and DequantizeLinear with gradients: rounding counts as the identity, clipping as what it is."""

from __future__ import annotations

import torch
from torch import Tensor

from ...calibration.quantisation.formats import LEAST_WEIGHT_SCALE, Format


def on_grid(values: Tensor, scale: Tensor, form: Format) -> Tensor:
    """What QuantizeLinear stores, as float32, with straight-through gradients (Bengio et al. 2013).

    ``q = round(clip(v / s, l, g))``, and ``dq/d(v / s)`` is 1 from ``l`` to ``g`` and 0 beyond.

    Args:
        scale: broadcast against ``values``.
    """
    scaled = torch.clamp(values / scale, form.least, form.greatest)
    rounded = torch.round(scaled) if form.step else scaled.to(torch.float8_e4m3fn).to(torch.float32)
    return scaled + (rounded - scaled).detach()


def weight_scales(weight: Tensor, axis: int | None, form: Format) -> Tensor:
    """Scales of a weight as ``formats.weight_scales`` and ``block_scales`` find them, shaped like the weight and 1 where one scale serves all of an axis;
    no gradient reaches them."""
    weight = weight.detach()
    if form.block:
        shape = list(weight.shape)
        shape[axis : axis + 1] = [shape[axis] // form.block, form.block]
        found = _scales(weight.reshape(shape).abs().amax(dim=axis + 1), form)
        return found.repeat_interleave(form.block, dim=axis)
    others = [place for place in range(weight.ndim) if place != axis]
    return _scales(weight.abs().amax(dim=others, keepdim=True), form)


def _scales(amax: Tensor, form: Format) -> Tensor:
    return fp16_upwards(torch.where(amax > 0, torch.clamp(amax / form.greatest, min=LEAST_WEIGHT_SCALE), torch.ones_like(amax)))


def fp16_upwards(scales: Tensor) -> Tensor:
    """The next FP16 number that is not smaller, float32; a positive number beyond FP16 stays as it is."""
    half = scales.half()
    next_one = (half.view(torch.int16) + 1).view(torch.float16)  # of positive numbers the bits count upwards
    up = torch.where(half.float() < scales, next_one, half).float()
    return torch.where(torch.isfinite(up), up, scales)
