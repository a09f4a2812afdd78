"""One room from a seed: walls, furniture that does not overlap, things on tables, sometimes another room behind a door."""

from __future__ import annotations

import numpy as np

from . import furniture
from .palette import Palette, Part, Piece
from .textures import Material
from .walls import (
    ALONG,
    CORNERS,
    INWARD,
    UP,
    WALL_M,
    Builder,
    Light,
    Scene,
    beside_holes,
    ceiling_lamps,
    door,
    floor_for,
    hang,
    on_top,
    paints_for,
    shell,
    turned,
    wall_axes,
    window,
)


def _place(build: Builder, p: Palette, piece: Piece, x: float, y: float, axes: np.ndarray, dress: float = 0.8) -> None:
    """Stand a piece on the floor with small things on it."""
    parts = list(piece.parts)
    for x0, x1, y0, y1, z, free in piece.tops:
        spots: list[tuple[float, float, float]] = []
        for _ in range(int(p.draw.integers(0, 7)) if p.draw.random() < dress else 0):
            small = furniture.thing(p, free)
            r = max(small.size[:2]) / 2
            if x1 - x0 <= 2 * r or y1 - y0 <= 2 * r:
                continue
            sx, sy = float(p.draw.uniform(x0 + r, x1 - r)), float(p.draw.uniform(y0 + r, y1 - r))
            if all(np.hypot(sx - a, sy - b) > r + c for a, b, c in spots):
                spots.append((sx, sy, r))
                parts += [on_top(part, sx, sy, z, small.name, float(p.draw.uniform(0, 6.28))) for part in small.parts]
    build.add(piece.name, parts, np.array([x, y, 0.0]), axes)
    if piece.lamp:
        center = np.array([x, y, 0.0]) + np.asarray(piece.lamp) @ axes
        build.lights.append(Light(center, np.array([[0.12, 0, 0], [0, 0.12, 0]]), np.zeros(3), 0.9 * np.array([1.0, 0.75, 0.45]), 0))


def footprint(x: float, y: float, size, axes: np.ndarray) -> tuple[float, float, float, float]:
    """The rectangle (x0, x1, y0, y1) around a piece of ``size`` that stands at x, y with the frame ``axes``, metres."""
    hx, hy = np.abs(axes[:2, :2]).T @ (np.asarray(size[:2]) / 2)
    return x - hx, x + hx, y - hy, y + hy


def is_free(rectangle, taken, margin: float) -> bool:
    """Whether a rectangle keeps ``margin`` metres from all that are taken."""
    a, b, c, d = rectangle
    return all(b + margin < e or a - margin > f or d + margin < g or c - margin > h for e, f, g, h in taken)


