"""Furniture out of boxes, cylinders and ellipsoids, in its own frame: origin on the floor, x to the side, y to the front, z up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .palette import Palette, Part, Piece
from .textures import Material


def _box(x, y, z, hx, hy, hz, material, turn=0.0, lean=0.0, name="") -> Part:
    return Part("box", (x, y, z), (hx, hy, hz), material, turn, lean, name)


def _legs(width: float, depth: float, height: float, thick: float, material: Material, kind: str = "box") -> list[Part]:
    x, y = width / 2 - thick, depth / 2 - thick
    return [Part(kind, (sx * x, sy * y, height / 2), (thick, thick, height / 2), material) for sx in (-1, 1) for sy in (-1, 1)]


def table(p: Palette) -> Piece:
    """A table with four legs, or a round one with a pillar."""
    width, depth, height = p.draw.uniform(0.8, 2.0), p.draw.uniform(0.7, 1.0), p.draw.uniform(0.7, 0.78)
    if p.draw.random() < 0.25:
        r = p.draw.uniform(0.4, 0.65)
        parts = [
            Part("cylinder", (0, 0, height - 0.02), (r, r, 0.02), p.wood),
            Part("cylinder", (0, 0, height / 2 - 0.02), (0.05, 0.05, height / 2 - 0.02), p.metal),
        ]
        parts.append(Part("cylinder", (0, 0, 0.02), (r * 0.5, r * 0.5, 0.02), p.metal))
        return Piece("table", tuple(parts), (2 * r, 2 * r, height), ((-r * 0.65, r * 0.65, -r * 0.65, r * 0.65, height, 0.5),))
    legs = _legs(
        width, depth, height - 0.04, p.draw.uniform(0.02, 0.045), p.wood if p.draw.random() < 0.6 else p.metal, str(p.draw.choice(["box", "cylinder"]))
    )
    parts = [*legs, _box(0, 0, height - 0.02, width / 2, depth / 2, 0.02, p.wood), _box(0, 0, height - 0.08, width / 2 - 0.06, depth / 2 - 0.06, 0.04, p.wood)]
    return Piece("table", tuple(parts), (width, depth, height), ((-width / 2, width / 2, -depth / 2, depth / 2, height, 0.6),))


def low_table(p: Palette) -> Piece:
    """A coffee table."""
    width, depth, height = p.draw.uniform(0.7, 1.2), p.draw.uniform(0.45, 0.7), p.draw.uniform(0.35, 0.48)
    parts = [*_legs(width, depth, height - 0.03, 0.025, p.wood), _box(0, 0, height - 0.015, width / 2, depth / 2, 0.015, p.wood)]
    if p.draw.random() < 0.5:
        parts.append(_box(0, 0, 0.14, width / 2 - 0.04, depth / 2 - 0.04, 0.012, p.wood))
    return Piece("table", tuple(parts), (width, depth, height), ((-width / 2, width / 2, -depth / 2, depth / 2, height, 0.4),))


def chair(p: Palette) -> Piece:
    """A chair that faces its front."""
    width, seat, height = p.draw.uniform(0.4, 0.5), p.draw.uniform(0.43, 0.48), p.draw.uniform(0.82, 1.05)
    frame = p.wood if p.draw.random() < 0.7 else p.metal
    parts = _legs(width, width, seat - 0.03, 0.02, frame)
    parts.append(_box(0, 0, seat - 0.02, width / 2, width / 2, 0.025, p.cloth if p.draw.random() < 0.5 else frame))
    back, style = -width / 2 + 0.02, p.draw.random()
    if style < 0.4:
        parts.append(_box(0, back, (seat + height) / 2 + 0.06, width / 2, 0.018, (height - seat) / 2 - 0.06, p.cloth))
    parts += [_box(side * (width / 2 - 0.02), back, (seat + height) / 2, 0.02, 0.02, (height - seat) / 2, frame) for side in (-1, 1)]
    if style >= 0.4:
        parts += [_box(0, back, z, width / 2 - 0.02, 0.012, 0.03, frame) for z in np.linspace(seat + 0.15, height - 0.03, int(p.draw.integers(2, 5)))]
    return Piece("chair", tuple(parts), (width, width, height))


def office_chair(p: Palette) -> Piece:
    """A swivel chair."""
    star = [_box(0.14 * np.sin(a), 0.14 * np.cos(a), 0.07, 0.02, 0.15, 0.015, p.metal, turn=-a) for a in np.arange(5) * 1.2566]
    parts = [*star, Part("cylinder", (0, 0, 0.26), (0.025, 0.025, 0.18), p.metal), _box(0, 0, 0.47, 0.24, 0.23, 0.04, p.cloth)]
    parts.append(_box(0, -0.23, 0.8, 0.22, 0.035, 0.26, p.cloth, lean=0.12))
    if p.draw.random() < 0.6:
        parts += [_box(side * 0.27, 0, 0.66, 0.03, 0.14, 0.015, p.metal) for side in (-1, 1)]
        parts += [_box(side * 0.27, 0, 0.56, 0.015, 0.02, 0.09, p.metal) for side in (-1, 1)]
    return Piece("chair", tuple(parts), (0.58, 0.58, 1.06))


def sofa(p: Palette) -> Piece:
    """A sofa or an armchair, with cushions."""
    width, depth, back = p.draw.choice([0.85, 1.5, 1.9, 2.2]), p.draw.uniform(0.8, 0.95), p.draw.uniform(0.75, 0.9)
    arm, seat = 0.09, 0.42
    parts = [_box(0, 0, 0.2, width / 2, depth / 2, 0.13, p.cloth), _box(0, -depth / 2 + 0.1, (back + 0.2) / 2, width / 2, 0.1, (back - 0.2) / 2, p.cloth)]
    parts += [_box(side * (width / 2 - arm), 0, 0.33, arm, depth / 2, 0.26, p.cloth) for side in (-1, 1)]
    seats = max(1, round(width / 0.8))
    step = (width - 4 * arm) / seats
    for k in range(seats):
        x = -width / 2 + 2 * arm + step * (k + 0.5)
        parts.append(_box(x, 0.09, seat - 0.03, step / 2 - 0.012, depth / 2 - 0.11, 0.07, p.cloth))
        parts.append(_box(x, -depth / 2 + 0.25, seat + 0.23, step / 2 - 0.015, 0.08, 0.2, p.cloth, lean=0.15))
        if p.draw.random() < 0.4:
            parts.append(_box(x + p.draw.uniform(-0.1, 0.1), 0.0, seat + 0.2, 0.2, 0.06, 0.19, p.make_cloth(), lean=0.35, turn=p.draw.uniform(-0.3, 0.3)))
    return Piece("sofa", tuple(parts), (float(width), depth, back))


def bed(p: Palette) -> Piece:
    """A bed with its head at the back."""
    width, length = p.draw.choice([0.95, 1.45, 1.7]), p.draw.uniform(1.95, 2.1)
    linen = p.make_cloth()
    sheet = Material("fabric", p.colour(0.2, 0.4, 0.85), p.colour(0.3, 0.4, 0.85), 0.1, 1)
    parts = [_box(0, 0, 0.18, width / 2, length / 2, 0.12, p.wood), _box(0, 0.02, 0.4, width / 2 - 0.02, length / 2 - 0.04, 0.1, sheet)]
    parts.append(_box(0, 0.3, 0.44, width / 2 + 0.015, length / 2 - 0.28, 0.09, linen))
    parts.append(_box(0, -length / 2 - 0.02, 0.5, width / 2, 0.03, float(p.draw.uniform(0.3, 0.55)), p.wood))
    for x in (0.0,) if width < 1 else (-width / 4, width / 4):
        parts.append(Part("ellipsoid", (x, -length / 2 + 0.25, 0.55), (0.3, 0.2, 0.1), sheet))
    return Piece("bed", tuple(parts), (float(width) + 0.04, length + 0.1, 1.0))


def shelf(p: Palette) -> Piece:
    """An open bookcase, each board partly filled."""
    width, depth, height = p.draw.uniform(0.6, 1.3), p.draw.uniform(0.25, 0.36), p.draw.uniform(0.9, 2.1)
    boards = max(2, int(height / p.draw.uniform(0.3, 0.42)))
    parts = [_box(side * (width / 2 - 0.012), 0, height / 2, 0.012, depth / 2, height / 2, p.wood) for side in (-1, 1)]
    parts.append(_box(0, -depth / 2 + 0.006, height / 2, width / 2, 0.006, height / 2, p.wood))
    gap = (height - 0.08) / boards
    for k in range(boards + 1):
        z = 0.06 + k * gap
        parts.append(_box(0, 0, min(z, height - 0.012), width / 2 - 0.02, depth / 2, 0.012, p.wood))
        if k < boards:
            x = -width / 2 + 0.03
            while x < width / 2 - 0.15:
                run = float(p.draw.uniform(0.12, 0.5))
                run, tall = min(run, width / 2 - 0.03 - x), float(p.draw.uniform(0.5, 0.85)) * gap
                if run > 0.06 and p.draw.random() < 0.75:
                    look = Material("books", (0.3, 0.3, 0.3), p.colour(0.5, 0.3, 0.8), 0.3, p.number()) if p.draw.random() < 0.7 else p.any()
                    parts.append(_box(x + run / 2, -0.02, z + 0.012 + tall / 2, run / 2, depth / 2 - 0.04, tall / 2, look))
                x += run + float(p.draw.uniform(0.0, 0.15))
    return Piece("shelf", tuple(parts), (width, depth, height), ((-width / 2, width / 2, -depth / 2, depth / 2, height, 0.3),) if height < 1.5 else ())


def cupboard(p: Palette) -> Piece:
    """A wardrobe, a sideboard or a chest of drawers, with fronts and handles."""
    tall = p.draw.random() < 0.4
    width, depth = p.draw.uniform(0.8, 1.6), p.draw.uniform(0.4, 0.6)
    height = p.draw.uniform(1.75, 2.15) if tall else p.draw.uniform(0.6, 1.1)
    parts = [_box(0, 0, height / 2, width / 2, depth / 2, height / 2, p.wood)]
    columns, rows = (int(p.draw.integers(2, 4)), 1) if tall or p.draw.random() < 0.4 else (int(p.draw.integers(1, 3)), int(p.draw.integers(2, 5)))
    cell_w, cell_h = width / columns, (height - 0.1) / rows
    for i in range(columns):
        for j in range(rows):
            x, z = -width / 2 + (i + 0.5) * cell_w, 0.08 + (j + 0.5) * cell_h
            parts.append(_box(x, depth / 2 + 0.008, z, cell_w / 2 - 0.008, 0.01, cell_h / 2 - 0.008, p.wood))
            knob = (x + (cell_w / 2 - 0.06) * (1 if i % 2 == 0 else -1), z) if rows == 1 else (x, z + cell_h * 0.2)
            parts.append(_box(knob[0], depth / 2 + 0.03, knob[1], *((0.008, 0.012, 0.06) if rows == 1 else (0.06, 0.012, 0.008)), p.metal))
    return Piece("cupboard", tuple(parts), (width, depth + 0.05, height), () if tall else ((-width / 2, width / 2, -depth / 2, depth / 2, height, 0.7),))


def desk(p: Palette) -> Piece:
    """A desk with a screen, sometimes a keyboard and drawers."""
    width, depth, height = p.draw.uniform(1.1, 1.7), p.draw.uniform(0.6, 0.8), 0.74
    parts = [*_legs(width, depth, height - 0.03, 0.025, p.metal), _box(0, 0, height - 0.015, width / 2, depth / 2, 0.015, p.wood)]
    if p.draw.random() < 0.6:
        parts.append(_box(width / 2 - 0.25, 0, 0.36, 0.2, depth / 2 - 0.04, 0.3, p.wood))
    dark = Material("plain", (0.015, 0.015, 0.018), gloss=0.5)
    screen = Material("poster", p.colour(0.5), p.colour(0.5), 0.5, p.number(), 0.3, float(p.draw.choice([0.0, 1.2])))
    for x in (0.0,) if p.draw.random() < 0.6 else (-0.3, 0.3):
        panel = (x, -depth / 4, height + 0.27, 0.27, 0.018, 0.17, dark), (x, -depth / 4 + 0.018, height + 0.27, 0.255, 0.003, 0.155, screen)
        foot = (x, -depth / 4, height + 0.06, 0.025, 0.02, 0.06, dark), (x, -depth / 4, height + 0.008, 0.12, 0.09, 0.008, dark)
        parts += [_box(*solid, name="screen") for solid in (*panel, *foot)]
    parts.append(_box(0.03, depth / 6, height + 0.012, 0.22, 0.07, 0.01, dark))
    return Piece("desk", tuple(parts), (width, depth, height), ((-width / 2, width / 2, -depth / 2, depth / 2, height, 0.4),))


def counter(p: Palette) -> Piece:
    """A kitchen run: base cabinets, worktop, tiled back, wall cabinets."""
    units, depth, height = int(p.draw.integers(2, 6)), 0.6, 0.9
    width = units * 0.6
    front = Material("plain", p.colour(0.6, 0.05, 0.85), gloss=0.3) if p.draw.random() < 0.6 else p.wood
    top = Material("marble", p.colour(0.1, 0.04, 0.7), p.colour(0.1, 0.1, 0.8), 0.5, p.number(), 0.4)
    parts = [_box(0, -0.02, 0.48, width / 2, depth / 2 - 0.03, 0.39, p.metal), _box(0, 0, height - 0.02, width / 2, depth / 2, 0.02, top)]
    parts.append(
        _box(0, -depth / 2 + 0.006, height + 0.27, width / 2, 0.005, 0.27, Material("tiles", p.colour(0.3, 0.3, 0.85), (0.6, 0.6, 0.58), 0.1, p.number(), 0.4))
    )
    upper = p.draw.random() < 0.75
    for k in range(units):
        x = -width / 2 + 0.6 * (k + 0.5)
        parts.append(_box(x, depth / 2 - 0.035, 0.48, 0.294, 0.012, 0.385, front))
        parts.append(_box(x, depth / 2 - 0.01, 0.8, 0.12, 0.012, 0.008, p.metal))
        if upper and p.draw.random() < 0.85:
            parts += [_box(x, -depth / 2 + 0.17, 1.78, 0.298, 0.17, 0.35, front), _box(x, -depth / 2 + 0.35, 1.5, 0.1, 0.012, 0.008, p.metal)]
    return Piece("counter", tuple(parts), (width, depth, 2.15 if upper else 1.45), ((-width / 2, width / 2, -0.1, depth / 2, height, 0.45),))


def fridge(p: Palette) -> Piece:
    """A refrigerator."""
    tone = float(p.draw.uniform(0.3, 0.85))
    height, split = p.draw.uniform(1.5, 1.9), p.draw.uniform(0.4, 0.7)
    skin = Material("plain", (tone, tone, tone), gloss=0.5)
    parts = [_box(0, 0, height / 2, 0.3, 0.3, height / 2, skin)]
    for low, high in ((0.06, height * split), (height * split + 0.01, height)):
        parts += [
            _box(0, 0.32, (low + high) / 2, 0.298, 0.025, (high - low) / 2 - 0.005, skin),
            _box(-0.25, 0.37, (low + high) / 2, 0.012, 0.015, min(0.2, (high - low) / 3), p.metal),
        ]
    return Piece("fridge", tuple(parts), (0.62, 0.75, height))


def floor_lamp(p: Palette) -> Piece:
    """A standing lamp."""
    height, r = p.draw.uniform(1.3, 1.7), p.draw.uniform(0.13, 0.22)
    shade = Material("plain", (0.9, 0.8, 0.6), glow=float(p.draw.uniform(1.0, 2.5)))
    parts = [Part("cylinder", (0, 0, 0.015), (0.14, 0.14, 0.015), p.metal), Part("cylinder", (0, 0, height / 2), (0.012, 0.012, height / 2), p.metal)]
    parts.append(Part("cylinder", (0, 0, height), (r, r, 0.13), shade))
    return Piece("lamp", tuple(parts), (2 * r, 2 * r, height + 0.15), lamp=(0, 0, height + 0.2))


def plant(p: Palette) -> Piece:
    """A pot with a bush of leaves."""
    r, tall = p.draw.uniform(0.1, 0.2), p.draw.uniform(0.4, 1.2)
    green = Material("carpet", (0.03, 0.1, 0.02), (0.1, 0.25, 0.05), 0.08, p.number())
    parts = [Part("cylinder", (0, 0, r), (r, r, r), Material("plain", p.colour(0.6))), Part("cylinder", (0, 0, r + tall / 3), (0.015, 0.015, tall / 3), p.wood)]
    for _ in range(int(p.draw.integers(5, 12))):
        x, y, z = p.draw.uniform(-0.25, 0.25), p.draw.uniform(-0.25, 0.25), 2 * r + p.draw.uniform(0.15, tall)
        size = p.draw.uniform(0.05, 0.17, 3)
        parts.append(
            Part("ellipsoid", (float(x), float(y), float(z)), tuple(size.tolist()), green, turn=float(p.draw.uniform(0, 3)), lean=float(p.draw.uniform(-1, 1)))
        )
    return Piece("plant", tuple(parts), (0.5, 0.5, 2 * r + tall))


def carton(p: Palette) -> Piece:
    """Boxes stacked on the floor."""
    parts, z = [], 0.0
    for _ in range(int(p.draw.integers(1, 4))):
        half = p.draw.uniform(0.1, 0.28, 3)
        look = p.any() if p.draw.random() < 0.5 else Material("plaster", (0.4, 0.26, 0.13), seed=p.number())
        parts.append(_box(0.0, 0.0, z + float(half[2]), *half.tolist(), look, turn=float(p.draw.uniform(-0.3, 0.3))))
        z += 2 * float(half[2])
    return Piece("box", tuple(parts), (0.55, 0.55, z))


def thing(p: Palette, room: float) -> Piece:
    """Something small that stands on a table: ``room`` is the free height, metres."""
    kind = p.draw.choice(["cup", "book", "box", "ball", "bottle", "stack", "frame"])
    tall = float(min(room, p.draw.uniform(0.06, 0.32)))
    if kind in ("cup", "bottle"):
        r = float(p.draw.uniform(0.03, 0.06)) if kind == "cup" else float(p.draw.uniform(0.025, 0.05))
        parts = [Part("cylinder", (0, 0, tall / 2), (r, r, tall / 2), p.any())]
        if kind == "bottle":
            parts.append(Part("cylinder", (0, 0, tall * 1.15), (r * 0.4, r * 0.4, tall * 0.15), p.any()))
        return Piece(str(kind), tuple(parts), (2 * r, 2 * r, tall))
    if kind == "ball":
        r = tall / 2
        return Piece("ball", (Part("ellipsoid", (0, 0, r), (r, r, r), p.any()),), (2 * r, 2 * r, tall))
    if kind in ("book", "stack"):
        parts = []
        for k in range(1 if kind == "book" else int(p.draw.integers(2, 6))):
            parts.append(
                _box(
                    0,
                    0,
                    0.016 + 0.032 * k,
                    float(p.draw.uniform(0.07, 0.11)),
                    float(p.draw.uniform(0.1, 0.15)),
                    0.016,
                    p.any(),
                    turn=float(p.draw.uniform(-0.5, 0.5)),
                )
            )
        return Piece("book", tuple(parts), (0.22, 0.28, 0.032 * len(parts)))
    if kind == "frame":
        return Piece(
            "picture",
            (_box(0, 0, tall / 2, tall * 0.4, 0.01, tall / 2, Material("poster", p.colour(), p.colour(), tall, p.number()), lean=0.2),),
            (tall, 0.1, tall),
        )
    half = p.draw.uniform(0.04, 0.15, 2)
    return Piece("box", (_box(0, 0, tall / 2, float(half[0]), float(half[1]), tall / 2, p.any()),), (float(2 * half[0]), float(2 * half[1]), tall))


BY_THE_WALL: dict[str, tuple[Callable[[Palette], Piece], ...]] = {
    "living": (sofa, shelf, cupboard, plant, floor_lamp, sofa, cupboard, carton),
    "bedroom": (bed, cupboard, cupboard, desk, shelf, floor_lamp, carton),
    "kitchen": (counter, counter, fridge, cupboard, shelf, carton),
    "office": (desk, desk, shelf, cupboard, plant, shelf, carton),
    "dining": (cupboard, shelf, plant, cupboard, floor_lamp),
    "store": (shelf, carton, carton, cupboard, shelf, carton, fridge),
}
IN_THE_MIDDLE: dict[str, tuple[Callable[[Palette], Piece], ...]] = {
    "living": (low_table, sofa), "bedroom": (carton, chair), "kitchen": (table,), "office": (desk, table), "dining": (table,), "store": (carton, table),
}  # fmt: skip
