"""Rays against boxes, cylinders and ellipsoids, all rays of a shape at once.

World: metres, z up. A ray is ``origin + t * direction``; camera rays have a direction whose component along the optical
axis is 1, so that ``t`` is the perpendicular depth that depth cameras and NYU Depth v2 report.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

KINDS = ("box", "cylinder", "ellipsoid")
NEAR_M = 0.02
TINY = np.float32(1e-9)
SIGNS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
SLACK_M = 0.005  # by which spheres are taken larger: what rounds away in float32 must not lose a shadow


@dataclass(frozen=True, eq=False)
class Shape:
    """One solid.

    Args:
        kind: ``box``, ``cylinder`` (upright along its third axis) or ``ellipsoid``.
        center: world metres [3].
        half: half extents along the solid's own axes, metres [3].
        axes: rows are the solid's axes in the world, orthonormal [3, 3].
        surface: index into the scene's materials.
        shift: added to the solid's own coordinates before a texture looks at them, so that parts of one wall match [3].
        name: what a person calls it or what it is a part of (``chair``), or ``""``.
    """

    kind: str
    center: np.ndarray
    half: np.ndarray
    axes: np.ndarray
    surface: int
    shift: np.ndarray
    name: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a shape is one of {', '.join(KINDS)}, got {self.kind!r}")
        if not (np.asarray(self.half) > 0).all():
            raise ValueError(f"a shape has positive half extents, got {self.half}")

    @property
    def radius(self) -> float:
        """Of a sphere around the centre that holds the solid, metres."""
        return float(np.linalg.norm(self.half))

    @cached_property
    def corners(self) -> np.ndarray:
        """Of the box around the solid, world metres [8, 3]."""
        return self.center + (SIGNS * self.half) @ self.axes


@dataclass(frozen=True, eq=False)
class Group:
    """Solids that belong together (a chair): a sphere around them keeps most rays from being tried on each.

    Args:
        shapes: the solids.
        casts: whether they throw shadows (the walls need not: every lamp is inside).
    """

    shapes: tuple[Shape, ...]
    casts: bool = True

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high corner of the box around all solids, world metres [3] each."""
        corners = np.concatenate([shape.corners for shape in self.shapes])
        return corners.min(0), corners.max(0)

    @cached_property
    def sphere(self) -> tuple[np.ndarray, float]:
        """Centre [3] and radius, metres."""
        low, high = self.bounds
        corners = np.concatenate([shape.corners for shape in self.shapes])
        return (low + high) / 2, float(np.linalg.norm(corners - (low + high) / 2, axis=1).max())


@dataclass(frozen=True, eq=False)
class View:
    """A pinhole camera.

    Args:
        position: world metres [3].
        rotation: rows are the camera's right, down and forward in the world [3, 3].
        intrinsics: fx, fy, cx, cy in pixels.
        height, width: of the picture, pixels.
    """

    position: np.ndarray
    rotation: np.ndarray
    intrinsics: tuple[float, float, float, float]
    height: int
    width: int

    def directions(self) -> np.ndarray:
        """Through every pixel centre, world, forward component 1: float32 [H, W, 3]."""
        fx, fy, cx, cy = self.intrinsics
        x = (np.arange(self.width) - cx) / fx
        y = (np.arange(self.height) - cy) / fy
        right, down, forward = self.rotation
        return (y[:, None, None] * down + (x[:, None] * right + forward)[None]).astype(np.float32)

    def windows(self, corners: np.ndarray) -> list[tuple[slice, slice] | None]:
        """For each hull of ``corners`` [n, 8, 3] the rows and columns that can see it, or None if none can."""
        local = (corners - self.position) @ self.rotation.T
        near = local[..., 2] <= NEAR_M
        fx, fy, cx, cy = self.intrinsics
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = local[..., 0] / local[..., 2] * fx + cx, local[..., 1] / local[..., 2] * fy + cy
            top, left = np.maximum(0, np.floor(y.min(1))), np.maximum(0, np.floor(x.min(1)))
            bottom, right = np.minimum(self.height, np.ceil(y.max(1)) + 1), np.minimum(self.width, np.ceil(x.max(1)) + 1)
        behind, across = near.all(1), near.any(1)
        top, left, bottom, right = (
            np.where(across, whole, part) for whole, part in zip((0, 0, self.height, self.width), (top, left, bottom, right), strict=True)
        )
        seen = ~behind & (top < bottom) & (left < right)
        edges = np.stack([top, bottom, left, right], 1)
        return [
            (slice(int(t), int(b)), slice(int(le), int(r))) if visible else None for visible, (t, b, le, r) in zip(seen.tolist(), edges.tolist(), strict=True)
        ]


