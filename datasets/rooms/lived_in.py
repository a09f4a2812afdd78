"""A room as people leave it: somebody in it, thin things, clutter, surfaces as uneven as real ones, a camera held anyhow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import furniture, people
from .camera import Stance
from .layout import footprint, is_free
from .palette import Palette, Piece
from .textures import Material
from .walls import Builder, Scene, turned

PLACES_TRIED = 6
CLOSE, USUAL, ANYHOW = (
    Stance((1.25, 0.25), 0.5, (30, 12, 0, 60), 3.0, 0.8),
    Stance((1.4, 0.25), 0.5, (13, 10, -12, 45), 2.5),
    Stance((1.1, 0.4), 0.3, (10, 18, -30, 60), 6.0, 1.0),
)


def stance(draw: np.random.Generator) -> Stance:
    """Near and looking down, as people photograph a desk; as in most pictures of rooms; or anyhow."""
    return (CLOSE, USUAL, ANYHOW)[int(draw.choice(3, p=[0.3, 0.5, 0.2]))]


def live_in(scene: Scene, draw: np.random.Generator) -> Scene:
    """The same room with people, thin things and clutter where there is space on its floor, and with mottled surfaces."""
    p, build = Palette(draw), Builder()
    build.materials = list(scene.materials)
    build.numbers = {material: number for number, material in enumerate(scene.materials)}
    build.groups, build.lights = list(scene.groups), list(scene.lights)
    size, taken = scene.rooms[0][1], list(scene.footprints)

    def put(piece: Piece, margin: float) -> None:
        for _ in range(PLACES_TRIED):
            x, y = draw.uniform(0.3, 1, 2) * (size[:2] - 0.3)
            axes = turned(float(draw.uniform(0, 2 * np.pi)), 0)
            rectangle = footprint(x, y, piece.size, axes)
            if is_free(rectangle, taken, margin) and min(rectangle[0], rectangle[2]) > 0 and rectangle[1] < size[0] and rectangle[3] < size[1]:
                taken.append(rectangle)
                build.add(piece.name, piece.parts, np.array([x, y, 0.0]), axes)
                return

    if draw.random() < 0.35:
        seats = [group for group in scene.groups if group.shapes[0].name == "chair"]
        for seat in draw.permutation(len(seats))[: int(draw.integers(0, 3))].tolist():
            low, high = seats[seat].bounds
            middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, 0.0])
            build.add("", people.person(p, seated=True).parts, middle, seats[seat].shapes[0].axes)
        for _ in range(int(draw.integers(0, 3))):
            put(people.person(p, seated=False), 0.05)
    for _ in range(int(draw.poisson(0.8))):
        put(people.THIN[int(draw.integers(len(people.THIN)))](p), 0.02)
    for _ in range(int(draw.poisson(2.5))):
        put(people.bag(p) if draw.random() < 0.4 else furniture.carton(p) if draw.random() < 0.3 else furniture.thing(p, 0.4), 0.0)
    materials = tuple(_uneven(material, draw) for material in build.materials)
    return Scene(tuple(build.groups), materials, tuple(build.lights), scene.rooms, tuple(taken), scene.kind)


def _uneven(material: Material, draw: np.random.Generator) -> Material:
    if material.glow and material.pattern != "sky":
        return material
    mottle, span, natural = float(draw.gamma(2.0, 0.045)), float(np.exp(draw.uniform(np.log(0.4), np.log(4.0)))), draw.random()
    if material.pattern == "poster" and natural < 0.6:
        material = replace(material, pattern="natural")
    seed = material.seed or int(draw.integers(1 << 20))
    return replace(material, mottle=max(material.mottle, min(mottle, 0.5)), span=span, seed=seed)
