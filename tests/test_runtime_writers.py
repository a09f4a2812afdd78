"""Saved maps, read back by independent means."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fathom.runtime.artefact.contract import OutputContract
from fathom.runtime.errors import AccuracyError, InputError, UsageError
from fathom.runtime.outputs.tiles import save_tiles
from fathom.runtime.outputs.writers import color_range, save_color, save_exr, save_npy, save_ply, save_png16
from fathom.runtime.photo.depth_map import DepthMap, Intrinsics, Origin

METRIC = OutputContract("depth", "metric", "m", 0.1, 10.0, "far", "bilinear")
RELATIVE = OutputContract("depth", "relative", "", 0.0, 1.0, "near", "bilinear")
MASK = OutputContract("logits", "mask", "", 0.0, 1.0, "", "bilinear")
CAMERA = Intrinsics(518.0, 519.0, 325.5, 253.5)


def map_of(values, valid=None, output=METRIC, **facts):
    values = np.array(values, np.float32)
    valid = np.ones(values.shape, bool) if valid is None else np.array(valid)
    return DepthMap.of(np.where(valid, values, 0).astype(np.float32), valid, output, **facts)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(0.0010000000474974513, 65.53499603271484, width=32)),
    st.integers(0, 9),
)
def test_png16_is_within_half_a_millimetre(tmp_path, values, seed):
    valid = np.random.default_rng(seed).random(values.shape) > 0.3
    valid.flat[0] = True
    saved = save_png16(map_of(values, valid), tmp_path / "a.png", force=True)
    with Image.open(saved.path) as image:
        assert image.mode == "I;16"
        mm = np.asarray(image)
    assert not saved.warnings
    assert np.array_equal(mm > 0, valid)
    assert np.abs(mm[valid] / 1000.0 - values[valid].astype(np.float64)).max() <= 0.5e-3 + 4e-6


def test_png16_says_what_it_holds_and_what_it_lost(tmp_path):
    depth = map_of([[1.0, 65.535, 65.536, 80.0, 0.0001]], origin=Origin("evp official", "ab" * 32, untrained=True), protocol="single-image")
    saved = save_png16(depth, tmp_path / "a.png")
    assert "3 pixels" in saved.warnings[0] and "65.535" in saved.warnings[0]
    with Image.open(saved.path) as image:
        assert np.asarray(image).tolist() == [[1000, 65535, 0, 0, 0]]
        text = image.text
    assert text["Fathom-Unit"] == "millimetre" and text["Fathom-Network"] == "evp official" and text["Fathom-Manifest-SHA256"] == "ab" * 32
    assert "UNTRAINED" in text["Warning"] and text["Fathom-Lost"].startswith("3 pixels") and text["Fathom-Protocol"] == "single-image"


def test_relative_png16_has_no_unit_and_can_be_read_back(tmp_path):
    values = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)
    saved = save_png16(map_of(values, output=RELATIVE), tmp_path / "a.png")
    with Image.open(saved.path) as image:
        steps, text = np.asarray(image).astype(np.float64), image.text
    assert "no unit" in text["Fathom-Unit"] and "metre" not in str(text).lower()
    back = eval(text["Fathom-Scale"].removeprefix("value = "), {"step": steps})
    np.testing.assert_allclose(back, values, atol=np.ptp(values) / 65534)
    assert steps.min() == 1 and steps.max() == 65535


def test_npy_holds_metres_and_nan_where_there_is_none(tmp_path):
    values, valid = np.array([[1.25, 70.0], [3.5, 4.0]], np.float32), np.array([[True, True], [False, True]])
    back = np.load(save_npy(map_of(values, valid), tmp_path / "a.npy").path, allow_pickle=False)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, [[1.25, 70.0], [np.nan, 4.0]])


def test_color_has_a_bar_below_and_near_is_warm(tmp_path):
    ramp = np.linspace(1, 5, 320, dtype=np.float32) * np.ones((200, 1), np.float32)
    saved = save_color(map_of(ramp), tmp_path / "a.png")
    with Image.open(saved.path) as image:
        pixels, text = np.asarray(image).astype(int), image.text
    assert pixels.shape[1] == 320 and 220 < pixels.shape[0] < 280
    assert pixels[100, 5, 0] > pixels[100, 5, 2] and pixels[100, -5, 2] > pixels[100, -5, 0], "near red, far blue"
    assert text["Fathom-Range"].endswith(" m")
    bar = pixels[200:][(np.ptp(pixels[200:], axis=2) > 60).sum(axis=1).argmax()]
    assert bar[40, 0] > bar[40, 2] and bar[-40, 2] > bar[-40, 0], "the bar runs like the picture"


def test_untrained_weights_are_written_over_the_picture(tmp_path):
    ramp = np.linspace(1, 5, 320, dtype=np.float32) * np.ones((200, 1), np.float32)
    plain = Image.open(save_color(map_of(ramp), tmp_path / "a.png").path)
    loud = Image.open(save_color(map_of(ramp, origin=Origin(untrained=True)), tmp_path / "b.png").path)
    assert loud.height > plain.height and "UNTRAINED" in loud.text["Warning"]
    assert loud.getpixel((1, 1)) == (200, 30, 30)


def test_relative_colours_say_relative(tmp_path):
    with Image.open(save_color(map_of(np.random.default_rng(0).random((60, 80)), output=RELATIVE), tmp_path / "a.png").path) as image:
        assert "relative, no unit" in image.text["Fathom-Range"]


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (1, 2000)])
@pytest.mark.parametrize("output", [METRIC, RELATIVE])
def test_pictures_of_odd_shape_are_drawn(tmp_path, shape, output):
    save_color(map_of(np.random.default_rng(0).random(shape) + 0.5, output=output), tmp_path / "a.png")


def test_the_largest_photos_are_tiled_beside_their_maps(tmp_path):
    photo, color = tmp_path / "a.png", tmp_path / "a_color.png"
    Image.new("RGB", (160, 16384), (255, 0, 0)).save(photo)
    save_color(map_of(np.linspace(1, 5, 160 * 16384).reshape(16384, 160)), color)
    assert save_tiles([(photo, color)], tmp_path / "sheet.png") == 1
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image).astype(int)
    assert (np.abs(sheet - (255, 0, 0)).max(axis=-1) < 9)[:, :330].any() and (np.ptp(sheet[:, 336:], axis=-1) > 100).any()  # red, and colours


def test_the_colour_scale():
    depth = map_of(np.linspace(1, 5, 1000).reshape(10, 100))
    low, high = color_range(depth, None, None)
    assert low == pytest.approx(1.04, abs=0.01) and high == pytest.approx(4.96, abs=0.01)
    assert color_range(depth, 0.5, 8.0) == (0.5, 8.0)
    assert color_range(map_of(np.full((4, 4), 3.0)), None, None)[0] < 3 < color_range(map_of(np.full((4, 4), 3.0)), None, None)[1]
    for near, far in [(6.0, 2.0), (float("nan"), None), (None, float("inf")), (1.0, float("inf"))]:
        with pytest.raises(UsageError, match="near below far"):
            color_range(depth, near, far)


@pytest.mark.parametrize(("near", "far", "grey"), [(6.0, None, 255), (None, 0.5, 0), (None, -3.0, 0), (0.0, 0.5, 0), (6.0, 9.0, 255)])
def test_a_map_beyond_the_colour_scale_is_drawn_in_the_colour_of_that_end(tmp_path, near, far, grey):
    save_color(map_of(np.linspace(1, 5, 160_000).reshape(400, 400)), tmp_path / "a.png", False, "grey", near, far)  # near is bright
    with Image.open(tmp_path / "a.png") as image:
        assert (np.asarray(image)[50:350, 50:350] == grey).all()


def read_ply(path):
    raw = path.read_bytes()
    header, body = raw.split(b"end_header\n", 1)
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = int(next(line.split()[-1] for line in lines if line.startswith("element vertex")))
    names = [line.split()[1:] for line in lines if line.startswith("property")]
    kinds = {"float": "<f4", "uchar": "u1"}
    points = np.frombuffer(body, np.dtype([(name, kinds[kind]) for kind, name in names]))
    assert len(points) == count
    return points, header.decode()


def test_ply_projects_back_onto_the_pixels(tmp_path):
    rng = np.random.default_rng(0)
    values, valid = rng.uniform(0.5, 9, (480, 640)).astype(np.float32), rng.random((480, 640)) > 0.5
    photo = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    points, header = read_ply(save_ply(map_of(values, valid, intrinsics=CAMERA), photo, tmp_path / "a.ply").path)
    u = points["x"] / points["z"] * 518.0 + 325.5
    v = points["y"] / points["z"] * 519.0 + 253.5
    rows, columns = np.nonzero(valid)
    np.testing.assert_allclose(u, columns, atol=1e-3)
    np.testing.assert_allclose(v, rows, atol=1e-3)
    np.testing.assert_array_equal(points["z"], values[valid])
    np.testing.assert_array_equal(np.stack([points["red"], points["green"], points["blue"]], 1), photo[valid])
    assert "metre" in header


def test_ply_is_refused_without_metres_or_camera(tmp_path):
    photo = np.zeros((4, 4, 3), np.uint8)
    values = np.random.default_rng(0).random((4, 4)) + 0.1
    with pytest.raises(InputError, match="relative"):
        save_ply(map_of(values, output=RELATIVE, intrinsics=CAMERA), photo, tmp_path / "a.ply")
    with pytest.raises(UsageError, match="intrinsics"):
        save_ply(map_of(values), photo, tmp_path / "a.ply")
    assert not list(tmp_path.iterdir())


def test_masks_are_black_and_white(tmp_path):
    mask = (np.random.default_rng(0).random((20, 30)) > 0.5).astype(np.float32)
    depth = map_of(mask, output=MASK)
    np.testing.assert_array_equal(np.asarray(Image.open(save_png16(depth, tmp_path / "a.png").path)), mask * 65535)
    save_color(depth, tmp_path / "b.png")


def test_existing_and_unwritable_outputs(tmp_path):
    depth = map_of(np.random.default_rng(0).random((4, 4)) + 0.1)
    save_npy(depth, tmp_path / "a.npy")
    before = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        save_npy(depth, tmp_path / "a.npy")
    with pytest.raises(InputError, match="does not exist"):
        save_npy(depth, tmp_path / "gone" / "a.npy")
    assert (tmp_path / "a.npy").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_told_with_the_final_name_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(InputError, match=r"disk is full: .*a\.npy cannot be written"):
        save_npy(map_of(np.random.default_rng(0).random((4, 4)) + 0.1), tmp_path / "a.npy")
    assert not list(tmp_path.iterdir())


def test_depth_that_is_not_above_zero_is_not_valid_and_counted():
    depth = map_of([[-1.0, 0.0, 0.05, 5.0, 11.0]])
    assert depth.valid.tolist() == [[False, False, True, True, True]] and depth.not_positive == 2
    assert (depth.below_near, depth.above_far) == (1, 1)
    assert depth.summary()["valid_share"] == 0.6 and depth.values.tolist()[0][0] == 0
    with pytest.raises(AccuracyError, match="depth has no valid pixel"):
        map_of([[-1.0, 0.0]])


def test_relative_maps_are_not_metres():
    with pytest.raises(ValueError, match="without a unit"):
        map_of([[0.1, 0.2]], output=RELATIVE).depth_m


def test_pictures_of_any_size_come_back_whole(tmp_path):
    """More rows than are compressed at a time, steps that leap over the byte, names that Latin-1 does not have; and the same bytes every time."""
    values = np.random.default_rng(1).uniform(0.001, 65.5, (201, 77)).astype(np.float32)
    depth = map_of(values, origin=Origin("网络", "", untrained=False), protocol="café")
    saved = save_png16(depth, tmp_path / "a.png")
    with Image.open(saved.path) as image:
        assert np.array_equal(np.asarray(image), np.rint(values * np.float32(1000)))
        assert image.text["Fathom-Network"] == "网络" and image.text["Fathom-Protocol"] == "café"
    with Image.open(save_color(depth, tmp_path / "b.png", near=0, far=70).path) as image:
        assert image.mode == "RGB" and image.size[0] >= 160 and len(np.unique(np.asarray(image)[:201].reshape(-1, 3), axis=0)) > 200
    again = save_png16(depth, tmp_path / "c.png")
    assert again.path.read_bytes() == saved.path.read_bytes()


def test_exr_holds_every_bit_of_the_metres(tmp_path):
    OpenEXR = pytest.importorskip("OpenEXR")
    values = np.float32([[0.1234567, 80.00001, 0], [70.5, 1e-4, 3]])
    depth = DepthMap(values, values > 0, "metric", "m", 0.1, 80, "far", Intrinsics(721.5377, 721.5377, 1.0, 0.5))
    save_exr(depth, tmp_path / "x.exr")
    with OpenEXR.File(str(tmp_path / "x.exr")) as file:
        assert list(file.channels()) == ["Z"] and file.channels()["Z"].pixels.dtype == np.float32
        np.testing.assert_array_equal(file.channels()["Z"].pixels, np.where(values > 0, values, np.float32(np.nan)))
        header = dict(file.header())
    assert header["fathomUnit"] == "metre" and "721.5377" in header["fathomIntrinsics"]
    relative = DepthMap(values, values > 0, "relative", "", 0, 1, "near")
    save_exr(relative, tmp_path / "r.exr")
    with OpenEXR.File(str(tmp_path / "r.exr")) as file:
        assert list(file.channels()) == ["Y"] and "no unit" in file.header()["fathomUnit"]


def test_small_depths_and_long_focal_lengths_keep_their_digits(tmp_path):
    values = np.float32([[0.000123456, 0.2], [12.345678, 1]])
    facts = DepthMap(values, values > 0, "metric", "m", 0.1, 80, "far").summary()
    assert (facts["min"], facts["max"]) == (0.000123456, 12.34568)
    depth = DepthMap(values, values > 0, "metric", "m", 0.1, 80, "far", Intrinsics(721.5377, 721.5377, 1.0, 0.5))
    save_ply(depth, np.zeros((2, 2, 3), np.uint8), tmp_path / "x.ply")
    assert b"fx 721.5377 " in (tmp_path / "x.ply").read_bytes()
