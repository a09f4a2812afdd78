"""The walls of a room with their doors and windows, what hangs on them, and the lamps: everything but the furniture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import furniture
from .palette import Palette, Part
from .raycast import Group, Shape
from .textures import Material

WALL_M = 0.12
CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))  # where walls 0 to 3 begin, in units of width and length
ALONG = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], np.float64)
INWARD = np.array([[0, 1, 0], [-1, 0, 0], [0, -1, 0], [1, 0, 0]], np.float64)
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class Light:
    """A shining rectangle.

    Args:
        center: world metres [3].
        sides: two half edges, metres [2, 3].
        facing: unit vector it shines along, or zero for all around [3].
        colour: linear RGB strength [3].
        room: index of the room it lights.
    """

    center: np.ndarray
    sides: np.ndarray
    facing: np.ndarray
    colour: np.ndarray
    room: int


@dataclass(frozen=True, eq=False)
class Scene:
    """Solids, looks, lamps and the inside of each room, low and high corner [2, 3] in metres."""

    groups: tuple[Group, ...]
    materials: tuple[Material, ...]
    lights: tuple[Light, ...]
    rooms: tuple[np.ndarray, ...]
    footprints: tuple[tuple[float, float, float, float], ...]
    kind: str


class Builder:
    """Collects the solids, materials and lamps of a scene while its rooms are laid out."""

    def __init__(self):
        self.materials: list[Material] = []
        self.numbers: dict[Material, int] = {}
        self.groups: list[Group] = []
        self.lights: list[Light] = []

    def surface(self, material: Material) -> int:
        """The number of a material in the scene; the same one for equal materials."""
        if material not in self.numbers:
            self.numbers[material] = len(self.materials)
            self.materials.append(material)
        return self.numbers[material]

    def shape(self, part: Part, origin: np.ndarray, axes: np.ndarray, name: str, shift=(0.0, 0.0, 0.0)) -> Shape:
        """A part as a solid of the scene: ``origin`` [3] and ``axes`` [3, 3] (rows) are its piece's frame, ``shift`` [3] that of its texture; metres."""
        own = turned(part.turn, part.lean) @ axes
        center = origin + np.asarray(part.center, np.float64) @ axes
        half, shift = np.asarray(part.half, np.float64), np.asarray(shift, np.float64)
        return Shape(part.kind, center, half, own, self.surface(part.material), shift, part.name or name)

    def add(self, name: str, parts, origin: np.ndarray, axes: np.ndarray, casts: bool = True) -> None:
        """Add one object with its parts; parts that have a name of their own keep it. ``casts``: whether it throws shadows."""
        self.groups.append(Group(tuple(self.shape(part, origin, axes, name) for part in parts), casts))


def turned(turn: float, lean: float) -> np.ndarray:
    """Rows are the part's axes in the piece's frame: leaned back about x, then turned about z."""
    c, s, k, m = np.cos(turn), np.sin(turn), np.cos(lean), np.sin(lean)
    return np.array([[c, s, 0], [-s * k, c * k, m], [s * m, -c * m, k]])


def wall_axes(wall: int) -> np.ndarray:
    """The frame of a wall (0 to 3) as rows [3, 3]: along it, into the room, up."""
    return np.stack([ALONG[wall], INWARD[wall], UP])


def beside_holes(length: float, height: float, holes: list[tuple[float, float, float, float]]):
    """The rectangles (s0, s1, z0, z1) of a wall that are left beside its holes, which do not overlap along the wall."""
    position = 0.0
    for s0, s1, z0, z1 in sorted(holes):
        yield position, s0, 0.0, height
        if z0 > 0.01:
            yield s0, s1, 0.0, z0
        yield s0, s1, z1, height
        position = s1
    yield position, length, 0.0, height


