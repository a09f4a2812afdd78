"""Muon for matrices and convolutions, AdamW for all else."""

import pytest
import torch

from fathom.models.training.loop import parameter_groups
from fathom.models.training.optimiser import Muon, orthogonal, takes_muon
from fathom.models.training.recipes.recipes import RECIPES


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _stepped(parameter, gradients, **group):
    parameter = torch.nn.Parameter(parameter.clone())
    optimiser = Muon([{"params": [parameter], "weight_decay": 0.1, **group}], lr=0.02)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimiser.step()
        assert torch.equal(parameter.grad, gradient)  # still there for whoever looks at it
    return parameter.detach()


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6)])
def test_singular_values_are_evened_out_and_directions_kept(shape):
    matrix = _random(*shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonal(matrix) @ right.T
    assert float(found.diagonal().min()) > 0.6 and float(found.diagonal().max()) < 1.3
    assert float((found - torch.diag(found.diagonal())).abs().max()) < 1e-4


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-25, 1e-12])
def test_a_gradient_that_has_vanished_moves_nothing(size):
    """Of a part that has gone deaf, say behind a ReLU: it has no direction, only rounding, and squares too small for a number."""
    start = _random(8, 12)
    found = _stepped(start, [_random(8, 12, seed=1) * size], matrix=True, weight_decay=0.0)
    torch.testing.assert_close(found, start, rtol=0, atol=1e-4)


def test_steps_are_those_of_pytorchs_own():
    """Which computes the orthogonal matrix in BF16."""
    start, gradients = _random(12, 30), [_random(12, 30, seed=number + 1) for number in range(4)]
    theirs = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimiser.step()
    ours = _stepped(start, gradients, matrix=True)
    moved = float((theirs.detach() - start).square().mean().sqrt())
    assert float((ours - theirs.detach()).square().mean().sqrt()) < 0.03 * moved


def test_a_convolution_steps_as_the_matrix_it_is_whatever_its_memory_looks_like():
    start, gradients = _random(6, 4, 3, 3), [_random(6, 4, 3, 3, seed=number + 1) for number in range(2)]
    flat = _stepped(start.flatten(1), [gradient.flatten(1) for gradient in gradients], matrix=True)
    last = _stepped(start.to(memory_format=torch.channels_last), gradients, matrix=True)
    torch.testing.assert_close(last.flatten(1), flat, rtol=1e-5, atol=1e-6)


def test_all_else_steps_as_by_adamw():
    start, gradients = _random(7), [_random(7, seed=number + 1) for number in range(3)]
    theirs = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimiser.step()
    assert torch.equal(_stepped(start, gradients), theirs.detach())


def test_nothing_moves_without_a_gradient():
    start = _random(5, 9)
    torch.testing.assert_close(_stepped(start, [torch.zeros(5, 9)] * 2, matrix=True), start * (1 - 0.02 * 0.1) ** 2)  # but for the decay


def test_only_small_networks_learn_by_it_and_only_what_multiplies():
    names = {_random(8, 3, 3, 3): "conv.weight", _random(8): "conv.bias", _random(1, 9): "gate", _random(20, 8): "position_embedding.weight"}
    names[_random(8, 9)] = "adapters.0.gate.0.weight"
    assert [takes_muon(name, parameter) for parameter, name in names.items()] == [True, False, False, False, False]
    by_muon = {name: [names[p] for group in parameter_groups(names, RECIPES[name]) if group["matrix"] for p in group["params"]] for name in ("evp", "evp-tiny")}
    assert by_muon == {"evp": [], "evp-tiny": ["conv.weight"]}
