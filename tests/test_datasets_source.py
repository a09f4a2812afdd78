"""Plain folders, the sample type, and the words of --data."""

import json

import numpy as np
import pytest
from PIL import Image

from fathom.datasets.kitti import KittiEigen
from fathom.datasets.nyu import NyuFolder
from fathom.datasets.pairs import Images, Pairs
from fathom.datasets.reading import read_depth_png, read_rgb
from fathom.datasets.sample import Sample
from fathom.datasets.source import Joined, open_source


def write_pair(folder, scale=1000.0, dataset="Somewhere", suffix=".png", value=2500, **meta):
    folder.mkdir(parents=True)
    rgb = np.random.default_rng(len(folder.name)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    depth = np.full((6, 8), value, np.uint16)
    depth[0] = 0
    Image.fromarray(rgb).save(folder / f"rgb{suffix}")
    Image.fromarray(depth).save(folder / "depth.png")
    facts = {"depth_scale": scale, "size": [8, 6], "dataset": dataset, "intrinsics_fx_fy_cx_cy": [5.0, 5.0, 3.5, 2.5], **meta}
    (folder / "meta.json").write_text(json.dumps(facts))
    return rgb


def test_pairs_with_a_manifest(tmp_path):
    names = ["b_10", "b_9", "a"]
    photos = {name: write_pair(tmp_path / name) for name in names}
    (tmp_path / "manifest.json").write_text(json.dumps([{"name": name, "use": use} for name, use in zip(names, ("train", "test", "train"), strict=True)]))
    assert [sample.id for sample in Pairs(tmp_path)] == names
    data = open_source(f"pairs:{tmp_path}:train")
    assert [sample.id for sample in data] == ["b_10", "a"]
    assert np.array_equal(data[0].rgb, photos["b_10"]) and data[0].depth_m[3, 3] == 2.5 and not data[0].valid[0].any()
    assert data[0].intrinsics == (5.0, 5.0, 3.5, 2.5)
    assert data.provenance.sha256 != open_source(f"pairs:{tmp_path}:test").provenance.sha256


def test_pairs_without_a_manifest_are_sorted_as_people_count(tmp_path):
    for name in ("p10", "p9"):
        write_pair(tmp_path / name)
    assert [sample.id for sample in Pairs(tmp_path)] == ["p9", "p10"]
    assert len(Pairs(tmp_path / "p9")) == 1
    with pytest.raises(OSError, match=r"manifest\.json"):
        Pairs(tmp_path, "test")


def test_the_sensor_clip_of_nyu_is_no_depth(tmp_path):
    write_pair(tmp_path / "far", value=9995, dataset="NYU Depth v2")
    write_pair(tmp_path / "other", value=9995, dataset="SUN RGB-D")
    assert not Pairs(tmp_path / "far")[0].valid.any() and Pairs(tmp_path / "other")[0].valid.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth_scale": 0}, "positive number"),
        ({"depth_scale": "1000"}, "positive number"),
        ({"depth_scale": -1000}, "positive number"),
        ({"depth_scale": float("nan")}, "positive number"),
        ({"depth_scale": float("inf")}, "positive number"),
        ({"depth_scale": 0.001}, "metres = value / scale"),  # metres to a step: 2500 would be 2500 km
        ({"size": [6, 8]}, "width, height"),
        ({"intrinsics_fx_fy_cx_cy": "5"}, "four numbers"),
        ({"intrinsics_fx_fy_cx_cy": [5, 5, 1]}, "intrinsics"),
    ],
)
def test_faults_of_a_pair_are_named(tmp_path, change, words):
    write_pair(tmp_path / "p", **{("scale" if key == "depth_scale" else key): value for key, value in change.items()})
    with pytest.raises(ValueError, match=words):
        Pairs(tmp_path)[0]


def test_faults_of_a_folder_are_named(tmp_path):
    with pytest.raises(OSError, match="no folder"):
        Pairs(tmp_path / "none")
    with pytest.raises(ValueError, match="no pair"):
        Pairs(tmp_path)
    (tmp_path / "manifest.json").write_text("{]")
    with pytest.raises(ValueError, match="not JSON"):
        Pairs(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps([{"name": "../p", "use": "test"}]))
    with pytest.raises(ValueError, match="outside"):
        Pairs(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps([{"name": "p", "use": "test"}]))
    with pytest.raises(OSError, match=r"meta\.json"):
        Pairs(tmp_path)