def shell(
    build: Builder, low: np.ndarray, high: np.ndarray, paints: list[Material], floor: Material, ceiling: Material, holes: dict[int, list], skip: int = -1
):
    """Floor, ceiling and walls as slabs around the inside ``low`` to ``high``; wall ``skip`` is left out."""
    size = high - low
    middle = (low + high) / 2
    shapes = []
    for name, z, look in (("floor", low[2] - WALL_M / 2, floor), ("ceiling", high[2] + WALL_M / 2, ceiling)):
        half = (size[0] / 2 + 0.51 * WALL_M, size[1] / 2 + 0.51 * WALL_M, WALL_M / 2)  # two rooms' floors meet under the wall
        shapes.append(build.shape(Part("box", (middle[0], middle[1], z), half, look), np.zeros(3), np.eye(3), name, (middle[0], middle[1], 0)))
    for wall in range(4):
        if wall == skip:
            continue
        length = size[wall % 2]
        start = low + np.array([CORNERS[wall][0] * size[0], CORNERS[wall][1] * size[1], 0])
        for s0, s1, z0, z1 in beside_holes(length, size[2], holes.get(wall, [])):
            if s1 - s0 > 0.01:
                reach = 0.9 * WALL_M  # around the corner, but not through a neighbouring room's wall
                s0, s1 = (s0 - reach if s0 == 0 else s0), (s1 + reach if s1 == length else s1)
                mid, half = ((s0 + s1) / 2, -WALL_M / 2, (z0 + z1) / 2), ((s1 - s0) / 2, WALL_M / 2, (z1 - z0) / 2)
                shapes.append(build.shape(Part("box", mid, half, paints[wall]), start, wall_axes(wall), "wall", (mid[0], 0, mid[2])))
    build.groups.append(Group(tuple(shapes), casts=False))


def paints_for(p: Palette, kind: str) -> list[Material]:
    """One material for each of the four walls of a room of that kind: all alike, or one that stands out."""
    draw = p.draw
    light = p.colour(0.25, 0.15, 0.8)
    pattern = str(draw.choice(["plaster", "plaster", "plaster", "stripes", "dots", "planks", "tiles" if kind == "kitchen" else "plaster"]))
    near = tuple(float(c * draw.uniform(0.8, 0.97)) for c in light)
    paint = Material(pattern, light, near, float(draw.uniform(0.08, 0.25)), p.number())
    paints = [paint] * 4
    if draw.random() < 0.3:
        accent = str(draw.choice(["plaster", "bricks", "planks", "dots", "tiles"]))
        base = (0.35, 0.13, 0.08) if accent == "bricks" else p.colour(0.7, 0.08, 0.6)
        paints[int(draw.integers(4))] = Material(accent, base, p.colour(0.3, 0.2, 0.7), float(draw.uniform(0.1, 0.3)), p.number())
    return paints


def floor_for(p: Palette, kind: str) -> Material:
    """The floor of a room of that kind: tiles, planks, carpet or marble, each as likely as it is there."""
    pattern = str(p.draw.choice(["tiles", "planks", "carpet", "marble"], p=[0.6, 0.3, 0.0, 0.1] if kind == "kitchen" else [0.15, 0.45, 0.35, 0.05]))
    if pattern == "planks":
        tone = p.draw.uniform(0.08, 0.45)
        base = (float(tone), float(tone * 0.62), float(tone * 0.36))
        return Material(pattern, base, tuple(c * 0.55 for c in base), float(p.draw.uniform(0.08, 0.16)), p.number(), float(p.draw.uniform(0, 0.35)))
    return Material(
        pattern, p.colour(0.35, 0.1, 0.6), p.colour(0.3, 0.08, 0.45), float(p.draw.uniform(0.25, 0.6)), p.number(), 0.25 if pattern != "carpet" else 0.0
    )


