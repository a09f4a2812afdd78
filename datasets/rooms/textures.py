"""Procedural surfaces: colour as a function of a place on the surface, from hashed lattices (no image files)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

TILE_SIDE = 256  # texels of a tile of natural mottling
PATTERNS = (
    "plain",
    "natural",
    "wood",
    "planks",
    "tiles",
    "bricks",
    "stripes",
    "dots",
    "carpet",
    "fabric",
    "plaster",
    "poster",
    "books",
    "grid",
    "marble",
    "sky",
)


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Args:
        pattern: one of ``PATTERNS``.
        base: linear RGB reflectance in [0, 1].
        second: the pattern's other colour.
        scale: size of the pattern's unit, metres.
        seed: of its lattice.
        gloss: strength of the highlight, 0 to 1.
        glow: light the surface gives off itself, as a multiple of its colour.
        mottle: how uneven its tone is: standard deviation of the reflectance's logarithm.
        span: metres after which the unevenness repeats.
    """

    pattern: str
    base: tuple[float, float, float]
    second: tuple[float, float, float] = (0.5, 0.5, 0.5)
    scale: float = 0.3
    seed: int = 0
    gloss: float = 0.0
    glow: float = 0.0
    mottle: float = 0.0
    span: float = 1.5

    def __post_init__(self):
        if self.pattern not in PATTERNS:
            raise ValueError(f"a pattern is one of {', '.join(PATTERNS)}, got {self.pattern!r}")
        if self.scale <= 0:
            raise ValueError(f"a pattern's scale is positive, got {self.scale}")


