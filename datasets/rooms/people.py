"""People and thin things out of solids: what real rooms have in front of their walls and furniture has not."""

from __future__ import annotations

import numpy as np

from .palette import Palette, Part, Piece
from .textures import Material

FLAT = np.pi / 2  # a cylinder that leans this far lies along y


def _skin(p: Palette) -> Material:
    tone = float(p.draw.uniform(0.08, 0.62))
    return Material("plain", (tone, tone * 0.66, tone * 0.5), seed=p.number(), mottle=0.06)


def _clothes(p: Palette) -> Material:
    pattern = str(p.draw.choice(["plain", "fabric", "stripes", "natural"], p=[0.45, 0.35, 0.1, 0.1]))
    return Material(pattern, p.colour(0.7, 0.01, 0.7), p.colour(0.7, 0.01, 0.7), float(p.draw.uniform(0.04, 0.3)), p.number(), mottle=0.2, span=0.7)


def _head(p: Palette, y: float, z: float, skin: Material) -> list[Part]:
    hair = Material("natural", (0.02, 0.015, 0.01), p.colour(0.3, 0.02, 0.35), 0.2, p.number())
    turn = float(p.draw.normal(0, 0.5))
    parts = [Part("cylinder", (0, y, z - 0.13), (0.055, 0.06, 0.07), skin), Part("ellipsoid", (0, y + 0.01, z), (0.078, 0.098, 0.118), skin, turn)]
    if p.draw.random() < 0.9:
        parts.append(Part("ellipsoid", (0, y - 0.022, z + 0.025), (0.088, 0.098, 0.112), hair, turn))
    return parts


def person(p: Palette, seated: bool) -> Piece:
    """Somebody who stands, or sits on a seat 0.45 m high and looks to the front; parts overlap, as clothes hide the joints."""
    skin, top, bottom = _skin(p), _clothes(p), _clothes(p)
    grow = float(p.draw.uniform(0.88, 1.1))
    wide = float(p.draw.uniform(0.85, 1.25))
    hip, parts = (0.45, []) if seated else (0.88 * grow, [])
    chest, shoulder = hip + 0.3 * grow, hip + 0.52 * grow
    for side in (-1, 1):
        x = side * 0.1 * wide
        if seated:
            parts.append(Part("cylinder", (x, 0.2, 0.52), (0.085 * wide, 0.075, 0.24), bottom, lean=FLAT))
            parts.append(Part("cylinder", (x, 0.42, 0.24), (0.055, 0.06, 0.24), bottom))
        else:
            step = float(p.draw.normal(0, 0.08))
            parts.append(Part("cylinder", (x, 0, hip / 2), (0.08 * wide, 0.09, hip / 2), bottom, lean=step))
        shoe = (x, 0.48 if seated else 0.05, 0.045)
        parts.append(Part("ellipsoid", shoe, (0.05, 0.13, 0.05), Material("plain", p.colour(0.4, 0.01, 0.3))))
        bend, bare = float(p.draw.uniform(-1.2, 0.3)), p.draw.random() < 0.4
        arm = 0.28 * grow
        # the arm hangs from the shoulder, turned forward by ``-bend``
        hand = np.array([side * 0.23 * wide, -arm * np.sin(bend), shoulder - arm * np.cos(bend)])
        parts.append(Part("cylinder", tuple(hand.tolist()), (0.05, 0.05, arm), skin if bare else top, lean=-bend))
        tip = np.array([side * 0.23 * wide, -2 * arm * np.sin(bend), shoulder - 2 * arm * np.cos(bend)])
        parts.append(Part("ellipsoid", tuple(tip.tolist()), (0.045, 0.05, 0.07), skin))
    parts.append(Part("ellipsoid", (0, 0, hip + 0.08), (0.19 * wide, 0.13 * wide, 0.2), bottom))
    parts.append(Part("ellipsoid", (0, 0, chest), (0.21 * wide, 0.13 * wide, 0.34 * grow), top))
    parts.append(Part("ellipsoid", (0, 0, shoulder - 0.02), (0.24 * wide, 0.1, 0.09), top))
    tall = shoulder + 0.28 * grow
    parts += _head(p, 0.0, tall, skin)
    return Piece("", tuple(parts), (0.55 * wide, 1.0 if seated else 0.4, tall + 0.12))


