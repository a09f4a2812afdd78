"""Rooms to learn from: their own pictures, reproducible, with what tidy rooms have not; natural mottling has the spectrum it says."""

import json

import numpy as np
import pytest

from fathom.datasets.rooms.rooms import Rooms
from fathom.datasets.rooms.textures import natural_tiles
from fathom.datasets.source import open_source


def test_a_lived_in_room_is_the_same_each_time_and_no_tidy_one():
    source = open_source("lived-in:3:7")
    one, again, tidy = source[1], Rooms(3, 7, (144, 192), lived_in=True)[1], Rooms(3, 7, (144, 192))[1]
    assert one.depth_m.shape == (144, 192) and one.valid.mean() > 0.95 and 0.1 < np.median(one.depth_m) < 10
    assert np.array_equal(one.rgb, again.rgb) and np.array_equal(one.depth_m, again.depth_m) and not np.array_equal(one.depth_m, tidy.depth_m)
    assert source.provenance.sha256 != open_source("rooms:3:7:144x192").provenance.sha256 and "lived-in" in source.provenance.name


def test_more_stands_in_them():
    """Of a dozen rooms most have more things than the tidy room they began as; some have people (an ellipsoid for a head)."""
    rooms = Rooms(12, 3, (32, 48), lived_in=True)
    heads = sum(any(shape.kind == "ellipsoid" for group in rooms._scene(number)[0].groups for shape in group.shapes) for number in range(12))
    things = [len(rooms._scene(number)[0].groups) for number in range(12)]
    tidy = [len(Rooms(12, 3, (32, 48))._scene(number)[0].groups) for number in range(12)]
    assert heads >= 3 and np.mean(things) > np.mean(tidy)


def test_natural_mottling_falls_with_frequency():
    """Amplitude 1 / frequency: the power of each octave of a line is the same, so its spectrum falls by two per octave in amplitude."""
    tile = natural_tiles()[0]
    assert abs(float(tile.mean())) < 1e-5 and float(tile.std()) == pytest.approx(1, rel=1e-4)
    power = np.abs(np.fft.fft2(tile)) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(len(tile)) * len(tile)] * 2, indexing="ij"))
    rings = [power[(frequency >= low) & (frequency < 2 * low)].mean() for low in (4, 8, 16, 32)]
    slopes = np.log2(np.sqrt(np.array(rings[:-1]) / rings[1:]))
    assert np.abs(slopes - 1).max() < 0.15


def test_pairs_are_told_apart_by_place(tmp_path):
    from PIL import Image

    entries = [
        {"name": f"p{number}", "use": use, "kind": kind} for number, (use, kind) in enumerate([("test", "indoor"), ("test", "outdoor"), ("train", "indoor")])
    ]
    for entry in entries:
        folder = tmp_path / entry["name"]
        folder.mkdir()
        Image.new("RGB", (8, 6)).save(folder / "rgb.png")
        Image.fromarray(np.full((6, 8), 1000, np.uint16)).save(folder / "depth.png")
        (folder / "meta.json").write_text(json.dumps({"depth_scale": 1000}))
    (tmp_path / "manifest.json").write_text(json.dumps(entries))

    def names(text):
        return [sample.id for sample in open_source(text)]

    assert names(f"pairs:{tmp_path}:test:indoor") == ["p0"] and names(f"pairs:{tmp_path}:outdoor") == ["p1"] and len(names(f"pairs:{tmp_path}")) == 3
    with pytest.raises(ValueError, match="holds no pair of kind train and outdoor"):
        open_source(f"pairs:{tmp_path}:train:outdoor")
