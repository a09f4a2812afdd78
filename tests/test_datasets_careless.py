"""Faults of photos, by hand."""

import numpy as np
import pytest

from fathom.datasets.careless import blurred, compressed, exposed, noisy, shaken

GREY = np.full((20, 30, 3), 100, np.uint8)


def test_exposure_in_stops():
    """One stop is twice the light: 2^(1/2.2) of the value; warmth moves red and blue apart; what is too bright is white."""
    assert np.all(exposed(GREY, 1.0, 0.0) == round(100 * 2 ** (1 / 2.2)))
    red, green, blue = exposed(GREY, 0.0, 1.1)[0, 0].tolist()
    assert (red, green, blue) == (round(100 * 2**0.5), 100, round(100 * 2**-0.5))
    assert exposed(GREY, 5.0, 0.0).min() == 255


def test_a_shaken_point_is_a_line():
    point = np.zeros((21, 31, 3), np.uint8)
    point[10, 15] = 250
    seen = shaken(point, 5, 0.0)
    assert np.flatnonzero(seen[10, :, 0]).tolist() == [13, 14, 15, 16, 17] and set(seen[10, 13:18, 0].tolist()) == {50} and not seen[:10].any()
    assert np.flatnonzero(shaken(point, 5, np.pi / 2)[:, 15, 0]).tolist() == [8, 9, 10, 11, 12]


def test_blur_noise_and_compression_keep_the_shape_and_the_mean():
    picture = np.random.default_rng(0).integers(60, 200, (64, 64, 3), np.uint8)
    for spoil in (lambda rgb: blurred(rgb, 1.5), lambda rgb: compressed(rgb, 40), lambda rgb: noisy(rgb, 10.0, np.random.default_rng(1))):
        seen = spoil(picture)
        assert seen.shape == picture.shape and seen.dtype == np.uint8 and abs(float(seen.mean()) - float(picture.mean())) < 2
    assert blurred(picture, 1.5).std() < 0.5 * picture.std()
    assert noisy(GREY, 10.0, np.random.default_rng(1)).std() == pytest.approx(10, rel=0.1)
