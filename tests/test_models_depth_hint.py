"""What places in a backbone are told to say of their depth, worked by hand."""

import math

import pytest
import torch

from fathom.models.training.learners.depth_hint import HINT_MIDDLE, HINT_SPREAD, map_hint, patch_hint, waves


def test_a_place_that_says_the_logarithm_of_its_depth_is_right():
    truth = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)[None, None]
    valid = torch.ones_like(truth, dtype=torch.bool)
    valid[..., :4, :3] = False  # three quarters of the first cell: it no longer counts
    said = (truth[..., ::4, ::4].log() - HINT_MIDDLE) / HINT_SPREAD
    said[..., 0, 0] = 99
    canvas = torch.full((1, 3, 3, 3), 7.0)  # of a canvas of 12 pixels, the truth is the top left 8
    canvas[:, :1, :2, :2] = said
    assert float(map_hint(canvas, truth, valid, 12)) == pytest.approx(0, abs=1e-6)
    canvas[0, 0, 1, 1] += 1 / HINT_SPREAD
    assert float(map_hint(canvas, truth, valid, 12)) == pytest.approx(1 / 3)
    tokens = torch.full((1, 4, 5), 3.0)  # class token, three of four patches
    tokens[0, 1:, 0] = said.flatten()[:3]
    assert float(patch_hint(tokens, truth, valid, 2)) == pytest.approx(0, abs=1e-6)
    tokens[0, 2, 0] = (math.log(3) - HINT_MIDDLE) / HINT_SPREAD
    assert float(patch_hint(tokens, truth, valid, 2)) == pytest.approx(math.log(3 / 2) / 2)


def test_waves_tell_all_places_apart():
    found = waves(6, 128)
    assert found.shape == (36, 36) and torch.linalg.matrix_rank(found) == 36
    assert torch.allclose(found[:, 0], torch.ones(36)) and waves(6, 4).shape == (36, 4)
