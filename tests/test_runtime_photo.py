"""Photos from files: every way of storing one, everything that is no photo, and the naming of outputs."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fathom.datasets.reading import read_rgb
from fathom.runtime.errors import FathomError, InputError
from fathom.runtime.photo.photo import find_photos, read_photo

RGB = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def saved(image, path, **how):
    image.save(path, **how)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_formats_give_back_the_pixels(tmp_path, suffix):
    np.testing.assert_array_equal(read_photo(saved(Image.fromarray(RGB), tmp_path / f"a{suffix}")), RGB)


def test_the_suffix_does_not_decide(tmp_path):
    saved(Image.fromarray(RGB), tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.jpg"), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """Independent truth: the EXIF standard's row and column of each orientation."""
    top_left = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1), 6: RGB.swapaxes(0, 1)[:, ::-1]}
    top_left |= {7: RGB.swapaxes(0, 1)[::-1, ::-1], 8: RGB.swapaxes(0, 1)[::-1]}
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_photo(saved(Image.fromarray(RGB), tmp_path / "a.png", exif=exif)), top_left[orientation])


def test_broken_exif_does_not_cost_the_photo(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(read_photo(path), RGB)


def test_transparency_is_laid_over_black(tmp_path):
    alpha = np.array([0, 255, 128], np.uint8)[np.arange(20) % 3] * np.ones((12, 1), np.uint8)
    path = saved(Image.fromarray(np.dstack([RGB, alpha])), tmp_path / "a.png")
    np.testing.assert_allclose(read_photo(path), RGB * (alpha[..., None] / 255.0), atol=1)


def test_grey_palette_and_one_bit(tmp_path):
    grey = RGB[..., 0]
    np.testing.assert_array_equal(read_photo(saved(Image.fromarray(grey), tmp_path / "g.png")), np.dstack([grey] * 3))
    la = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (20, 12), 255)])
    np.testing.assert_array_equal(read_photo(saved(la, tmp_path / "la.png")), np.dstack([grey] * 3))
    palette = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(read_photo(saved(palette, tmp_path / "p.png")), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(np.where(grey > 127, 255, 0).astype(np.uint8)).convert("1")
    assert set(np.unique(read_photo(saved(bits, tmp_path / "b.png")))) == {0, 255}


def test_palette_with_a_transparent_colour(tmp_path):
    palette = Image.fromarray((np.arange(20) % 4).astype(np.uint8) * np.ones((12, 1), np.uint8))
    palette = palette.convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220])
    got = read_photo(saved(palette, tmp_path / "a.gif", transparency=1))
    colors = {tuple(color) for color in got.reshape(-1, 3)}
    assert (40, 50, 60) not in colors and (0, 0, 0) in colors


def test_sixteen_bit_grey_keeps_full_scale(tmp_path):
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    for name in ("a.png", "a.tiff"):
        np.testing.assert_array_equal(read_photo(saved(Image.fromarray(deep), tmp_path / name))[0, :, 0], [0, 1, 128, 255])