def window(build: Builder, p: Palette, start: np.ndarray, wall: int, hole, day: float) -> None:
    """Add a window with its frame, perhaps curtains or a radiator, and its light.

    Args:
        start: world metres [3], where the wall begins.
        hole: the opening (s0, s1, z0, z1) in metres along the wall and above the floor.
        day: how bright it is outside.
    """
    s0, s1, z0, z1 = hole
    frame = Material("plain", (0.8, 0.8, 0.78)) if p.draw.random() < 0.7 else p.wood
    sky = Material("sky", (0.75, 0.85, 1.0), (0.12, 0.2, 0.08), (z1 - z0), p.number(), glow=2.2 * day)
    mid, wide, tall = (s0 + s1) / 2, (s1 - s0) / 2, (z1 - z0) / 2
    z = (z0 + z1) / 2
    parts = [Part("box", (mid, -0.08, z), (wide, 0.01, tall), sky)]
    bars = [(mid, wide, z0 + 0.03, 0.03), (mid, wide, z1 - 0.03, 0.03), (s0 + 0.03, 0.03, z, tall), (s1 - 0.03, 0.03, z, tall), (mid, 0.025, z, tall)]
    if p.draw.random() < 0.4:
        bars.append((mid, wide, z, 0.02))
    parts += [Part("box", (s, -0.05, h), (hs, 0.03, hz), frame) for s, hs, h, hz in bars]
    parts.append(Part("box", (mid, 0.04, z0 - 0.015), (wide + 0.06, 0.08, 0.015), frame))
    if p.draw.random() < 0.55:
        cloth = Material("stripes" if p.draw.random() < 0.5 else "fabric", p.colour(0.7), p.colour(0.7), float(p.draw.uniform(0.05, 0.15)), p.number())
        reach = float(p.draw.uniform(0.12, 0.3))
        bottom = 0.05 if p.draw.random() < 0.6 else z0 - 0.1
        for side in (s0 - reach / 2 + 0.05, s1 + reach / 2 - 0.05):
            for k in range(5):  # folds
                x = side + (k - 2) * reach / 4
                parts.append(Part("cylinder", (x, 0.08, (bottom + z1 + 0.12) / 2), (reach / 7, 0.03, (z1 + 0.12 - bottom) / 2), cloth, name="curtain"))
        parts.append(Part("box", (mid, 0.08, z1 + 0.12), (wide + reach, 0.015, 0.015), p.metal, name="curtain"))
    elif z0 > 0.6 and p.draw.random() < 0.6:
        enamel = Material("plain", (0.75, 0.75, 0.73))
        parts += [Part("box", (mid + (k - 6) * wide / 7, 0.07, 0.4), (wide / 8, 0.04, 0.26), enamel, name="radiator") for k in range(13)]
    build.add("window", parts, start, wall_axes(wall), casts=False)
    center = start + np.array([mid, 0.05, z]) @ wall_axes(wall)
    build.lights.append(Light(center, np.stack([wide * ALONG[wall], tall * UP]), INWARD[wall], 2.6 * day * wide * tall * 4 * np.array([0.85, 0.95, 1.1]), 0))


def door(build: Builder, p: Palette, start: np.ndarray, wall: int, hole, leads: bool) -> None:
    """Add a door with its frame; open if it ``leads`` to another room, else shut. ``start`` and ``hole`` as for ``window``."""
    s0, s1, _, z1 = hole
    mid, wide = (s0 + s1) / 2, (s1 - s0) / 2
    leaf = Material("plain", (0.75, 0.75, 0.72)) if p.draw.random() < 0.5 else p.wood
    parts = [Part("box", (s, -0.05, z1 / 2 + 0.03), (0.04, 0.08, z1 / 2 + 0.03), leaf) for s in (s0 - 0.03, s1 + 0.03)]
    parts.append(Part("box", (mid, -0.05, z1 + 0.03), (wide + 0.07, 0.08, 0.04), leaf))
    if leads:  # the leaf stands open, into the other room
        hinge = s0 + 0.03
        parts.append(Part("box", (hinge, -wide - 0.12, z1 / 2), (0.02, wide, z1 / 2 - 0.01), leaf))
    else:
        parts.append(Part("box", (mid, -0.06, z1 / 2), (wide, 0.02, z1 / 2), leaf))
        for z, h in ((0.55, 0.35), (1.45, 0.4)):
            parts.append(Part("box", (mid, -0.035, z), (wide * 0.65, 0.008, h), leaf))
        parts.append(Part("box", (s1 - 0.08, -0.01, 1.02), (0.05, 0.02, 0.012), p.metal))
    build.add("door", parts, start, wall_axes(wall), casts=False)