def _furnish(build: Builder, p: Palette, size: np.ndarray, kind: str, holes: dict[int, list], taken: list) -> None:
    draw = p.draw
    for wall in range(4):
        for s0, s1, z0, _ in holes.get(wall, []):
            if z0 < 0.1:  # keep the way through a door free
                a = np.array([CORNERS[wall][0] * size[0], CORNERS[wall][1] * size[1]]) + s0 * ALONG[wall, :2]
                b = a + (s1 - s0) * ALONG[wall, :2] + 0.8 * INWARD[wall, :2]
                taken.append((min(a[0], b[0]), max(a[0], b[0]), min(a[1], b[1]), max(a[1], b[1])))
    for maker in draw.permutation(np.array(furniture.BY_THE_WALL[kind], object))[: int(draw.integers(3, 9))]:
        piece = maker(p)
        for _ in range(8):
            wall = int(draw.integers(4))
            length = size[wall % 2]
            if piece.size[0] >= length - 0.2:
                continue
            s = draw.uniform(piece.size[0] / 2 + 0.03, length - piece.size[0] / 2 - 0.03)
            start = np.array([CORNERS[wall][0] * size[0], CORNERS[wall][1] * size[1]])
            x, y = start + s * ALONG[wall, :2] + (piece.size[1] / 2 + draw.uniform(0.03, 0.1)) * INWARD[wall, :2]
            hidden = any(z0 > 0.1 and piece.size[2] > z0 and s - piece.size[0] / 2 < s1 and s + piece.size[0] / 2 > s0 for s0, s1, z0, _ in holes.get(wall, []))
            rectangle = footprint(x, y, piece.size, wall_axes(wall))
            if not hidden and is_free(rectangle, taken, 0.02):
                tilt = turned(float(draw.normal(0, 0.02)), 0)
                taken.append(rectangle)
                _place(build, p, piece, x, y, tilt @ wall_axes(wall))
                if maker in (furniture.desk,) or (maker is furniture.table and draw.random() < 0.5):
                    seat = furniture.office_chair(p)
                    away = np.array([x, y]) + (piece.size[1] / 2 + draw.uniform(0.05, 0.35)) * INWARD[wall, :2]
                    _place(build, p, seat, *away, turned(float(draw.normal(0, 0.5)), 0) @ (wall_axes(wall) * [[-1], [-1], [1]]))
                    taken.append(footprint(*away, seat.size, np.eye(3)))
                break
    for maker in furniture.IN_THE_MIDDLE[kind]:
        if draw.random() < 0.3:
            continue
        piece = maker(p)
        axes = turned(float(draw.choice([0, np.pi / 2, np.pi, -np.pi / 2]) + draw.normal(0, 0.15)), 0)
        for _ in range(8):
            x, y = draw.uniform(0.25, 0.75, 2) * size[:2]
            rectangle = footprint(x, y, piece.size, axes)
            if is_free(rectangle, taken, 0.25) and rectangle[0] > 0.2 and rectangle[2] > 0.2 and rectangle[1] < size[0] - 0.2 and rectangle[3] < size[1] - 0.2:
                taken.append(rectangle)
                _place(build, p, piece, x, y, axes)
                if draw.random() < 0.4:  # a rug under it
                    rug = Material("carpet", p.colour(0.8), p.colour(0.8), float(draw.uniform(0.1, 0.4)), p.number())
                    build.add(
                        "rug",
                        [Part("box", (0, 0, 0.006), (piece.size[0] / 2 + 0.5, piece.size[1] / 2 + 0.4, 0.006), rug)],
                        np.array([x, y, 0.0]),
                        axes,
                        casts=False,
                    )
                if maker is furniture.table:
                    _chairs(build, p, piece, x, y, axes, taken)
                break


def _chairs(build: Builder, p: Palette, table: Piece, x: float, y: float, axes: np.ndarray, taken: list) -> None:
    state = p.draw.bit_generator.state
    for side, across in ((0, 1), (np.pi, 1), (np.pi / 2, 0), (-np.pi / 2, 0)):
        count = 2 if across and table.size[0] > 1.4 else 1
        for k in range(count):
            here = p.draw.bit_generator.state
            p.draw.bit_generator.state = state  # every chair of a set is the same chair
            seat = furniture.chair(p)
            p.draw.bit_generator.state = here
            skip, jitter, far = p.draw.random() < 0.25, p.draw.normal(0, 0.12), p.draw.uniform(-0.05, 0.3)
            if skip:
                continue
            reach = table.size[1 if across else 0] / 2 + far
            spread = (k - (count - 1) / 2) * 0.7
            own = turned(side + jitter, 0) @ axes
            outward = turned(side, 0) @ axes
            px, py = np.array([x, y]) - reach * outward[1, :2] + spread * outward[0, :2]
            rectangle = footprint(px, py, seat.size, own)
            if rectangle[0] > 0.05 and rectangle[2] > 0.05:
                taken.append(rectangle)
                _place(build, p, seat, px, py, own)