def deep_png(path, deep, clear=()):
    """Written by hand, because Pillow cannot: 16-bit grey or RGB, big-endian, with the one value that is transparent."""
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = struct.pack(">2I5B", deep.shape[1], deep.shape[0], 16, 2 if deep.ndim == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *([(b"tRNS", struct.pack(f">{len(clear)}H", *clear))] if clear else []), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_sixteen_bit_colour_png(tmp_path):
    np.testing.assert_array_equal(read_photo(deep_png(tmp_path / "a.png", RGB.astype(np.uint16) * 257)), RGB)


@pytest.mark.parametrize("reader", [read_photo, read_rgb])
def test_sixteen_bits_with_a_transparent_value(tmp_path, reader):
    deep = np.array([[0x1234, 0x3434, 0x5678, 0xFFFF]])
    np.testing.assert_array_equal(reader(deep_png(tmp_path / "a.png", deep, (0x1234,)))[0, :, 0], [0, 0x34, 0x56, 0xFF])
    np.testing.assert_array_equal(reader(deep_png(tmp_path / "b.png", np.dstack([deep] * 3), (0x1234,) * 3))[0, :, 0], [0, 0x34, 0x56, 0xFF])


def test_cmyk_jpeg(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = read_photo(saved(image, tmp_path / "a.jpg", quality=95))[8, 8]
    assert red[0] > 240 and red[1] < 15 and red[2] < 15


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_photo(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_what_is_no_photo_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    whole = saved(Image.fromarray(np.tile(RGB, (20, 20, 1))), tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (16385, 1)).save(tmp_path / "wide.png")
    saved(Image.fromarray(np.zeros((4, 4), np.float32)), tmp_path / "float.tiff")
    saved(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), tmp_path / "int.tiff")
    header = struct.pack(">2I5B", 16000, 16000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    words = {"text.png": "not a picture", "empty.jpg": "is empty", "script.eps": "not a picture", "half.jpg": "truncated", "wide.png": "16385x1"}
    words |= {"float.tiff": "floating-point", "int.tiff": "1048576", "bomb.png": "absurd", "gone.jpg": "does not exist", ".": "folder"}
    for name, word in words.items():
        with pytest.raises(InputError, match=word):
            read_photo(tmp_path / name)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"]), st.integers(0, 400), st.binary(max_size=12), st.integers(0, 400))
def test_broken_bytes_raise_nothing_foreign(tmp_path, kind, at, noise, cut):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, format=kind)
    data = bytearray(buffer.getvalue())
    data[at : at + len(noise)] = noise
    path = tmp_path / "fuzzed"
    path.write_bytes(bytes(data[: max(len(data) - cut, 0)]))
    try:
        photo = read_photo(path)
    except FathomError as error:
        assert error.exit_code == 3
    else:
        assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/10.jpg", "in/2.jpg", "in/2.png", "in/.hidden.jpg", "in/notes.txt", "in/deep/2.jpg", "other/2.jpg", "odd[1].png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def stems(*arguments):
    return [(item.path.as_posix(), item.stem) for item in find_photos(list(arguments))]


def test_a_folder_is_one_level_in_natural_order(tree):
    assert stems("in") == [("in/2.jpg", "2.jpg"), ("in/2.png", "2.png"), ("in/10.jpg", "10")]


def test_globs_keep_their_folders(tree):
    assert stems("in/**/*.jpg") == [("in/2.jpg", "2"), ("in/10.jpg", "10"), ("in/deep/2.jpg", "deep/2")]


def test_same_names_from_different_places_do_not_meet(tree):
    assert stems("in/2.jpg", "other/2.jpg") == [("in/2.jpg", "in/2"), ("other/2.jpg", "other/2")]


def test_a_photo_named_twice_is_worked_on_once(tree):
    assert len(stems("in/2.jpg", "in", "./in/2.jpg")) == 3


def test_a_name_that_looks_like_a_glob_is_a_name_first(tree):
    assert stems("odd[1].png") == [("odd[1].png", "odd[1]")]


def test_arguments_that_name_nothing(tree):
    os.mkdir("empty")
    for argument, words in [("gone.jpg", "does not exist"), ("*.tiff", "nothing matches"), ("empty", "holds no photos")]:
        with pytest.raises(InputError, match=words):
            find_photos(["in", argument])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from([f"{d}{n}{s}" for d in ("", "a/", "b/", "a/b/") for n in ("x", "X", "x.jpg", "y") for s in (".jpg", ".png")]), min_size=1))
def test_stems_are_unique_and_stay_inside(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("stems")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    found = [item.stem for item in find_photos([str(root / name) for name in sorted(names)])]
    assert len({stem.casefold() for stem in found}) == len(names)
    assert not any(part in ("", ".", "..") for stem in found for part in stem.split("/"))


def tiff(values, bits, white):
    """A grey TIFF by hand: one strip, ``bits`` a pixel (12 packed, or 16), white at the largest number (``white`` 1) or at 0."""
    height, width = values.shape
    if bits == 12:
        flat = values.reshape(-1).tolist()
        data = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in zip(flat[::2], flat[1::2], strict=True))
    else:
        data = values.astype("<u2").tobytes()
    facts = [(256, width), (257, height), (258, bits), (259, 1), (262, white), (273, 8 + 2 + 12 * 9 + 4), (277, 1), (278, height), (279, len(data))]
    table = b"".join(struct.pack("<HHII", tag, 4 if tag in (256, 257, 273, 278, 279) else 3, 1, value) for tag, value in facts)
    return b"II*\0" + struct.pack("<IH", 8, len(facts)) + table + bytes(4) + data


@pytest.mark.parametrize(("bits", "white"), [(12, 1), (16, 1), (16, 0)])
def test_deep_tiffs_have_their_white_where_their_tags_say(tmp_path, bits, white):
    grey = np.arange(240, dtype=np.uint8).reshape(12, 20)
    deep = grey.astype(int) * ((1 << bits) - 1) // 255
    (tmp_path / "x.tif").write_bytes(tiff(deep if white else (1 << bits) - 1 - deep, bits, white))
    for read in (read_photo, read_rgb):
        assert np.abs(read(tmp_path / "x.tif").astype(int) - grey[..., None]).max() <= 1


def test_deep_colours_in_planes_are_refused_because_pillow_mixes_them(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "x.tif", np.full((3, 8, 10), 30000, np.uint16), photometric="rgb", planarconfig="separate")
    with pytest.raises(InputError, match="one after the other, in 16 bits"):
        read_photo(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="one after the other"):
        read_rgb(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC picture.*convert it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><title>404</title>", "is a web page"),
    ],
)
def test_what_is_often_called_jpg_is_told(tmp_path, content, words):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_photo(tmp_path / "x.jpg")


def test_data_sets_take_the_largest_phone_photos_and_odd_exif_too(tmp_path):
    Image.new("1", (12000, 9000)).save(tmp_path / "s.png")  # 108 million pixels
    assert read_rgb(tmp_path / "s.png").shape == read_photo(tmp_path / "s.png").shape == (9000, 12000, 3)
    Image.new("RGB", (6, 4), (10, 20, 30)).save(tmp_path / "e.png", exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(read_rgb(tmp_path / "e.png"), read_photo(tmp_path / "e.png"))
