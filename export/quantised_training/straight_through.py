"""QuantizeLinear and DequantizeLinear with gradients: rounding counts as the identity, clipping as what it is."""

from __future__ import annotations

import torch
from torch import Tensor

from ...calibration.quantisation.formats import LEAST_ACTIVATION_SCALE, LEAST_WEIGHT_SCALE, Format


def on_grid(values: Tensor, scale: Tensor, form: Format) -> Tensor:
    """What QuantizeLinear stores, as float32, with straight-through gradients (Bengio et al. 2013).

    ``q = round(clip(v / s, l, g))``, and ``dq/d(v / s)`` is 1 from ``l`` to ``g`` and 0 beyond. With ``v' = q s`` behind it, the gradient with respect to
    the scale is that of LSQ (Esser et al. 2020, equation 3): ``round(v / s) - v / s`` inside, ``l`` or ``g`` beyond.

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


def activation_scale(log_amax: Tensor, form: Format) -> Tensor:
    """Scale of an activation whose magnitude ``exp(log_amax)`` becomes the format's greatest, as ``formats.activation_scale`` finds it; its rounding to FP16
    counts as the identity."""
    scale = torch.clamp(torch.exp(log_amax) / form.greatest, min=LEAST_ACTIVATION_SCALE)
    return scale + (fp16_upwards(scale.detach()) - scale).detach()


def fp16_upwards(scales: Tensor) -> Tensor:
    """The next FP16 number that is not smaller, float32; a positive number beyond FP16 stays as it is."""
    half = scales.half()
    next_one = (half.view(torch.int16) + 1).view(torch.float16)  # of positive numbers the bits count upwards
    up = torch.where(half.float() < scales, next_one, half).float()
    return torch.where(torch.isfinite(up), up, scales)
