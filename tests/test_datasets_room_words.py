"""Words for things in rooms: the same pixels as the picture, left that is left, nothing that is ambiguous."""

import time

import numpy as np
import pytest

from fathom.datasets.rooms.layout import make_room
from fathom.datasets.rooms.raycast import Group, Shape, View, cast
from fathom.datasets.rooms.rooms import Rooms
from fathom.datasets.rooms.words import BACKGROUND, NAMES, NOTHING, PLACES, Meaning, Things, meanings, things_of
from fathom.models.diffusion.evp_refer import TINY_WORDS

SIZE = (60, 80)


@pytest.fixture(scope="module")
def rooms():
    return Rooms(12, 5, SIZE)


def test_every_solid_of_a_room_has_a_known_name():
    found = {shape.name for seed in range(40) for group in make_room(np.random.default_rng(seed)).groups for shape in group.shapes}
    assert found <= set(NAMES) and len(found) > 22, found ^ set(NAMES)


def test_the_tiny_network_knows_every_word_of_every_sentence():
    spoken = {word for name in NAMES for place in PLACES for sentence in Meaning(name, place).sentences() for word in sentence.split()}
    assert spoken <= set(TINY_WORDS.split())


def test_things_lie_where_the_picture_has_them(rooms):
    for number in range(4):
        sample, things = rooms[number], rooms.things(number)
        assert things.map.shape == SIZE and (things.map != NOTHING).mean() > 0.99
        rows = np.broadcast_to(np.arange(SIZE[0])[:, None], SIZE)
        named = {name: np.isin(things.map, [k for k, other in enumerate(things.names) if other == name]) for name in set(things.names)}
        if "floor" in named and named["floor"].sum() > 20:
            assert rows[named["floor"]].mean() > rows[named["wall"]].mean()
        inside = named["wall"][:, 1:] & named["wall"][:, :-1]
        across = np.diff((things.map == things.map[0, 0]).astype(int), axis=1) != 0
        steps = np.abs(np.diff(np.log(np.maximum(sample.depth_m, 0.1)), axis=1))
        assert not across.any() or steps[across].mean() > steps[inside].mean() or steps[inside].mean() < 0.05


def test_asking_for_things_leaves_the_picture_as_it_was(rooms):
    alone = Rooms(12, 5, SIZE)[3].digest()
    rooms.things(3)
    assert rooms[3].digest() == alone


def test_things_take_a_fraction_of_a_picture():
    rooms, spent = Rooms(8, 2, (120, 160)), []
    for call in (rooms.things, rooms.__getitem__):
        call(0)
        start = time.process_time()
        for number in range(1, 5):
            call(number)
        spent.append(time.process_time() - start)
    assert spent[0] < spent[1]


def boxes(*places):
    """Boxes of 0.6 m at (x, distance, height), seen from the origin along y, names in front of a wall."""
    groups = [Group((Shape("box", np.array([0.0, 9, 0]), np.array([50.0, 0.5, 50]), np.eye(3), 0, np.zeros(3), "wall"),))]
    groups += [Group((Shape("box", np.array([x, y, z]), np.full(3, 0.3), np.eye(3), 0, np.zeros(3), name),)) for name, x, y, z in places]
    view = View(np.zeros(3), np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float64), (60.0, 60.0, 39.5, 29.5), *SIZE)
    depth, index = cast(view, tuple(groups))
    return things_of(tuple(groups), index), depth


def test_places_are_told_apart_by_hand():
    things, depth = boxes(("chair", -1.0, 3.0, 0.0), ("chair", 1.2, 4.5, 0.0), ("table", 0.0, 3.0, 0.0))
    found = meanings(things, depth)
    said = {(meaning.name, meaning.place) for meaning in found}
    assert said == {("wall", ""), ("table", ""), ("chair", ""), ("chair", "left"), ("chair", "right"), ("chair", "near"), ("chair", "far")}
    left, right, both = (found[Meaning("chair", place)] for place in ("left", "right", ""))
    assert not left[:, 40:].any() and not right[:, :40].any() and np.array_equal(left | right, both)
    assert np.array_equal(found[Meaning("chair", "near")], left) and np.array_equal(found[Meaning("chair", "far")], right)
    front = (0.6 / 2.7 * 60) ** 2
    assert front * 0.9 < left.sum() < front * 1.4  # and a side of the nearer box


@pytest.mark.parametrize("unknown", [0.0, np.inf])
def test_an_unknown_depth_is_neither_near_nor_far(unknown):
    """Of three chairs at 3, 4.5 and 6.5 m a part, and then all, of the farthest's depth is unknown."""
    things, depth = boxes(("chair", -1.4, 3.0, 0.0), ("chair", 0.3, 4.5, 0.0), ("chair", 2.6, 6.5, 0.0))
    whole = meanings(things, depth)
    nearest, farthest = whole[Meaning("chair", "near")], whole[Meaning("chair", "far")]
    assert nearest[:, :40].any() and not nearest[:, 40:].any() and farthest[:, 50:].any() and not farthest[:, :50].any()
    rows, columns = np.nonzero(farthest)
    holes = depth.copy()
    holes[rows[: len(rows) // 3], columns[: len(rows) // 3]] = unknown
    some = meanings(things, holes)
    assert set(some) == set(whole) and all(np.array_equal(some[meaning], mask) for meaning, mask in whole.items())
    holes[farthest] = unknown
    assert {meaning.place for meaning in whole} - {meaning.place for meaning in meanings(things, holes)} == {"near", "far"}


def test_what_competes_is_not_said():
    one_distance = meanings(*boxes(("chair", -1.0, 3.0, 0.0), ("chair", 1.0, 3.0, 0.0)))
    assert Meaning("chair", "left") in one_distance and Meaning("chair", "near") not in one_distance
    three = meanings(*boxes(("chair", -1.0, 3.0, 0.0), ("chair", -0.9, 3.0, 0.8), ("chair", 1.0, 3.0, 0.0)))
    assert Meaning("chair", "right") in three and Meaning("chair", "left") not in three
    small = meanings(*boxes(("cup", 0.0, 8.0, 0.0)))
    assert set(small) == {Meaning("wall")}


def test_a_mirror_exchanges_left_and_right(rooms):
    seen = 0
    for number in range(12):
        depth, things = rooms[number].depth_m, rooms.things(number)
        found, mirrored = meanings(things, depth), meanings(things.mirrored(), np.ascontiguousarray(depth[:, ::-1]))
        other = {"left": "right", "right": "left"}
        assert set(mirrored) == {Meaning(meaning.name, other.get(meaning.place, meaning.place)) for meaning in found}
        for meaning, mask in found.items():
            assert np.array_equal(mirrored[Meaning(meaning.name, other.get(meaning.place, meaning.place))], mask[:, ::-1])
            assert mask.mean() >= 0.01 and (not meaning.place or meaning.name not in BACKGROUND)
            seen += meaning.place == "left"
    assert seen > 0


def test_all_ways_to_say_it():
    assert Meaning("chair", "left").sentences()[-1] == "the chair on the left" and Meaning("floor").sentences()[:2] == ("floor", "the floor")


def test_wrong_maps_are_refused(rooms):
    with pytest.raises(ValueError, match="uint8"):
        Things(np.zeros((4, 4), np.int64), ("floor",))
    with pytest.raises(ValueError, match="none"):
        Things(np.ones((4, 4), np.uint8), ("floor",))
    with pytest.raises(ValueError, match="unicorn"):
        Things(np.zeros((4, 4), np.uint8), ("unicorn",))
    with pytest.raises(IndexError):
        rooms.things(12)
