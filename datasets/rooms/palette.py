"""What furniture is made of: solids in a piece's own frame, and the colours, woods and cloths of one room."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .textures import Material


@dataclass(frozen=True, eq=False)
class Part:
    """One solid of a piece of furniture: kind, centre and half extents in metres, and its look.

    ``turn`` is about the piece's z axis, ``lean`` about the part's x axis, radians. The origin of the material's pattern is the part's centre.
    ``name``: what it is called, if not like the rest of its piece.
    """

    kind: str
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    material: Material
    turn: float = 0.0
    lean: float = 0.0
    name: str = ""


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of furniture.

    Args:
        name: what a person calls it.
        parts: its solids.
        size: width (x), depth (y) and height, metres.
        tops: where small things can stand: (x0, x1, y0, y1, z, free height).
        lamp: place of its light in its own frame, or None.
    """

    name: str
    parts: tuple[Part, ...]
    size: tuple[float, float, float]
    tops: tuple[tuple[float, float, float, float, float, float], ...] = ()
    lamp: tuple[float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class Palette:
    """The colours and woods of one room, so that its furniture goes together."""

    draw: np.random.Generator
    wood: Material = field(init=False)
    cloth: Material = field(init=False)
    metal: Material = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "wood", self.make_wood())
        object.__setattr__(self, "cloth", self.make_cloth())
        grey = float(self.draw.uniform(0.02, 0.55))
        object.__setattr__(self, "metal", Material("plain", (grey, grey, grey * 1.03), gloss=0.6))

    def number(self) -> int:
        """A seed for a pattern."""
        return int(self.draw.integers(1 << 20))

    def colour(self, saturation: float = 0.5, low: float = 0.04, high: float = 0.7) -> tuple[float, float, float]:
        """A linear RGB colour."""
        value, hue = self.draw.uniform(low, high), self.draw.uniform(0, 2 * np.pi)
        wave = np.cos(hue - np.array([0, 2.094, 4.189]))
        return tuple(float(x) for x in np.clip(value * (1 + saturation * self.draw.uniform(0.2, 1) * wave), 0.01, 0.92))

    def make_wood(self) -> Material:
        """From pale birch to dark walnut, sometimes painted."""
        if self.draw.random() < 0.2:
            tone = float(self.draw.uniform(0.03, 0.85))
            return Material("plain", (tone, tone, tone * 0.97), gloss=0.2)
        tone, red = self.draw.uniform(0.05, 0.55), self.draw.uniform(0.35, 0.75)
        base = np.array([tone, tone * red, tone * red**2.2])
        return Material(
            "wood", tuple(base.tolist()), tuple((base * self.draw.uniform(0.35, 0.75)).tolist()), 0.4, self.number(), float(self.draw.uniform(0, 0.4))
        )

    def make_cloth(self) -> Material:
        """Upholstery."""
        return Material("fabric", self.colour(0.7), self.colour(0.7), float(self.draw.uniform(0.05, 0.2)), self.number())

    def any(self) -> Material:
        """Anything a small object is made of."""
        kind = self.draw.choice(["plain", "fabric", "wood", "poster", "stripes"])
        return Material(
            str(kind),
            self.colour(0.95, 0.02, 0.85),
            self.colour(0.9, 0.02, 0.85),
            float(self.draw.uniform(0.05, 0.4)),
            self.number(),
            float(self.draw.uniform(0, 0.5)),
        )
