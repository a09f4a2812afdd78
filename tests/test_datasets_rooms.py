"""Synthetic rooms: the depth is exact, the picture is the same for the same seed, and it looks like a room in numbers."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.datasets.rooms.raycast import Group, Shape, View, blocked, cast, distance
from fathom.datasets.rooms.rooms import Rooms
from fathom.datasets.rooms.textures import PATTERNS, Material, reflectance

LEVEL = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float64)  # right, down, forward of a camera that looks along +y


def shape(kind, center, half, axes=None):
    return Shape(kind, np.array(center, float), np.array(half, float), np.eye(3) if axes is None else axes, 0, np.zeros(3))


def view(height=40, width=60, f=50.0):
    return View(np.zeros(3), LEVEL, (f, f, (width - 1) / 2, (height - 1) / 2), height, width)


def turned(angle):
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def test_depth_is_perpendicular_not_along_the_ray():
    wall = shape("box", (0, 5.5, 0), (50, 0.5, 50))
    depth, index = cast(view(), (Group((wall,)),))
    assert depth == pytest.approx(np.full(depth.shape, 5.0), abs=1e-5) and (index == 0).all()


def test_depth_of_a_floor_is_that_of_the_plane():
    floor = shape("box", (0, 0, -1.6), (100, 100, 0.1))  # top at z = -1.5
    scene_view = view()
    depth, _ = cast(scene_view, (Group((floor,)),))
    for y in range(24, 40):
        slope = (y - 19.5) / 50
        assert depth[y] == pytest.approx(np.full(60, 1.5 / slope), rel=1e-5)
    assert np.isinf(depth[:19]).all()


def test_nearest_solid_wins_and_hits_lie_on_their_surfaces():
    ball, pillar = shape("ellipsoid", (0.2, 3, 0.1), (0.5, 0.5, 0.5)), shape("cylinder", (-0.6, 4, 0), (0.3, 0.3, 0.8))
    crate = shape("box", (0.9, 5, 0), (0.4, 0.6, 0.5), turned(0.5))
    wall = shape("box", (0, 9, 0), (50, 0.5, 50))
    scene_view = view(60, 90, 70.0)
    depth, index = cast(scene_view, (Group((wall, ball)), Group((pillar, crate))))
    points = scene_view.directions().astype(np.float64) * depth[..., None]
    on_ball = np.linalg.norm(points[index == 1] - ball.center, axis=1)
    assert len(on_ball) > 50 and on_ball == pytest.approx(np.full(len(on_ball), 0.5), abs=1e-4)
    on_pillar = points[index == 2] - pillar.center
    radius, tall = np.hypot(on_pillar[:, 0], on_pillar[:, 1]), np.abs(on_pillar[:, 2])
    assert len(radius) > 50 and np.maximum(radius / 0.3, tall / 0.8) == pytest.approx(np.ones(len(radius)), abs=1e-3)
    on_crate = np.abs((points[index == 3] - crate.center) @ crate.axes.T) / crate.half
    assert len(on_crate) > 50 and on_crate.max(1) == pytest.approx(np.ones(len(on_crate)), abs=1e-3)
    alone = np.stack([cast(scene_view, (Group((solid,)),))[0] for solid in (wall, ball, pillar, crate)])
    assert np.array_equal(depth, alone.min(0)) and np.array_equal(index, alone.argmin(0))


def marched(solid, origin, direction, step=1e-3, reach=12.0):
    """Walk along the ray until inside the solid."""
    for t in np.arange(step, reach, step):
        local = (origin + t * direction - solid.center) @ solid.axes.T / solid.half
        inside = (
            np.abs(local).max() <= 1
            if solid.kind == "box"
            else (local @ local <= 1)
            if solid.kind == "ellipsoid"
            else (local[:2] @ local[:2] <= 1 and abs(local[2]) <= 1)
        )
        if inside:
            return t
    return math.inf


@given(
    st.sampled_from(["box", "cylinder", "ellipsoid"]),
    st.tuples(*[st.floats(-1, 1)] * 2, st.floats(3, 6)),
    st.tuples(*[st.floats(0.3, 1.2)] * 3),
    st.floats(-3, 3),
    st.tuples(*[st.floats(-0.35, 0.35)] * 2),
)
@settings(max_examples=25, deadline=None)
def test_distances_agree_with_a_walk_along_the_ray(kind, center, half, angle, slope):
    place, half = (center[0], center[2], center[1]), half if kind != "cylinder" else (half[0], half[0], half[2])
    solid = shape(kind, place, half, turned(angle))
    origin, direction = np.zeros(3), np.array([slope[0], 1.0, slope[1]])
    local_origin = (solid.axes @ (origin - solid.center)).astype(np.float32)
    got = float(distance(solid, local_origin, (solid.axes @ direction)[:, None].astype(np.float32))[0])
    walked = marched(solid, origin, direction)
    if math.isinf(got) != math.isinf(walked):  # only a ray that grazes: it misses the solid a little smaller and hits it a little larger
        smaller, larger = (shape(kind, place, tuple(scale * size for size in half), turned(angle)) for scale in (0.99, 1.01))
        assert math.isinf(marched(smaller, origin, direction)) and not math.isinf(marched(larger, origin, direction))
    elif not math.isinf(got):
        assert got == pytest.approx(walked, abs=3e-3)


def test_shadows():
    lamp = np.array([0, 0, 5], np.float32)
    floor_points = np.array([[0, 0, 0], [3, 0, 0], [0.9, 0, 0]], np.float32)
    plate = Group((shape("box", (0, 0, 2), (0.5, 0.5, 0.01)),))
    assert blocked(floor_points, lamp, (plate,)).tolist() == [True, False, False]  # the plate's shadow is 0.83 m wide on the floor
    assert blocked(floor_points, np.array([0, 0, 1], np.float32), (plate,)).tolist() == [False] * 3  # a lamp below the plate
    assert not blocked(floor_points, lamp, (Group(plate.shapes, casts=False),)).any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_gives_reflectances(pattern):
    place = np.random.default_rng(0).uniform(-4, 4, (500, 2)).astype(np.float32)
    colour = reflectance(Material(pattern, (0.4, 0.3, 0.2), (0.6, 0.5, 0.5), 0.3, 7), place, np.full(500, 0.005, np.float32))
    assert colour.shape == (500, 3) and colour.dtype == np.float32 and colour.min() >= 0 and colour.max() <= 1
    assert (colour.std(0).max() > 0.005) == (pattern != "plain")


def test_the_same_seed_gives_the_same_bytes():
    first, again = Rooms(4, 11, (60, 80))[2], pickle.loads(pickle.dumps(Rooms(9, 11, (60, 80))))[2]
    assert first.digest() == again.digest() and first.intrinsics == again.intrinsics
    assert len({Rooms(3, seed, (60, 80))[number].digest() for seed in (0, 1) for number in (0, 1)}) == 4


def test_provenance_is_the_recipe():
    facts = [Rooms(*arguments).provenance for arguments in ((4, 0), (4, 1), (5, 0), (4, 0, (60, 80)), (4, 0, (60, 80), True))]
    assert len({fact.sha256 for fact in facts}) == 5 and facts[1].seed == 1 and facts[0].count == 4


@pytest.fixture(scope="module")
def rooms():
    return list(Rooms(24, 5, (60, 80)))


def test_rooms_have_the_depths_of_indoor_photos(rooms):
    medians = [float(np.median(room.depth_m)) for room in rooms]
    assert 2.0 < np.median(medians) < 3.5
    assert all(room.valid.mean() > 0.999 for room in rooms)  # the walls are tight
    assert max(float(room.depth_m.max()) for room in rooms) < 14 and min(float(room.depth_m[room.valid].min()) for room in rooms) > 0.1
    assert np.median([np.ptp(np.log(room.depth_m[room.valid])) for room in rooms]) > 1.0  # near and far in one picture
    upper, lower = (np.median([np.median(room.depth_m[rows]) for room in rooms]) for rows in (slice(0, 20), slice(45, 60)))
    assert lower < upper  # the floor comes toward the camera


def test_rooms_are_pictures(rooms):
    for room in rooms:
        grey = room.rgb.mean(2)
        assert 20 < grey.mean() < 235 and grey.std() > 10
    colours = np.array([room.rgb.reshape(-1, 3).mean(0) for room in rooms])
    assert colours.std(0).min() > 8  # not all alike
    assert len({room.scene for room in rooms}) >= 4


def test_depth_edges_are_where_the_picture_has_edges(rooms):
    at_edges, elsewhere = [], []
    for room in rooms:
        grey = room.rgb.astype(np.float32).mean(2)
        change = np.abs(np.diff(grey, axis=1))
        jump = np.abs(np.diff(np.log(np.maximum(room.depth_m, 0.1)), axis=1)) > 0.15
        if jump.sum() > 20:
            at_edges.append(change[jump].mean())
            elsewhere.append(change[~jump].mean())
    assert np.mean(at_edges) > 2.5 * np.mean(elsewhere)


def test_holes_are_where_a_sensor_has_them():
    whole, seen = Rooms(1, 3, (120, 160))[0], Rooms(1, 3, (120, 160), holes=True)[0]
    assert np.array_equal(whole.rgb, seen.rgb)
    assert 0.5 < seen.valid.mean() < 0.99 and not seen.valid[0].any() and not seen.valid[:, 0].any()
    assert np.array_equal(seen.depth_m[seen.valid], whole.depth_m[seen.valid]) and not seen.depth_m[~seen.valid].any()


def test_wrong_arguments_are_refused():
    for arguments in ((0,), (1, -1), (1, 0, (8, 8)), (1, 0, (9000, 10))):
        with pytest.raises(ValueError, match="rooms"):
            Rooms(*arguments)
    with pytest.raises(IndexError):
        Rooms(1)[1]
    with pytest.raises(ValueError, match="pattern"):
        Material("clouds", (0, 0, 0))
