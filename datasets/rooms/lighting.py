"""Light on what the rays met: shining rectangles with soft shadows, ambient light that fades in corners and under furniture."""

from __future__ import annotations

import numpy as np

from .raycast import Shape, View, blocked, surface_at
from .textures import reflectance
from .walls import Scene

LIFT_M = np.float32(0.006)
CORNER_M, CONTACT_M = 0.28, 0.16
# where on a lamp each pixel of a 4 x 4 tile looks, so that neighbours together see the whole lamp
TILE = ((np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) + 0.5) / 16).astype(np.float32)


def _corners(points: np.ndarray, normals: np.ndarray, room: np.ndarray) -> np.ndarray:
    """How much of the ambient light is left near walls, floor and ceiling; a surface is not darkened by its own plane."""
    left = np.ones(len(points), np.float32)
    for axis in range(3):
        for bound, sign in ((room[0][axis], 1), (room[1][axis], -1)):
            away = np.maximum(sign * (points[:, axis] - np.float32(bound)), 0)
            facing = np.clip(1 - sign * normals[:, axis], 0, 1)
            left *= 1 - np.float32(0.45) * facing * np.exp(-away / np.float32(CORNER_M))
    return left


def _contact(points: np.ndarray, owner: np.ndarray, scene: Scene) -> np.ndarray:
    """How much of the ambient light is left beside and under other groups of solids."""
    left = np.ones(len(points), np.float32)
    for number, group in enumerate(scene.groups):
        if not group.casts:
            continue
        low, high = (corner.astype(np.float32) for corner in group.bounds)
        near = np.flatnonzero(((points > low - 3 * CONTACT_M) & (points < high + 3 * CONTACT_M)).all(1) & (owner != number))
        gap = np.linalg.norm(np.maximum(np.maximum(low - points[near], points[near] - high), 0), axis=1)
        left[near] *= 1 - np.float32(0.5) * np.exp(-gap / np.float32(CONTACT_M))
    return np.maximum(left, np.float32(0.25))