def hang(build: Builder, p: Palette, start: np.ndarray, wall: int, length: float, height: float, taken: list[tuple[float, float]]) -> None:
    """Pictures, a board, a shelf or a clock, where neither door nor window is."""
    for _ in range(int(p.draw.integers(0, 5))):
        half = float(p.draw.uniform(0.12, 0.5))
        s = float(p.draw.uniform(half + 0.1, max(half + 0.2, length - half - 0.1)))
        if s + half > length or any(s - half < b + 0.15 and s + half > a - 0.15 for a, b in taken):
            continue
        taken.append((s - half, s + half))
        tall = float(half * p.draw.uniform(0.6, 1.4))
        z = float(np.clip(p.draw.uniform(1.35, 1.75), tall + 0.9, height - tall - 0.1))
        style = p.draw.random()
        if style < 0.7:
            name = "picture"
            picture = Material("poster", p.colour(0.8), p.colour(0.8), 2 * half, p.number(), gloss=0.2)
            parts = [
                Part("box", (s, 0.012, z), (half, 0.012, tall), p.wood if style < 0.45 else picture),
                Part("box", (s, 0.022, z), (half - 0.025, 0.006, tall - 0.025), picture),
            ]
        elif style < 0.9:
            name = "shelf"
            parts = [Part("box", (s, 0.1, z), (half, 0.1, 0.012), p.wood)]
            for x in np.arange(s - half + 0.08, s + half - 0.06, 0.16):
                small = furniture.thing(p, 0.25)
                parts += [on_top(part, x, 0.1, z + 0.012, small.name) for part in small.parts]
        else:
            name = "clock"
            parts = [Part("ellipsoid", (s, 0.0, z), (0.16, 0.03, 0.16), Material("poster", (0.85, 0.85, 0.8), (0.8, 0.8, 0.8), 0.5, p.number()))]
        build.add(name, parts, start, wall_axes(wall))


def on_top(part: Part, x: float, y: float, z: float, name: str, turn: float = 0.0) -> Part:
    """A part of a small thing that stands on another one, still under its own name."""
    c, s = np.cos(turn), np.sin(turn)
    px, py, pz = part.center
    return Part(part.kind, (x + c * px - s * py, y + s * px + c * py, z + pz), part.half, part.material, part.turn + turn, part.lean, name)


def ceiling_lamps(build: Builder, p: Palette, size: np.ndarray, night: float) -> None:
    """Add the lamps of a room of ``size`` [3] metres and their light, brighter the larger ``night`` is (0.1 to 1.2)."""
    draw = p.draw
    warm = np.array([1.0, draw.uniform(0.75, 1.0), draw.uniform(0.5, 1.0)])
    glow = Material("plain", tuple((0.95 * warm).tolist()), glow=1.2 + 1.5 * night)
    style = draw.random()
    places = [(0.5, 0.5)] if style < 0.6 or size[0] * size[1] < 14 else [(0.3, 0.3), (0.7, 0.7)]
    for fx, fy in places:
        x, y, z = fx * size[0], fy * size[1], size[2]
        if style < 0.35:
            build.add("lamp", [Part("box", (x, y, z - 0.01), (0.3, 0.3, 0.012), glow)], np.zeros(3), np.eye(3), casts=False)
        elif style < 0.75:
            drop = float(draw.uniform(0.2, 0.6))
            parts = [
                Part("cylinder", (x, y, z - drop / 2), (0.008, 0.008, drop / 2), p.metal),
                Part("ellipsoid", (x, y, z - drop - 0.1), (0.17, 0.17, 0.12), glow),
            ]
            build.add("lamp", parts, np.zeros(3), np.eye(3), casts=False)
            z -= drop + 0.2
        else:
            build.add("lamp", [Part("ellipsoid", (x, y, z), (0.2, 0.2, 0.09), glow)], np.zeros(3), np.eye(3), casts=False)
        strength = draw.uniform(1.5, 3.5) * night / len(places)
        build.lights.append(Light(np.array([x, y, z - 0.12]), np.array([[0.2, 0, 0], [0, 0.2, 0]]), np.zeros(3), strength * warm, 0))
