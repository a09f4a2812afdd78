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
GROUP_NORM = np.dtype(
    [
        *((name, "<u8") for name in ("x", "scale", "shift", "y", "partials")),
        *((name, "<i4") for name in ("batch", "channels", "pixels", "groups", "channels_last", "is_half")),
        ("epsilon", "<f4"),
    ],
    align=True,
)
CROSS_ATTENTION = np.dtype(
    [
        *((name, "<u8") for name in ("query", "keys", "values", "attended", "map")),
        *((name, "<i4") for name in ("batch", "heads", "positions", "width", "tokens", "text_batch", "is_half")),
        ("scale", "<f4"),
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
        constants: strength of the attractors, minimum and maximum temperature.
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


LANES, EIGHT, WHOLE_THREADS, WHOLE_HALVES, WHOLE_FLOATS = 32, 8, 1024, 40960, 16384  # as in group_norm_silu.cuh
CHUNK_THREADS, CHUNK, GREATEST_GROUP, MOMENTS_NBYTES = 256, 8192, 256, 16


def _group_length(shape: Sequence[int], groups: int) -> int:
    """Values of a group of [B, C, ...]."""
    return int(shape[1]) // groups * int(np.prod(shape[2:], dtype=np.int64))


def group_norm_workspace(shape: Sequence[int], groups: int, is_fp16: bool) -> int:
    """Bytes of scratch memory that ``launch_group_norm_silu`` wants for x of a shape [B, C, ...]; 0 if a group fits the registers of a block.

    Raises:
        ValueError: if the channels do not divide into the groups, or a group is too large.
    """
    if groups < 1 or shape[1] % groups or shape[1] // groups > GREATEST_GROUP or _group_length(shape, groups) >= 1 << 31:
        raise ValueError(f"wanted channels in {groups} equal groups of at most {GREATEST_GROUP} channels and 2^31 values, got {list(shape)}")
    length = _group_length(shape, groups)
    return 0 if length <= (WHOLE_HALVES if is_fp16 else WHOLE_FLOATS) else shape[0] * groups * -(-length // CHUNK) * MOMENTS_NBYTES


def launch_group_norm_silu(
    launch: Launch, addresses: tuple[int, int, int, int, int], shape: Sequence[int], groups: int, epsilon: float, is_fp16: bool, channels_last: bool = False
) -> None:
    """SiLU of the group norm of x.

    Args:
        addresses: of x, scale (float32 [C]), shift (float32 [C]), y, and of ``group_norm_workspace`` bytes.
        shape: of x and y, [B, C, ...].
        channels_last: channels innermost; with FP16 padded to a multiple of eight.

    Raises:
        ValueError: as ``group_norm_workspace``.
    """
    workspace = group_norm_workspace(shape, groups, is_fp16)
    record = np.zeros((), GROUP_NORM)
    record["x"], record["scale"], record["shift"], record["y"], record["partials"] = addresses
    record["batch"], record["channels"], record["pixels"] = shape[0], shape[1], np.prod(shape[2:], dtype=np.int64)
    length = _group_length(shape, groups)
    record["groups"], record["channels_last"], record["is_half"], record["epsilon"] = groups, channels_last, is_fp16, epsilon
    if workspace:
        for kernel in ("fathom_group_norm_partial", "fathom_group_norm_apply"):
            launch(kernel, (-(-length // CHUNK), groups, shape[0]), (CHUNK_THREADS, 1, 1), record)
    else:
        warps = -(-length // (LANES * EIGHT))
        launch("fathom_group_norm_silu", (1, groups, shape[0]), (min(warps * LANES, WHOLE_THREADS), 1, 1), record)


ATTENTION_THREADS, POSITIONS, TOKENS, MOST_WIDTH = 256, 16, (40, 80, 128), 256  # as in cross_attention.cuh: a kernel for texts up to so many tokens


def launch_cross_attention(launch: Launch, addresses: tuple[int, int, int, int, int], shapes: Sequence[Sequence[int]], scale: float, is_fp16: bool) -> None:
    """Attention of positions to tokens, and the mean of its probabilities over the heads.

    Args:
        addresses: of query, keys, values, attended and map.
        shapes: of the first three: [B, heads, N, d], [B or 1, heads, d, T], [B or 1, heads, T, d]; attended is as the query, the map [B, N, T].
        scale: of the products before the softmax.

    Raises:
        ValueError: if the shapes do not go together, or there are more than 128 tokens or 256 values a head.
    """
    (batch, heads, positions, width), keys, values = (tuple(shape) for shape in shapes)
    tokens = keys[-1]
    alike = keys == (keys[0], heads, width, tokens) and values == (keys[0], heads, tokens, width) and keys[0] in (1, batch)
    if not alike or not 1 <= tokens <= TOKENS[-1] or not 1 <= width <= MOST_WIDTH:
        wanted = f"[B, h, N, d <= {MOST_WIDTH}], [B or 1, h, d, T <= {TOKENS[-1]}] and [B or 1, h, T, d]"
        raise ValueError(f"wanted {wanted}, got {[list(s) for s in shapes]}")
    record = np.zeros((), CROSS_ATTENTION)
    record["query"], record["keys"], record["values"], record["attended"], record["map"] = addresses
    record["batch"], record["heads"], record["positions"], record["width"], record["tokens"] = batch, heads, positions, width, tokens
    record["text_batch"], record["is_half"], record["scale"] = keys[0], is_fp16, scale
    most = next(most for most in TOKENS if (tokens <= most and is_fp16) or most == TOKENS[-1])
    launch(f"fathom_cross_attention_{most}", (-(-positions // POSITIONS), 1, batch), (ATTENTION_THREADS, 1, 1), record)
