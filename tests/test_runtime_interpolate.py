"""Resampling against PyTorch and Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fathom.runtime.photo.interpolate import resize, resize_mask

TORCH = {
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bilinear-corners": {"mode": "bilinear", "align_corners": True},
    "nearest": {"mode": "nearest"},
}
SIDE = st.integers(1, 40)


def torch_resize(values, height, width, kind):
    tensor = torch.from_numpy(values.astype(np.float32)).reshape(*values.shape[:2], -1).permute(2, 0, 1)[None]
    out = torch.nn.functional.interpolate(tensor, size=(height, width), **TORCH[kind])[0].permute(1, 2, 0)
    return out.reshape(height, width, *values.shape[2:]).numpy()


@settings(max_examples=150, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(sorted(TORCH)), st.sampled_from([(), (1,), (3,)]), st.booleans(), st.integers(0, 9))
def test_two_tap_kinds_equal_torch(h, w, height, width, kind, channels, as_bytes, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (h, w, *channels), dtype=np.uint8) if as_bytes else rng.normal(size=(h, w, *channels)).astype(np.float32)
    got = resize(values, height, width, kind)
    assert got.dtype == np.float32
    # torch works out places in FP32, on some processors in two roundings: the last place of the largest coordinate moves a weight of either axis
    spread = 2 * max(h, w, height, width) * float(np.ptp(values)) + 4 * float(np.abs(values).max())
    tolerance = 0 if kind == "nearest" else spread * 2.0**-23
    np.testing.assert_allclose(got, torch_resize(values, height, width, kind), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", sorted(TORCH))
@pytest.mark.parametrize(
    "sizes", [((480, 640), (440, 480)), ((480, 480), (480, 640)), ((375, 1242), (352, 1216)), ((37, 1), (1, 37)), ((120, 120), (480, 480))]
)
def test_real_sizes_equal_torch(kind, sizes):
    (h, w), (height, width) = sizes
    values = np.random.default_rng(0).random((h, w, 3), dtype=np.float32)
    # torch works out places in FP32, on some processors in two roundings: the last place of the largest coordinate moves a weight this much
    tolerance = 0 if kind == "nearest" else max(h, w, height, width) * 2.0**-23
    np.testing.assert_allclose(resize(values, height, width, kind), torch_resize(values, height, width, kind), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("kind", "filter_"), [("bilinear-antialias", Image.Resampling.BILINEAR), ("bicubic-antialias", Image.Resampling.BICUBIC)])
def test_antialias_on_bytes_is_what_pillow_does_to_a_photo(kind, filter_):
    photo = np.random.default_rng(1).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(photo).resize((20, 31), filter_))
    np.testing.assert_array_equal(resize(photo, 31, 20, kind), wanted)


@pytest.mark.parametrize(("kind", "mode"), [("bilinear-antialias", "bilinear"), ("bicubic-antialias", "bicubic")])
def test_antialias_on_floats_equals_torch_antialias(kind, mode):
    values = np.random.default_rng(2).random((61, 83, 3), dtype=np.float32)
    tensor = torch.from_numpy(values).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(tensor, size=(31, 20), mode=mode, antialias=True, align_corners=False)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(resize(values, 31, 20, kind), wanted, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(["bilinear", "bilinear-corners", "nearest", "bilinear-antialias"]), st.floats(-5, 5))
def test_a_flat_picture_stays_flat(h, w, height, width, kind, value):
    got = resize(np.full((h, w), value, np.float32), height, width, kind)
    np.testing.assert_allclose(got, np.float32(value), rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(["bilinear", "bilinear-corners", "nearest"]), st.integers(0, 9))
def test_a_mask_lets_no_invalid_pixel_through(h, w, height, width, kind, seed):
    """Poison where the mask is False: wherever the resampled mask is True, the resampled values are clean."""
    rng = np.random.default_rng(seed)
    mask = rng.random((h, w)) > 0.2
    values = np.where(mask, rng.random((h, w)), 1e6).astype(np.float32)
    clean = resize(values, height, width, kind)[resize_mask(mask, height, width, kind)]
    assert (clean < 3).all()


def test_wrong_arguments_are_refused():
    picture = np.zeros((4, 4), np.float32)
    for values, size, kind in [
        (picture, (0, 4), "bilinear"),
        (picture, (4, 5), "cubic"),
        (picture.astype(np.float64), (4, 5), "bilinear"),
        (picture[0], (4, 5), "nearest"),
    ]:
        with pytest.raises(ValueError):
            resize(values, *size, kind)
