"""Colour tables against published values."""

import numpy as np
import pytest

from fathom.runtime.outputs.colormap import COLORMAPS, colorize, table
from fathom.runtime.outputs.scale_bar import label, ticks


@pytest.mark.parametrize(
    ("name", "position", "wanted"),
    [
        # matplotlib's published tables at a few places
        ("viridis", 0, (68, 1, 84)),
        ("viridis", 51, (65, 68, 135)),
        ("viridis", 128, (33, 145, 140)),
        ("viridis", 204, (122, 209, 81)),
        ("viridis", 255, (253, 231, 37)),
        ("magma", 0, (0, 0, 4)),
        ("magma", 128, (183, 55, 121)),
        ("magma", 204, (254, 159, 109)),
        ("magma", 255, (252, 253, 191)),
        ("turbo", 128, (164, 252, 60)),
        ("turbo", 51, (62, 155, 254)),
        ("grey", 128, (128, 128, 128)),
    ],
)
def test_tables_are_near_the_published_ones(name, position, wanted):
    tolerance = 20 if name == "turbo" else 6  # the published polynomial is itself an approximation
    assert np.abs(table(name)[position].astype(int) - wanted).max() <= tolerance


@pytest.mark.parametrize("name", COLORMAPS)
def test_tables_run_smoothly(name):
    steps = np.abs(np.diff(table(name).astype(int), axis=0)).max()
    assert table(name).shape == (256, 3) and steps <= 14


def test_colours_end_at_the_ends_and_invalid_is_grey():
    values = np.array([[-5.0, 0.0, 1.0, 9.0, 0.5]], np.float32)
    valid = np.array([[True, True, True, True, False]])
    got = colorize(values, valid, 0.0, 1.0, "grey", reverse=False)
    assert got[0].tolist() == [[0] * 3, [0] * 3, [255] * 3, [255] * 3, [64] * 3]
    assert colorize(values, valid, 0.0, 1.0, "grey", reverse=True)[0, 0].tolist() == [255] * 3


def test_wrong_names_and_ranges():
    with pytest.raises(ValueError, match="unknown colour map"):
        table("jet")
    with pytest.raises(ValueError, match="low < high"):
        colorize(np.zeros((1, 1), np.float32), np.ones((1, 1), bool), 1.0, 1.0, "grey", False)


@pytest.mark.parametrize(("low", "high"), [(0.7, 3.04), (5.3, 84.9), (0, 1), (0.001, 0.0013), (-3, 5), (1e-9, 2e-9), (1234, 99999)])
def test_ticks_are_round_and_inside(low, high):
    marks = ticks(low, high, 8)
    assert 2 <= len(marks) <= 9 and all(low - 1e-9 * abs(low) <= mark <= high + 1e-9 * abs(high) for mark in marks)
    step = marks[1] - marks[0]
    assert f"{step:.0e}"[0] in "125"
    assert len({label(mark, step) for mark in marks}) == len(marks)