def tripod(p: Palette) -> Piece:
    """Three thin legs that meet below a box: a camera on its stand, a music stand, a stool."""
    height, reach, r = float(p.draw.uniform(0.4, 1.5)), float(p.draw.uniform(0.15, 0.35)), float(p.draw.uniform(0.008, 0.02))
    lean = float(np.arctan2(reach, height))
    half = float(np.hypot(reach, height)) / 2
    parts = []
    for k in range(3):
        turn = 2 * np.pi * k / 3
        # leaning about x by ``lean`` moves the lower end to +y; the turn then carries it around
        foot = reach / 2 * np.array([-np.sin(turn), np.cos(turn)])
        parts.append(Part("cylinder", (float(foot[0]), float(foot[1]), height / 2), (r, r, half), p.metal, turn=turn, lean=lean))
    parts.append(Part("box", (0, 0, height + 0.05), tuple(p.draw.uniform(0.05, 0.2, 3).tolist()), p.any()))
    return Piece("", tuple(parts), (2 * reach, 2 * reach, height + 0.25))


def coat_stand(p: Palette) -> Piece:
    """A pole with hooks and, mostly, clothes on it."""
    height, wood = float(p.draw.uniform(1.5, 1.9)), p.wood if p.draw.random() < 0.6 else p.metal
    parts = [Part("cylinder", (0, 0, height / 2), (0.02, 0.02, height / 2), wood), Part("cylinder", (0, 0, 0.02), (0.2, 0.2, 0.02), wood)]
    for k in range(6):
        turn = k * np.pi / 3
        parts.append(Part("cylinder", (float(-0.09 * np.sin(turn)), float(0.09 * np.cos(turn)), height - 0.1), (0.01, 0.01, 0.1), wood, turn, 1.1))
        if p.draw.random() < 0.3:
            long = float(p.draw.uniform(0.2, 0.5))
            parts.append(
                Part("ellipsoid", (float(-0.15 * np.sin(turn)), float(0.15 * np.cos(turn)), height - 0.12 - long), (0.12, 0.07, long), _clothes(p), turn)
            )
    return Piece("", tuple(parts), (0.5, 0.5, height))


def ladder(p: Palette) -> Piece:
    """Two rails with rungs, leaning to the back; or a clothes horse, if it is low."""
    height, wide, lean = float(p.draw.uniform(0.8, 2.0)), float(p.draw.uniform(0.18, 0.35)), float(p.draw.uniform(0.1, 0.35))
    look = p.wood if p.draw.random() < 0.5 else p.metal
    back = float(np.tan(lean))
    parts = [Part("box", (s * wide, 0.0, height / 2), (0.018, 0.012, height / 2 / np.cos(lean)), look, lean=lean) for s in (-1, 1)]
    for z in np.arange(0.25, height - 0.05, float(p.draw.uniform(0.2, 0.3))):
        parts.append(Part("box", (0, -back * (float(z) - height / 2), float(z)), (wide, 0.014, 0.012), look))
    return Piece("", tuple(parts), (2 * wide + 0.05, back * height + 0.1, height))


def bag(p: Palette) -> Piece:
    """A bag or a cushion on the floor."""
    half = p.draw.uniform((0.12, 0.08, 0.1), (0.3, 0.2, 0.28))
    look = _clothes(p)
    parts = [Part("ellipsoid", (0, 0, float(half[2]) * 0.9), tuple(half.tolist()), look)]
    if p.draw.random() < 0.5:
        parts.append(Part("cylinder", (0, 0, float(half[2]) * 1.9), (0.012, float(half[1]) * 0.7, 0.12), look))
    return Piece("", tuple(parts), (float(2 * half[0]), float(2 * half[1]), float(2 * half[2])))


THIN = (tripod, coat_stand, ladder)