def lattice(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for every integer place, the same for the same place and seed: float32."""
    h = x.astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1) ^ y.astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA77)
    h = h ^ np.uint32(seed * 2654435761 & 0xFFFFFFFF)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def noise(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Smooth noise in [0, 1) with one lattice cell per unit: float32."""
    left, top = np.floor(x), np.floor(y)
    u, v = x - left, y - top
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    upper = lattice(left, top, seed) * (1 - u) + lattice(left + 1, top, seed) * u
    lower = lattice(left, top + 1, seed) * (1 - u) + lattice(left + 1, top + 1, seed) * u
    return upper * (1 - v) + lower * v


@cache
def natural_tiles(side: int = TILE_SIDE) -> tuple[np.ndarray, ...]:
    """Noise whose amplitude falls as 1 / frequency, as in photos of natural scenes (Field 1987): a tile [side, side] of mean 0 and variance 1 that
    repeats without seams, and its averages over 2 x 2, 4 x 4, ... texels, float32."""
    draw = np.random.Generator(np.random.PCG64(1987))
    row, column = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    frequency = np.hypot(row, column)
    frequency[0, 0] = np.inf
    tile = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((side, side))) / frequency, (side, side))
    tiles = [((tile - tile.mean()) / tile.std()).astype(np.float32)]
    while len(tiles[-1]) > 4:
        tiles.append(tiles[-1].reshape(len(tiles[-1]) // 2, 2, -1, 2).mean((1, 3)))
    return tuple(tiles)


def natural(u: np.ndarray, v: np.ndarray, span: float, seed: int, footprint: np.ndarray) -> np.ndarray:
    """Natural mottling at places u, v (metres): float32 like them, as fine as pixels that cover about ``footprint`` metres can show."""
    tiles = natural_tiles()
    level = int(np.clip(np.round(np.log2(max(float(np.median(footprint)), 1e-6) * TILE_SIDE / span)), 0, len(tiles) - 1))
    side = len(tiles[level])
    across, down = seed % 251 / 251, seed % 241 / 241
    rows, columns = (np.floor((part / span + shift) * side).astype(np.int64) % side for part, shift in ((v, down), (u, across)))
    return tiles[level][rows, columns]


@dataclass(frozen=True, eq=False)
class _Fade:
    """How much of a detail of a size is left where a pixel covers ``footprint`` metres: without it far tiles flicker."""

    footprint: np.ndarray

    def __call__(self, unit: float) -> np.ndarray:
        return np.clip(1.6 - 2.2 * self.footprint / unit, 0, 1)


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return first + (second - first) * share[:, None]


def _cells(u: np.ndarray, v: np.ndarray, width: float, height: float, shift: float, seam: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A running bond: column, row, and whether the place lies in a seam."""
    row = np.floor(v / height)
    across = u / width + row * shift
    column = np.floor(across)
    inside_u, inside_v = (across - column) * width, v - row * height
    return column, row, (np.minimum(inside_u, width - inside_u) < seam) | (np.minimum(inside_v, height - inside_v) < seam)


def _grain(u: np.ndarray, v: np.ndarray, scale: float, seed: int) -> np.ndarray:
    bend = noise(u * 1.2 / scale, v * 5 / scale, seed)
    return 0.65 * noise(u * 0.8 / scale, (v + 0.08 * scale * bend) * 16 / scale, seed + 1) + 0.35 * noise(u * 3 / scale, v * 60 / scale, seed + 2)


def _wood(m: Material, u, v, fade, base, second):
    return _mix(base, second, _grain(u, v, m.scale, m.seed))


def _planks(m: Material, u, v, fade, base, second):
    column, row, seam = _cells(u, v, m.scale * 7, m.scale, 0.37, 0.003)
    tone = lattice(column, row, m.seed)
    colour = _mix(base, second, np.clip(0.55 * _grain(u + 7 * tone, v, m.scale * 2, m.seed) + 0.45 * tone, 0, 1))
    return colour * (1 - 0.55 * seam * fade(0.02))[:, None]


def _tiles(m: Material, u, v, fade, base, second):
    column, row, seam = _cells(u, v, m.scale, m.scale, 0.0, 0.004 + 0.01 * m.scale)
    tone = (lattice(column, row, m.seed) - 0.5) * 0.14 + (noise(u * 9, v * 9, m.seed + 1) - 0.5) * 0.08
    return _mix(base * (1 + tone)[:, None], second, seam * fade(0.03))


def _bricks(m: Material, u, v, fade, base, second):
    column, row, seam = _cells(u, v, 0.22, 0.075, 0.5, 0.006)
    tone = (lattice(column, row, m.seed) - 0.5) * 0.5 + (noise(u * 30, v * 30, m.seed + 1) - 0.5) * 0.2
    return _mix(base * (1 + tone)[:, None], second, seam * fade(0.03))


def _stripes(m: Material, u, v, fade, base, second):
    return _mix(base, second, 0.5 + (np.mod(u / m.scale, 1) < 0.45).astype(np.float32) * fade(m.scale) - 0.5 * fade(m.scale))


def _dots(m: Material, u, v, fade, base, second):
    column, row = np.floor(u / m.scale), np.floor(v / m.scale)
    du, dv = u / m.scale - column - 0.5, v / m.scale - row - 0.5
    flower = np.hypot(du, dv) * (1 + 0.3 * np.cos(5 * np.arctan2(dv, du)))
    return _mix(base, second, (flower < 0.28 + 0.1 * np.mod(column + row, 2)) * fade(m.scale * 0.6) * 0.8)


def _carpet(m: Material, u, v, fade, base, second):
    fine = noise(u * 160, v * 160, m.seed) * fade(0.012) + 0.5 * (1 - fade(0.012))
    figure = noise(u / m.scale, v / m.scale, m.seed + 1)
    return _mix(base, second, np.clip(1.6 * (figure - 0.3), 0, 1)) * (0.75 + 0.5 * fine)[:, None]


def _fabric(m: Material, u, v, fade, base, second):
    weave = (np.sin(u * 400) * np.sin(v * 400) * 0.12 * fade(0.02)).astype(np.float32)
    check = (np.mod(u / m.scale, 1) < 0.3).astype(np.float32) * 0.5 + (np.mod(v / m.scale, 1) < 0.3) * 0.5
    fold = noise(u * 6, v * 2.5, m.seed) - 0.5
    return _mix(base, second, check * fade(m.scale * 0.5) * (m.seed % 3 == 0)) * (1 + weave + 0.25 * fold)[:, None]


def _plaster(m: Material, u, v, fade, base, second):
    rough = (noise(u * 1.3, v * 1.3, m.seed) - 0.5) * 0.10 + (noise(u * 40, v * 40, m.seed + 1) - 0.5) * 0.06 * fade(0.04)
    return base * (1 + rough)[:, None]


def _poster(m: Material, u, v, fade, base, second):
    """A few blocks and a disc over a gradient, in colours of their own."""
    draw = np.random.default_rng(m.seed)
    colour = _mix(base, second, np.clip(0.5 + v / m.scale + 0.4 * (noise(u * 5 / m.scale, v * 5 / m.scale, m.seed) - 0.5), 0, 1))
    for _ in range(int(draw.integers(2, 7))):
        cu, cv, hu, hv = draw.uniform(-0.5, 0.5), draw.uniform(-0.5, 0.5), draw.uniform(0.03, 0.3), draw.uniform(0.02, 0.2)
        paint = draw.uniform(0.02, 0.9, 3) ** 1.5
        inside = (np.abs(u / m.scale - cu) < hu) & (np.abs(v / m.scale - cv) < hv)
        if draw.random() < 0.4:
            inside = np.hypot(u / m.scale - cu, v / m.scale - cv) < hu
        colour[inside] = paint
    return colour


def _books(m: Material, u, v, fade, base, second):
    spine = np.floor((u + 0.012 * np.sin(u * 40)) / 0.035)
    tone = np.stack([lattice(spine, np.zeros_like(spine), m.seed + k) for k in range(3)], 1)
    edge = np.abs(np.mod((u + 0.012 * np.sin(u * 40)) / 0.035, 1) - 0.5) > 0.42
    band = np.abs(np.mod(v + 0.3 * tone[:, 0], 0.31) - 0.2) < 0.012
    colour = np.clip(0.08 + 0.75 * tone**1.6, 0, 1)
    return _mix(_mix(colour, second, (band * fade(0.03)).astype(np.float32)), np.zeros(3, np.float32), (edge * fade(0.03) * 0.7).astype(np.float32))


def _grid(m: Material, u, v, fade, base, second):
    _, _, seam = _cells(u, v, m.scale, m.scale, 0.0, 0.012)
    return _mix(base, second, seam * fade(0.03))


def _marble(m: Material, u, v, fade, base, second):
    swirl = u / m.scale + 2.2 * noise(u * 2 / m.scale, v * 2 / m.scale, m.seed) + 0.8 * noise(u * 7 / m.scale, v * 7 / m.scale, m.seed + 1)
    return _mix(base, second, (np.abs(np.sin(3 * swirl)) ** 6).astype(np.float32) * 0.7)


def _sky(m: Material, u, v, fade, base, second):
    """What a window shows: bright above, trees or houses below."""
    line = 0.25 * (noise(u * 3 / m.scale, np.zeros_like(u), m.seed) - 0.5) + 0.12 * (noise(u * 14 / m.scale, np.zeros_like(u), m.seed + 1) - 0.5)
    ground = (v / m.scale < line).astype(np.float32)
    leaves = 0.5 + noise(u * 25 / m.scale, v * 25 / m.scale, m.seed + 2)
    return _mix(base * np.ones_like(leaves)[:, None], second, ground) * (ground * leaves + (1 - ground))[:, None]


def _natural(m: Material, u, v, fade, base, second):
    """A photo or a print without any figure: three colours that change as natural scenes do."""
    share = np.stack([natural(u, v, m.scale * (1 + 0.6 * k), m.seed + 83 * k, fade.footprint) for k in range(3)], 1)
    return base + (second - base) / (1 + np.exp(-2 * share))


_PAINT = {
    "natural": _natural,
    "wood": _wood, "planks": _planks, "tiles": _tiles, "bricks": _bricks, "stripes": _stripes, "dots": _dots, "carpet": _carpet, "fabric": _fabric,
    "plaster": _plaster, "poster": _poster, "books": _books, "grid": _grid, "marble": _marble, "sky": _sky,
}  # fmt: skip


def reflectance(material: Material, place: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Linear RGB reflectance.

    Args:
        place: metres along the surface, float32 [n, 2].
        footprint: metres of surface under one pixel, float32 [n].

    Returns:
        float32 [n, 3] in [0, 1].
    """
    base, second = np.asarray(material.base, np.float32), np.asarray(material.second, np.float32)
    u, v = place[:, 0], place[:, 1]
    if material.pattern == "plain":
        colour = np.broadcast_to(base, (len(place), 3)).copy()
    else:
        colour = np.clip(_PAINT[material.pattern](material, u, v, _Fade(footprint), base, second), 0, 1).astype(np.float32)
    if material.mottle:
        colour = np.minimum(colour * np.exp(np.float32(material.mottle) * natural(u, v, material.span, material.seed, footprint))[:, None], np.float32(1))
    return colour
