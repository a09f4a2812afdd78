"""--mask-edges and --scale from the command line to the files, of photos and of a video; what they should do is worked out here, pixel by pixel."""

import json

import numpy as np
import pytest
from PIL import Image

from fathom.runtime.commands import run

SCALE, SHIFT_M = 1.4, 0.05
PHOTOS = [np.random.default_rng(seed).integers(0, 256, (54, 70, 3), dtype=np.uint8) for seed in (1, 2)]


def masked(depth):
    """NaN where depth climbs, or falls, by more than 3 % on both sides along a row or a column."""
    out = depth.copy()
    for row in range(depth.shape[0]):
        for column in range(depth.shape[1]):
            for before, after in (((row, column - 1), (row, column + 1)), ((row - 1, column), (row + 1, column))):
                if min(before) >= 0 and after[0] < depth.shape[0] and after[1] < depth.shape[1]:
                    here, first, last = float(depth[row, column]), float(depth[before]), float(depth[after])
                    if (here > 1.03 * first and last > 1.03 * here) or (first > 1.03 * here and here > 1.03 * last):
                        out[row, column] = np.nan
    return out


def wanted(plain, mask, scale):
    depth = masked(plain) if mask else plain
    return depth * np.float32(SCALE) + np.float32(SHIFT_M) if scale else depth


def flags_of(mask, scale):
    return [*(["--mask-edges"] if mask else []), *(["--scale", f"{SCALE},{SHIFT_M}"] if scale else [])]


def check(plain, found, mask, scale):
    np.testing.assert_allclose(found, wanted(plain, mask, scale), rtol=1e-6)
    if mask:
        assert 0.002 < np.isnan(found).mean() < 0.9  # the pictures do have such edges, and something is left


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, photo in enumerate(PHOTOS):
        Image.fromarray(photo).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def plain(tiny, photos, tmp_path_factory):
    """What the network itself says of each photo."""
    out = tmp_path_factory.mktemp("plain")
    assert run.main(["--engine", str(tiny.plan), str(photos), "-o", str(out), "--save", "npy", "-q"]) == 0
    return [np.load(out / f"{index}_depth.npy") for index in range(len(PHOTOS))]


@pytest.mark.parametrize(("mask", "scale"), [(True, False), (False, True), (True, True)])
def test_photos(tiny, photos, plain, tmp_path, capsys, mask, scale):
    words = ["--engine", str(tiny.plan), str(photos), "-o", str(tmp_path), "--save", "npy,png16,ply", "--intrinsics", "60,60,35,27", "--json"]
    assert run.main([*words, *flags_of(mask, scale)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for index, (depth, line) in enumerate(zip(plain, lines, strict=True)):
        found = np.load(tmp_path / f"{index}_depth.npy")
        check(depth, found, mask, scale)
        mm = np.asarray(Image.open(tmp_path / f"{index}_depth.png"))
        assert np.array_equal(mm, np.nan_to_num(np.rint(found * 1000)).astype(np.uint16))
        assert line["valid_share"] == pytest.approx(1 - np.isnan(found).mean(), abs=1e-6)
        assert ("correction" in line) == scale and line["median_m"] == pytest.approx(np.nanmedian(found), rel=1e-5)
        header = (tmp_path / f"{index}.ply").read_bytes().partition(b"end_header")[0].decode()
        assert f"element vertex {np.isfinite(found).sum()}" in header and ("comment depth_m = 1.4 * network + 0.05" in header) == scale
    assert (tmp_path / "scale.json").exists() == scale


@pytest.mark.parametrize(("mask", "scale"), [(True, False), (True, True)])
def test_a_video(tiny, plain, tmp_path, capsys, mask, scale):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 70, 54, "bgr0"  # lossless: the frames are the photos
        for photo in PHOTOS:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(photo, format="rgb24")))
        container.mux(stream.encode(None))
    words = ["--engine", str(tiny.plan), str(tmp_path / "clip.mkv"), "-o", str(tmp_path / "out"), "--save", "npy,png16,color", "--json"]
    assert run.main([*words, *flags_of(mask, scale)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["frames"] == len(PHOTOS) and ("correction" in said) == scale
    for index, depth in enumerate(plain):
        found = np.load(tmp_path / f"out/clip/{index:06d}_depth.npy")
        check(depth, found, mask, scale)
        texts = Image.open(tmp_path / f"out/clip/{index:06d}_depth.png").text
        assert ("Fathom-Correction" in texts) == scale
    assert (tmp_path / "out/scale.json").exists() == scale and (tmp_path / "out/clip_color.mp4").is_file()
