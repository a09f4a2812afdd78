"""The camera that a photo names in its EXIF data."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from noise_photos import photo, picture
from other_contracts import with_output
from PIL import Image

from fathom.runtime.commands import run, scale_command
from fathom.runtime.errors import InputError
from fathom.runtime.photo.exif_camera import exif_camera
from fathom.runtime.pipeline import Pipeline

SHORT, LONG, RATIONAL = 3, 4, 5
FOCAL, ZOOM, ACROSS, DOWN = 0xA405, 0xA404, 0xA002, 0xA003


def exif(*tags, orientation=1):
    """An EXIF block by its standard: a TIFF header, a directory with the orientation that points to a second one, and in that the tags (number, kind, value);
    a rational's two numbers lie behind it."""
    first = struct.pack("<HHHIHHHHII", 2, 0x0112, SHORT, 1, orientation, 0, 0x8769, LONG, 1, 38)
    entries, behind = b"", b""
    start = 8 + len(first) + 4 + 2 + 12 * len(tags) + 4
    for number, kind, value in sorted(tags):
        if kind == RATIONAL:
            entries += struct.pack("<HHII", number, kind, 1, start + len(behind))
            behind += struct.pack("<II", *value)
        else:
            entries += struct.pack("<HHI", number, kind, 1) + (struct.pack("<HH", value, 0) if kind == SHORT else struct.pack("<I", value))
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + struct.pack("<IH", 0, len(tags)) + entries + struct.pack("<I", 0) + behind


def taken(path, *tags, size=(96, 128), orientation=1):
    Image.fromarray(photo(*size)).save(path, exif=exif(*tags, orientation=orientation))
    return path


def test_a_focal_length_for_film_in_pixels(tmp_path):
    """A picture of 3:2 is film of 36x24 mm, so 26 mm see as many pixels of 6000 as 26 of 36; one of 4:3 has film's diagonal, 43.27 mm, and so 34.61 mm
    across: a phone's 26 mm see 2 atan(34.61 / 52) = 67.3 degrees of it, upright as it is."""
    full = exif_camera(taken(tmp_path / "a.jpg", (FOCAL, SHORT, 26)), 6000, 4000)
    assert (full.fx, full.fy) == pytest.approx((26 / 36 * 6000,) * 2)
    assert (full.cx, full.cy, full.width, full.height) == (2999.5, 1999.5, 6000, 4000)
    phone = exif_camera(tmp_path / "a.jpg", 4032, 3024)
    assert math.degrees(2 * math.atan(4032 / 2 / phone.fx)) == pytest.approx(67.3, abs=0.05)
    assert exif_camera(tmp_path / "a.jpg", 3024, 4032).fx == phone.fx


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_formats_that_carry_exif(tmp_path, ending):
    file = taken(tmp_path / f"p.{ending}", (FOCAL, SHORT, 50), (ACROSS, LONG, 4000), (DOWN, LONG, 3000), (ZOOM, RATIONAL, (1, 1)))
    assert exif_camera(file, 128, 96).fx == pytest.approx(50 * 160 / math.hypot(36, 24))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ((), "does not say what camera"),
        (((FOCAL, SHORT, 0),), "does not say what camera"),  # as the standard has it where the focal length is not known
        (((FOCAL, SHORT, 26), (ZOOM, RATIONAL, (5, 2))), "zoomed into by 2.5"),
        (((FOCAL, SHORT, 26), (ACROSS, LONG, 4000), (DOWN, LONG, 2250)), "128x96 pixels and was taken with 4000x2250"),
    ],
)
def test_a_camera_that_cannot_be_known_is_refused(tmp_path, tags, words):
    with pytest.raises(InputError, match=words):
        exif_camera(taken(tmp_path / "p.jpg", *tags), 128, 96)