def _box(origin: np.ndarray, direction: np.ndarray, half: np.ndarray) -> np.ndarray:
    enter, leave = np.float32(-np.inf), np.float32(np.inf)
    for axis in range(3):
        step = direction[axis]
        inverse = 1 / np.where(np.abs(step) < TINY, TINY, step)
        middle, reach = -origin[axis] * inverse, np.float32(half[axis]) * np.abs(inverse)
        enter, leave = np.maximum(enter, middle - reach), np.minimum(leave, middle + reach)
    return np.where((enter <= leave) & (enter > 0), enter, np.float32(np.inf))


def _quadric(origin: np.ndarray, direction: np.ndarray, half: np.ndarray, terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit of the unit sphere (three terms) or of the endless unit cylinder (two)."""
    inverse = (1 / half).astype(np.float32)
    o = [origin[k] * inverse[k] for k in range(terms)]
    d = [direction[k] * inverse[k] for k in range(terms)]
    a = sum(x * x for x in d) + TINY
    b = sum(x * y for x, y in zip(o, d, strict=True))
    c = sum(x * x for x in o) - np.float32(1)
    root = np.sqrt(np.maximum(b * b - a * c, np.float32(-1)).astype(np.float32))  # NaN where the ray passes by
    return (-b - root) / a, (-b + root) / a


def distance(shape: Shape, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Where rays, given in the solid's own axes, enter it.

    Args:
        origin: [3] or [3, n], direction: [3, n], float32.

    Returns:
        The parameter t of the entry, float32 [n]; infinity where a ray misses, starts inside, or points away.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if shape.kind == "box":
            return _box(origin, direction, shape.half)
        if shape.kind == "ellipsoid":
            enter, _ = _quadric(origin, direction, shape.half, 3)
            return np.where(enter > 0, enter, np.float32(np.inf))
        enter, leave = _quadric(origin, direction, shape.half, 2)
        step = np.where(np.abs(direction[2]) < TINY, TINY, direction[2])
        middle, reach = -origin[2] / step, np.float32(shape.half[2]) / np.abs(step)
        enter, leave = np.maximum(enter, middle - reach), np.minimum(leave, middle + reach)
        return np.where((enter <= leave) & (enter > 0), enter, np.float32(np.inf))


def cast(view: View, groups: tuple[Group, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest solid behind every pixel.

    Returns:
        depth_m: float32 [H, W], perpendicular depth; infinity where nothing is hit.
        index: int32 [H, W], into the shapes of all groups in order; -1 where nothing is hit.
    """
    rays = view.directions()
    depth = np.full((view.height, view.width), np.inf, np.float32)
    index = np.full((view.height, view.width), -1, np.int32)
    shapes = [shape for group in groups for shape in group.shapes]
    for number, (shape, window) in enumerate(zip(shapes, view.windows(np.stack([shape.corners for shape in shapes])), strict=True)):
        if window is None:
            continue
        part = rays[window]
        axes = shape.axes.astype(np.float32)
        local = (part.reshape(-1, 3) @ axes.T).T
        origin = (shape.axes @ (view.position - shape.center)).astype(np.float32)
        t = distance(shape, origin, local).reshape(part.shape[:2])
        nearer = (t < depth[window]) & (t > NEAR_M)
        depth[window][nearer] = t[nearer]
        index[window][nearer] = number
    return depth, index


def blocked(points: np.ndarray, light: np.ndarray, groups: tuple[Group, ...]) -> np.ndarray:
    """Whether a solid stands between points and light.

    Args:
        points: world metres, float32 [n, 3], already lifted a little off their surface.
        light: world metres, float32 [n, 3] (one place per point: a lamp is no point) or [3].

    Returns:
        bool [n].
    """
    shadow = np.zeros(len(points), bool)
    groups = tuple(group for group in groups if group.casts)
    if not groups or not len(points):
        return shadow
    toward = np.broadcast_to(light, points.shape) - points
    square = np.einsum("ij,ij->i", toward, toward) + TINY
    # |center - points - along * toward|^2 of all spheres at once, by products of matrices: [groups, points]
    centers, radii = (np.stack([np.asarray(group.sphere[k], np.float32) for group in groups]) for k in range(2))
    dot = centers @ toward.T - np.einsum("ij,ij->i", points, toward)
    along = np.clip(dot / square, 0, 1)
    miss = (centers * centers).sum(1)[:, None] - 2 * (centers @ points.T) + np.einsum("ij,ij->i", points, points) - along * (2 * dot - along * square)
    meets = miss < ((radii + np.float32(SLACK_M)) ** 2)[:, None]
    for group, met in zip(groups, meets, strict=True):
        near = np.flatnonzero(met & ~shadow)
        for shape in group.shapes:
            if not len(near):
                break
            axes = shape.axes.astype(np.float32)
            origin = ((points[near] - shape.center.astype(np.float32)) @ axes.T).T
            hit = distance(shape, origin, (toward[near] @ axes.T).T) < 1
            shadow[near[hit]] = True
            near = near[~hit]
    return shadow


def surface_at(shape: Shape, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a texture and a lamp need to know about points on a solid.

    Args:
        points: world metres, float32 [n, 3].

    Returns:
        normal: world, unit, outward, float32 [n, 3].
        place: two texture coordinates in metres along the surface, float32 [n, 2].
        face: which axis of the solid the face looks along, int [n] (0 to 2; curved sides are 3).
    """
    axes = shape.axes.astype(np.float32)
    local = (points - shape.center.astype(np.float32)) @ axes.T
    half = shape.half.astype(np.float32)
    scaled = local / half
    own = local + shape.shift.astype(np.float32)
    if shape.kind == "box":
        face = (np.abs(local) - half).argmax(1)  # in metres: a long box's share would confuse its faces along an edge
        normal = np.zeros_like(local)
        rows = np.arange(len(local))
        normal[rows, face] = np.sign(scaled[rows, face])
        first, second = np.array([1, 0, 0])[face], np.array([2, 2, 1])[face]
        place = np.stack([own[rows, first], own[rows, second]], 1)
        return normal @ axes, place, face
    if shape.kind == "ellipsoid":
        normal = scaled / half
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + TINY
        angle = np.arctan2(scaled[:, 1], scaled[:, 0])
        return normal @ axes, np.stack([angle * half[0], own[:, 2]], 1), np.full(len(local), 3)
    cap = np.abs(scaled[:, 2]) > np.hypot(scaled[:, 0], scaled[:, 1])
    side = np.stack([scaled[:, 0] / half[0], scaled[:, 1] / half[1], np.zeros(len(local), np.float32)], 1)
    side /= np.linalg.norm(side, axis=1, keepdims=True) + TINY
    normal = np.where(cap[:, None], np.stack([np.zeros(len(local)), np.zeros(len(local)), np.sign(scaled[:, 2])], 1), side).astype(np.float32)
    around = np.stack([np.arctan2(scaled[:, 1], scaled[:, 0]) * half[0], own[:, 2]], 1)
    return normal @ axes, np.where(cap[:, None], own[:, :2], around).astype(np.float32), np.where(cap, 2, 3)