def make_room(draw: np.random.Generator) -> Scene:
    """A furnished room; the same generator state gives the same room."""
    p, build = Palette(draw), Builder()
    kind = str(draw.choice(list(furniture.BY_THE_WALL)))
    size = np.array([draw.uniform(2.8, 5.5), draw.uniform(3.2, 7.0), draw.uniform(2.35, 3.0)])
    holes: dict[int, list] = {}
    taken_on_wall: dict[int, list[tuple[float, float]]] = {k: [] for k in range(4)}
    openings = []
    leads = draw.random() < 0.55
    for wall in draw.permutation(4)[: int(draw.integers(2, 5))].tolist():
        length = size[wall % 2]
        is_door = not openings or draw.random() < 0.2
        wide = 0.9 if is_door and not leads else draw.uniform(0.85, 1.5) if is_door else min(draw.uniform(0.8, 2.2), length - 0.8)
        s0 = draw.uniform(0.3, length - wide - 0.3)
        z0, z1 = (0.0, 2.05) if is_door else (draw.uniform(0.75, 1.05), draw.uniform(1.9, min(2.2, size[2] - 0.15)))
        hole = (float(s0), float(s0 + wide), float(z0), float(z1))
        holes.setdefault(wall, []).append(hole)
        taken_on_wall[wall].append(hole[:2])
        openings.append((wall, hole, is_door, is_door and leads and not openings))
    day = float(draw.choice([draw.uniform(0.6, 1.3), draw.uniform(0.02, 0.2)], p=[0.7, 0.3]))
    paints, floor = paints_for(p, kind), floor_for(p, kind)
    tone = float(draw.uniform(0.6, 0.88))
    ceiling = Material(
        "grid" if kind in ("office", "store") and draw.random() < 0.6 else "plaster", (tone, tone, tone * 0.98), (0.45, 0.45, 0.44), 0.6, p.number()
    )
    shell(build, np.zeros(3), size, paints, floor, ceiling, holes)
    rooms = [np.stack([np.zeros(3), size])]
    skirting = p.wood if draw.random() < 0.5 else Material("plain", (0.75, 0.75, 0.73))
    for wall in range(4):
        start = np.array([CORNERS[wall][0] * size[0], CORNERS[wall][1] * size[1], 0.0])
        length = size[wall % 2]
        cuts = beside_holes(length, 0.08, [hole for hole in holes.get(wall, []) if hole[2] < 0.1])
        build.add(
            "wall",
            [Part("box", ((a + b) / 2, 0.006, 0.04), ((b - a) / 2, 0.008, 0.04), skirting) for a, b, _, z in cuts if b - a > 0.01 and z == 0.08],
            start,
            wall_axes(wall),
            casts=False,
        )
    for wall, hole, is_door, open_door in openings:
        start = np.array([CORNERS[wall][0] * size[0], CORNERS[wall][1] * size[1], 0.0])
        if not is_door:
            window(build, p, start, wall, hole, day)
            continue
        door(build, p, start, wall, hole, open_door)
        if open_door:
            rooms.append(_next_room(build, p, start, wall, hole, size[2], floor, ceiling))
    ceiling_lamps(build, p, size, float(draw.uniform(0.5, 1.2) if day < 0.3 else draw.uniform(0.1, 0.7)))
    taken: list[tuple[float, float, float, float]] = []
    _furnish(build, p, size, kind, holes, taken)
    for wall in range(4):
        start = np.array([CORNERS[wall][0] * size[0], CORNERS[wall][1] * size[1], 0.0])
        hang(build, p, start, wall, size[wall % 2], size[2], taken_on_wall[wall])
    return Scene(tuple(build.groups), tuple(build.materials), tuple(build.lights), tuple(rooms), tuple(taken), kind)


def _next_room(build: Builder, p: Palette, start: np.ndarray, wall: int, hole, height: float, floor: Material, ceiling: Material) -> np.ndarray:
    """A plain room behind an open door, with a cupboard and a lamp; returns its inside."""
    draw = p.draw
    deep, half = draw.uniform(1.5, 4.0), draw.uniform(1.0, 2.0)
    mid = (hole[0] + hole[1]) / 2
    a = start + (mid - half) * ALONG[wall] - WALL_M * INWARD[wall]
    b = start + (mid + half) * ALONG[wall] - (WALL_M + deep) * INWARD[wall] + height * UP
    low, high = np.minimum(a, b), np.maximum(a, b)
    paint = Material("plaster", p.colour(0.25, 0.35, 0.8), seed=p.number())
    shell(build, low, high, [paint] * 4, floor if draw.random() < 0.6 else floor_for(p, "living"), ceiling, {}, skip=(wall + 2) % 4)
    piece = (furniture.cupboard if draw.random() < 0.6 else furniture.shelf)(p)
    back = start + mid * ALONG[wall] - (WALL_M + deep - piece.size[1] / 2 - 0.05) * INWARD[wall]
    if deep > 1.8:
        _place(build, p, piece, back[0], back[1], wall_axes(wall), dress=0.5)
    center = (low + high) / 2
    center[2] = height - 0.15
    build.lights.append(Light(center, np.array([[0.2, 0, 0], [0, 0.2, 0]]), np.zeros(3), draw.uniform(0.3, 2.2) * np.array([1.0, 0.9, 0.75]), 1))
    return np.stack([low, high])