def _smooth(light: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Mean over 4 x 4 neighbours on the same face: turns the dither of soft shadows into gradients."""
    for axis in (0, 1):
        total, count = np.zeros_like(light), np.zeros(key.shape, np.float32)
        for step in range(4):
            moved_key, moved = np.roll(key, step - 2, axis), np.roll(light, step - 2, axis)
            same = (moved_key == key).astype(np.float32)
            total += moved * same[..., None]
            count += same
        light = total / count[..., None]
    return light


def _neighbours(key: np.ndarray) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], np.ndarray]:
    """How each pixel of a picture is made of those of every second row and column that lie on its own face.

    Args:
        key: int [H, W], one number a face.

    Returns:
        four times rows [H], columns [W] of the smaller picture and their share, float32 [H, W, 1]; where there is no such neighbour, bool [H, W].
    """
    small = key[::2, ::2]
    places = [
        (np.minimum(np.arange(side) // 2 + more, count - 1), np.abs(1 - more - np.arange(side) % 2 / 2))
        for side, count in zip(key.shape, small.shape, strict=True)
        for more in (0, 1)
    ]
    parts = []
    for rows, down in places[:2]:
        for columns, across in places[2:]:
            same = small[np.ix_(rows, columns)] == key
            parts.append((rows, columns, (down[:, None] * across * same).astype(np.float32)[..., None]))
    total = sum(share for _, _, share in parts)
    whole = np.maximum(total, np.float32(1e-6))
    return [(rows, columns, share / whole) for rows, columns, share in parts], total[..., 0] == 0


def _illuminate(scene: Scene, points: np.ndarray, normals: np.ndarray, toward: np.ndarray, gloss: np.ndarray, owner: np.ndarray, tile: np.ndarray):
    """Ambient light, direct light and highlights of n pixels, float32 [n, 3] each.

    Args:
        points, normals, toward: world place, normal and direction to the camera, [n, 3].
        gloss, owner: of the surface, and the number of its group, [n].
        tile: row and column on the lamps' tile, [2, n].
    """
    ambient, direct, shine = (np.zeros_like(points) for _ in range(3))
    inside_of = np.zeros(len(points), np.int64)
    for number in range(1, len(scene.rooms)):
        low, high = scene.rooms[number]
        inside_of[((points > low - 0.07) & (points < high + 0.07)).all(1)] = number
    v, u = tile
    first, second = 2 * TILE[v % 4, u % 4] - 1, 2 * TILE[(v + 1) % 4, (3 * u + 2) % 4] - 1
    for number, room in enumerate(scene.rooms):
        here = np.flatnonzero(inside_of == number)
        if not len(here):
            continue
        p, n = points[here], normals[here]
        lights = [light for light in scene.lights if light.room == number]
        total = sum((light.colour for light in lights), np.zeros(3))
        size = room[1] - room[0]
        share = (0.045 + 0.28 * total / (4 + size[0] * size[1])).astype(np.float32)
        sides = 0.8 + 0.2 * n[:, 2:3]  # a pale ceiling above, a darker floor below
        ambient[here] = share * sides * (_corners(p, n, room) * _contact(p, owner[here], scene))[:, None]
        for light in lights:
            spot = (light.center + first[here, None] * light.sides[0] + second[here, None] * light.sides[1]).astype(np.float32)
            ray = spot - p
            square = np.einsum("ij,ij->i", ray, ray)
            unit = ray / np.sqrt(square + 1e-6)[:, None]
            cosine = np.einsum("ij,ij->i", n, unit)
            if light.facing.any():
                cosine = cosine * np.clip(-(unit @ light.facing.astype(np.float32)), 0, 1)
            lit = np.flatnonzero(cosine > 0.003)
            lit = lit[~blocked(p[lit] + n[lit] * LIFT_M, spot[lit], scene.groups)]
            strength = np.zeros(len(p), np.float32)
            strength[lit] = cosine[lit] / (np.float32(0.35) + square[lit])
            direct[here] += strength[:, None] * light.colour.astype(np.float32)
            half = unit + toward[here]
            half /= np.linalg.norm(half, axis=1, keepdims=True) + np.float32(1e-6)
            peak = np.clip(np.einsum("ij,ij->i", n, half), 0, 1) ** 40 * (strength > 0) / (np.float32(0.6) + square)
            shine[here] += (gloss[here] * peak)[:, None] * light.colour.astype(np.float32)
    return ambient, direct, shine


def shade(scene: Scene, view: View, depth: np.ndarray, index: np.ndarray, sparse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Radiance toward the camera.

    Args:
        depth, index: from ``raycast.cast``; a pixel without a hit stays black.
        sparse: whether light is computed for every second row and column only, and for what has no neighbour there on its own face; the
            others take their neighbours' light. Colours and depths have all pixels either way.

    Returns:
        radiance: linear RGB, float32 [H, W, 3], not yet exposed.
        facing: cosine between ray and surface normal, float32 [H, W], for the depth sensor's holes.
    """
    rays = view.directions().reshape(-1, 3)
    flat_index, flat_depth = index.reshape(-1), depth.reshape(-1)
    shapes: list[Shape] = [shape for group in scene.groups for shape in group.shapes]
    owners = np.repeat(np.arange(len(scene.groups)), [len(group.shapes) for group in scene.groups])
    order = np.argsort(flat_index, kind="stable")
    order = order[np.searchsorted(flat_index[order], 0) :]
    points = (view.position.astype(np.float32) + rays * np.where(np.isfinite(flat_depth), flat_depth, 0)[:, None]).astype(np.float32)
    normals, albedo = np.zeros_like(points), np.zeros_like(points)
    gloss, glow, key = (np.zeros(len(points), np.float32) for _ in range(3))
    toward = -rays / np.linalg.norm(rays, axis=1)[:, None]
    starts = np.flatnonzero(np.diff(flat_index[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        number = flat_index[rows[0]]
        shape, material = shapes[number], scene.materials[shapes[number].surface]
        normal, place, face = surface_at(shape, points[rows])
        cosine = np.abs(np.einsum("ij,ij->i", normal, toward[rows]))
        footprint = flat_depth[rows] / view.intrinsics[0] / np.maximum(cosine, 0.08)
        normals[rows], albedo[rows] = normal, reflectance(material, place, footprint.astype(np.float32))
        gloss[rows], glow[rows], key[rows] = material.gloss, material.glow, number * 4 + face
    shape2 = (view.height, view.width)
    key = key.reshape(shape2)
    step, seen = (2 if sparse else 1), order
    if sparse:
        parts, lonely = _neighbours(key)
        lit = lonely.copy()
        lit[::2, ::2] = True
        seen = order[lit.reshape(-1)[order]]
    found = _illuminate(scene, points[seen], normals[seen], toward[seen], gloss[seen], owners[flat_index[seen]], np.stack(np.divmod(seen, view.width)) // step)
    light = [np.zeros_like(points) for _ in range(3)]
    for whole, part in zip(light, found, strict=True):
        whole[seen] = part
    ambient, direct, shine = (part.reshape(*shape2, 3) for part in light)
    smooth = [_smooth(part[::step, ::step], key[::step, ::step]) for part in (direct, shine)]
    if sparse:
        own = np.concatenate([ambient + direct, shine], 2)
        small = np.concatenate([ambient[::2, ::2] + smooth[0], smooth[1]], 2)
        spread = sum(share * small[np.ix_(rows, columns)] for rows, columns, share in parts)
        diffuse, shine = np.split(np.where(lonely[..., None], own, spread), 2, axis=2)
    else:
        diffuse, shine = ambient + smooth[0], smooth[1]
    radiance = albedo.reshape(*shape2, 3) * (diffuse + glow.reshape(*shape2, 1)) + shine
    facing = np.abs(np.einsum("ij,ij->i", normals, toward))
    return radiance, facing.reshape(shape2)
