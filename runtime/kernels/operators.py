"""The structs and launches of the operators in ``trt_plugins/csrc``: what a kernel stage between two engines starts.

Tensors are FP16 or FP32, all of one call alike; addresses are device addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .device_kernels import Launch

BINS_EXPECTATION = np.dtype(
    [
        *((name, "<u8") for name in ("shape", "centers", "attractors", "depth")),
        *((name, "<i4") for name in ("batch", "height", "width", "middle_height", "middle_width", "coarse_height", "coarse_width")),
        *((name, "<i4") for name in ("attractor_count", "channels_last", "is_half")),
        *((name, "<f4") for name in ("alpha", "least_temperature", "greatest_temperature")),
    ],
    align=True,
)
BINS, TILE_WIDTH, TILE_HEIGHT = 64, 32, 8  # as in bins_expectation.cuh


def launch_bins_expectation(
    launch: Launch,
    addresses: tuple[int, int, int, int],
    shapes: Sequence[Sequence[int]],
    is_fp16: bool,
    constants: tuple[float, float, float],
    channels_last: bool = False,
) -> None:
    """Depth from the log-binomial's raw numbers, coarse bin centres and raw attractors.

    Args:
        addresses: of shape, centers, attractors and depth.
        shapes: of the first three: [B, 4, H, W], [B, 64, h, w] and [B, n, u, v]; the depth is [B, 1, H, W].
        constants: strength of the attractors, least and greatest temperature.
        channels_last: channels innermost; with FP16 padded to a multiple of eight.

    Raises:
        ValueError: if the shapes do not go together or a grid shrinks towards the full size.
    """
    (batch, four, height, width), (b2, bins, coarse_height, coarse_width), (b3, count, middle_height, middle_width) = shapes
    grows = coarse_height <= middle_height <= height and coarse_width <= middle_width <= width
    if (four, bins) != (4, BINS) or not batch == b2 == b3 or count < 1 or not grows:
        raise ValueError(f"wanted [B, 4, H, W], [B, {BINS}, h, w] and [B, n, u, v] with h <= u <= H and w <= v <= W, got {[list(s) for s in shapes]}")
    record = np.zeros((), BINS_EXPECTATION)
    record["shape"], record["centers"], record["attractors"], record["depth"] = addresses
    record["batch"], record["height"], record["width"] = batch, height, width
    record["middle_height"], record["middle_width"], record["attractor_count"] = middle_height, middle_width, count
    record["coarse_height"], record["coarse_width"] = coarse_height, coarse_width
    record["alpha"], record["least_temperature"], record["greatest_temperature"] = constants
    record["channels_last"], record["is_half"] = channels_last, is_fp16
    launch("fathom_bins_expectation", (-(-width // TILE_WIDTH), -(-height // TILE_HEIGHT), batch), (TILE_WIDTH * TILE_HEIGHT, 1, 1), record)
