"""Rounding that makes up for itself, against numbers worked by hand, all choices there are, and rounding to nearest."""

import itertools

import numpy as np
import pytest
import torch

from fathom.calibration.quantisation.formats import FP8, INT4, INT8
from fathom.export.quantised_training.compensated_rounding import compensated
from fathom.export.quantised_training.straight_through import on_grid, weight_scales


def of_inputs(x):
    """[G, D, D] of inputs [G, rows, D]."""
    return x.transpose(1, 2) @ x


def scales_of(weights, form):
    """[G, D, O], one scale per output, as a convolution's or linear layer's weights have them."""
    groups, depth, outputs = weights.shape
    stored = weights.float().transpose(1, 2).reshape(groups * outputs, depth)
    if form.block:
        found = weight_scales(stored, 1, form)
    else:
        found = weight_scales(stored, 0, form).expand(groups * outputs, depth)
    return found.reshape(groups, outputs, depth).transpose(1, 2)


def test_what_one_weight_lost_the_next_one_takes():
    """Two inputs that are always equal, both with weight 0.4 of a step: nearest gives 0 of 0.8, here one of them becomes 1. The third, alone, stays 127."""
    x = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]], dtype=torch.float64)
    weights = torch.tensor([[[0.4], [0.4], [127.0]]], dtype=torch.float64)
    found = compensated(weights, torch.ones(1, 3, 1), of_inputs(x), INT8)
    assert sorted(found[0, :2, 0].round().tolist()) == [0.0, 1.0] and found[0, 2, 0] == pytest.approx(127, rel=1e-5)


def test_inputs_that_say_nothing_of_each_other_are_rounded_to_nearest():
    weights = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scales = scales_of(weights, INT8)
    found = compensated(weights, scales, torch.eye(9, dtype=torch.float64).expand(2, 9, 9), INT8)
    assert torch.equal((found / scales).round(), on_grid(weights, scales, INT8))


@pytest.mark.parametrize("form", [INT8, INT4, FP8], ids=lambda form: form.name)
def test_the_outputs_change_less_and_the_scales_stay(form):
    """Inputs of 64 channels that fill 8 directions, as activations do; three groups, each with its own."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(3, 400, 8, dtype=torch.float64, generator=random) @ torch.randn(3, 8, 64, dtype=torch.float64, generator=random)
    x += 0.05 * torch.randn(x.shape, dtype=torch.float64, generator=random)
    weights = torch.randn(3, 64, 6, dtype=torch.float64, generator=random)
    scales = scales_of(weights, form)
    found = compensated(weights, scales, of_inputs(x), form)
    assert torch.equal(scales_of(found, form), scales)  # found anew from what is stored
    grid = on_grid(found.float(), scales, form)
    nearest = on_grid(weights.float(), scales, form)
    assert grid.abs().max() <= form.greatest and torch.allclose(grid * scales, found.float(), rtol=2e-6, atol=0)
    errors = [float((x @ ((stored * scales).double() - weights)).square().sum()) for stored in (grid, nearest)]
    assert errors[0] < 0.2 * errors[1]


def test_it_is_about_as_good_as_the_best_of_all_roundings():
    """Five weights, each up or down, 32 choices: on average hardly worse than the best of them (it may go farther), where nearest is far from it."""
    random = torch.Generator().manual_seed(2)
    sums = np.zeros(3)
    for _ in range(40):
        x = torch.randn(1, 30, 2, dtype=torch.float64, generator=random) @ torch.randn(1, 2, 6, dtype=torch.float64, generator=random)
        weights = 20 * torch.rand(1, 6, 1, dtype=torch.float64, generator=random)
        weights[0, 0, 0] = 127.0
        ones = torch.ones(1, 6, 1)
        down = weights[0, 1:, 0].floor()

        def error(stored, x=x, weights=weights):
            return float((x @ (stored - weights)).square().sum())

        best = min(error(torch.cat([torch.tensor([127.0]), down + torch.tensor(ups)]).reshape(1, 6, 1)) for ups in itertools.product((0.0, 1.0), repeat=5))
        found = compensated(weights, ones, of_inputs(x), INT8).round()
        sums += best, error(found), error(weights.round())
    assert sums[1] < 1.2 * sums[0] < 0.3 * sums[2]