def test_what_says_nothing_does_not_matter(tmp_path):
    """A zoom of 0 or of 0/0 is none; the pixels that were taken may be told lying down of a photo that stands."""
    for zoom in ((0, 1), (0, 0), (100, 100)):
        file = taken(tmp_path / "p.jpg", (FOCAL, SHORT, 26), (ZOOM, RATIONAL, zoom), (ACROSS, LONG, 4032), (DOWN, LONG, 3024))
        assert exif_camera(file, 96, 128).fx == exif_camera(file, 128, 96).fx


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80), st.integers(0, 200))
def test_broken_exif_gives_a_camera_or_an_error(tmp_path, junk, at):
    whole = exif((FOCAL, SHORT, 26), (ZOOM, RATIONAL, (1, 1)), (ACROSS, LONG, 128), (DOWN, LONG, 96))
    block = whole[:6] + whole[6 : 6 + at] + junk + whole[6 + at + len(junk) :]
    Image.fromarray(photo(96, 128)).save(tmp_path / "p.jpg", exif=block)
    try:
        found = exif_camera(tmp_path / "p.jpg", 128, 96)
    except InputError:
        return
    assert found.fx > 0 and math.isfinite(found.fx)


def test_depth_run_takes_each_photo_for_its_own_camera(tiny, tmp_path, capsys):
    """A network for one camera: twice the focal length, twice the metres. The turned photo is stored lying; a photo that names none fails alone."""
    bundle = with_output(tiny.bundle, tmp_path / "bundle", focal_px=32.0, focal_assumed=True)
    place = tmp_path / "photos"
    place.mkdir()
    taken(place / "wide.png", (FOCAL, SHORT, 20))
    taken(place / "narrow.png", (FOCAL, SHORT, 40))
    taken(place / "stands.png", (FOCAL, SHORT, 20), orientation=6)
    picture(place / "screenshot.png", size=(96, 128))
    out = tmp_path / "out"
    assert run.main(["--engine", str(bundle), str(place), "-o", str(out), "--intrinsics", "exif", "--save", "npy,png16", "--json"]) == 3
    found = capsys.readouterr()
    assert "screenshot.png does not say what camera took it" in found.err and "1 of 4 photos failed" in found.err
    maps = {name: np.load(out / f"{name}_depth.npy", allow_pickle=False) for name in ("wide", "narrow", "stands")}
    np.testing.assert_allclose(maps["narrow"], 2 * maps["wide"], rtol=1e-6)
    assert maps["stands"].shape == (128, 96)
    with Pipeline.open(bundle) as pipeline:
        fx = 20 * 160 / math.hypot(36, 24)
        by_hand = pipeline.predict(photo(96, 128), intrinsics=(fx, fx, 63.5, 47.5))
    np.testing.assert_allclose(maps["wide"], by_hand.depth_m, rtol=1e-6)
    assert json.loads(Image.open(out / "wide_depth.png").text["Fathom-Intrinsics"])["fx"] == pytest.approx(fx)
    assert json.loads((out / "_depth-run.json").read_text())["intrinsics"] == "exif"
    assert (
        run.main(["--engine", str(bundle), str(place / "wide.png"), "-o", str(tmp_path / "c"), "--intrinsics", "exif"]) == 0
        and (tmp_path / "c/wide.ply").is_file()
    )


def test_exif_is_of_photos_alone(tiny, tmp_path, capsys):
    (tmp_path / "v.mp4").write_bytes(b"0")
    words = ["--engine", str(tiny.plan), "-o", str(tmp_path / "o"), "--intrinsics", "exif"]
    assert run.main([*words, str(tmp_path / "v.mp4")]) == 2
    assert run.main([*words, str(picture(tmp_path / "p.png")), "--ray"]) == 2
    told = capsys.readouterr().err
    assert "a video or bag" in told and "--intrinsics exif with --ray" in told


def test_a_correction_is_measured_on_photos_of_one_camera(tiny, tmp_path, capsys):
    for name, focal in (("a", 26), ("b", 26), ("c", 52)):
        taken(tmp_path / f"{name}.jpg", (FOCAL, SHORT, focal))
    correction = tmp_path / "s.scale.json"
    words = ["--engine", str(tiny.plan), "-o", str(correction), "--intrinsics", "exif", "--force"]
    for photos, code in (("ab", 0), ("ac", 3)):
        (tmp_path / "m.csv").write_text("".join(f"{name}.jpg,{x},{y},2.5\n" for name in photos for x, y in ((20, 20), (60, 70))))
        assert scale_command.main([str(tmp_path / "m.csv"), *words]) == code
    assert "c.jpg is of another camera than" in capsys.readouterr().err
    assert json.loads(correction.read_text())["fx"] == pytest.approx(26 * 160 / math.hypot(36, 24))