def test_photos_without_depth(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("10.png", "9.JPG", "deep/1.webp"):
        Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(tmp_path / name)
    (tmp_path / "note.txt").write_text("no photo")
    data = open_source(f"images:{tmp_path}")
    assert isinstance(data, Images) and [sample.id for sample in data] == ["9.JPG", "10.png", "deep/1.webp"]
    assert not any(sample.valid.any() for sample in data)
    assert len(Images(tmp_path / "10.png")) == 1


def test_reading_refuses_what_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match=r"a\.png"):
        read_rgb(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="16-bit"):
        read_depth_png(tmp_path / "grey.png", 1000)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"cut\.png"):
        read_rgb(tmp_path / "cut.png")
    with pytest.raises(OSError, match="cannot be read"):
        read_rgb(tmp_path / "none.png")


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned
    picture = np.zeros((4, 8, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    assert read_rgb(tmp_path / "turned.png").shape == (8, 4, 3)


@pytest.mark.parametrize("turn", [2, 3, 6])
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_a_photo_that_exif_turns_has_no_depth_beside_it(tmp_path, turn, suffix):
    """Half a turn keeps the size: each pixel would have another one's depth, and nothing would show it."""
    exif = Image.Exif()
    exif[0x0112] = turn
    photo = Image.fromarray(np.zeros((6, 6, 3), np.uint8))
    folder = tmp_path / "kitchen_0001"
    folder.mkdir()
    Image.fromarray(np.full((6, 6), 2500, np.uint16)).save(folder / "sync_depth_00001.png")
    photo.save(folder / f"rgb_00001{suffix}")
    assert NyuFolder(tmp_path)[0].valid.all()
    photo.save(folder / f"rgb_00001{suffix}", exif=exif)
    with pytest.raises(ValueError, match=f"rgb_00001.*EXIF orientation {turn}.*stored upright"):
        NyuFolder(tmp_path)[0]
    assert len(Images(folder / f"rgb_00001{suffix}")[0].rgb) == 6  # alone it is turned


def test_a_depth_map_is_not_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.full((4, 4), 2500, np.uint16)).save(tmp_path / "depth.png", exif=exif)
    with pytest.raises(ValueError, match=r"depth\.png.*EXIF orientation 3"):
        read_depth_png(tmp_path / "depth.png", 1000)


def test_a_sample_checks_itself():
    rgb, depth, valid = np.zeros((3, 4, 3), np.uint8), np.ones((3, 4), np.float32), np.ones((3, 4), bool)
    good = Sample(rgb, depth, valid, None, "x", "")
    assert good.valid.any() and good.digest() == Sample(rgb, depth, valid, (1.0, 1.0, 0, 0), "y", "z").digest()
    assert good.digest() != Sample(rgb, 2 * depth, valid, None, "x", "").digest()
    for change in (
        {"rgb": rgb.astype(np.float32)},
        {"depth_m": depth.astype(np.float64)},
        {"valid": valid.astype(np.uint8)},
        {"depth_m": np.zeros_like(depth)},
        {"depth_m": np.full_like(depth, np.nan)},
        {"valid": np.ones((4, 3), bool)},
        {"intrinsics": (1.0, 0.0, 1.0, 1.0)},
    ):
        with pytest.raises(ValueError, match="sample x"):
            Sample(**{"rgb": rgb, "depth_m": depth, "valid": valid, "intrinsics": None, "id": "x", "scene": "", **change})


@pytest.mark.parametrize(
    "text", ["", "nyu", "rooms", "rooms:", "rooms:x", "rooms:0", "rooms:-3", "rooms:3:4:5:6", "rooms:3:10x", "rooms:3:8x8", "photos:x", "kitti:dir"]
)
def test_words_that_name_nothing_are_refused(text):
    with pytest.raises(ValueError, match=r"rooms|no data|no list"):
        open_source(text)


def test_words(tmp_path):
    rooms = open_source("rooms:7:3:48x64:holes")
    assert (len(rooms), rooms.seed, rooms.size, rooms.holes) == (7, 3, (48, 64), True)
    assert open_source("rooms:5").seed == 0
    odd = tmp_path / "a:b"
    odd.mkdir()
    write_pair(odd / "p")
    assert len(open_source(f"pairs:{odd}")) == 1  # a path keeps its colons
    with pytest.raises(OSError, match="no folder"):
        open_source(f"kitti:{tmp_path / 'none'}:list.txt:crop")
    with pytest.raises(OSError, match="no folder"):
        open_source(f"nyu-folder:{tmp_path / 'none'}:list.txt")
    with pytest.raises(OSError, match=r"labeled\.mat"):
        open_source("nyu:none.mat:test:raw")
    assert NyuFolder and KittiEigen


def test_a_sample_is_known_by_what_it_is_of(tmp_path):
    """Neither the way to a photo nor what is chosen beside it hides that it is the same one."""
    for name in ("p1", "p2"):
        write_pair(tmp_path / name)
    whole, one = Pairs(tmp_path), Pairs(tmp_path / "p2")
    (tmp_path / "link").symlink_to(tmp_path / "p2")
    linked = Pairs(tmp_path / "link")
    assert whole.origin(1) != whole.origin(0) != one.origin(0) == linked.origin(0)
    rooms = open_source("rooms:3:7:24x32")
    assert rooms.origin(2) == open_source("rooms:9:7:48x64:holes").origin(2) != open_source("rooms:3:8").origin(2)
    assert rooms.origin(2) != open_source("lived-in:3:7").origin(2) and Joined([whole, rooms]).origin(len(whole) + 2) == rooms.origin(2)


def test_several_sources_stand_one_after_the_other(tmp_path):
    write_pair(tmp_path / "a")
    write_pair(tmp_path / "b")
    rooms, pairs = open_source("rooms:3:7:24x32"), open_source(f"pairs:{tmp_path}")
    both = Joined([rooms, pairs])
    wanted = [sample.digest() for source in (rooms, pairs) for sample in source]
    assert len(both) == 5 and [sample.digest() for sample in both] == wanted == [both[number].digest() for number in range(5)]
    facts = both.provenance
    assert facts.kind == "rooms + pairs" and "seed 7" in facts.name and facts.count == 5 and facts.seed is None
    assert facts.sha256 != Joined([pairs, rooms]).provenance.sha256
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            both[outside]
    with pytest.raises(ValueError, match="at least one"):
        Joined([])
