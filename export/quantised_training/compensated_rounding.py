"""Rounding that makes up for itself: one input after the other is rounded, and those that follow take back what that did to the output.

Frantar et al. 2022 (GPTQ, arXiv 2210.17323), section 3: with the products of all inputs of a layer known, the best correction of the remaining weights has a
closed form. Rounding to nearest treats every weight alone, though inputs of one layer say much of each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...calibration.quantisation.formats import Format
from .straight_through import on_grid

DAMPING = 0.01  # of the inputs' mean square (the paper's), for products without a root
BELOW = 1 - 2.0**-20  # the end of a grid divided by it may be a bit more than its scale, and the scale found anew the next greater one


def compensated(weights: Tensor, scales: Tensor, products: Tensor, form: Format) -> Tensor:
    """Weights on the grid, such that the layer's outputs change less than if each was rounded to nearest.

    Those that are rounded to an end of the grid stay there: scales that are found anew from the result are the same.

    Args:
        weights: [G, D, O], of G groups, D inputs and O outputs; float64.
        scales: [G, D, O].
        products: of the inputs with each other, [G, D, D]; float64.
    """
    order = products.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)  # the strongest first: more are left to make up for it
    across, along = order[:, :, None], order[:, None, :]
    left, scales = torch.take_along_dim(weights, across, 1), torch.take_along_dim(scales.double(), across, 1)
    products = torch.take_along_dim(torch.take_along_dim(products, across, 1), along, 2)
    mean = torch.clamp(products.diagonal(dim1=1, dim2=2).mean(1), min=1e-30)[:, None, None]
    eye = torch.eye(products.shape[1], dtype=products.dtype, device=products.device)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(products + DAMPING * mean * eye)), upper=True)
    nearest = on_grid(left, scales, form)
    ends = (nearest.abs() >= form.greatest).nonzero(as_tuple=True)
    fixed = torch.full_like(nearest, torch.nan)
    fixed[ends] = nearest[ends].clamp(-form.greatest, form.greatest)
    found = torch.empty_like(left)
    for place in range(left.shape[1]):
        stored = on_grid(left[:, place], scales[:, place], form).clamp(-form.greatest, form.greatest)
        stored = torch.where(fixed[:, place].isnan(), stored, fixed[:, place])
        found[:, place] = stored * scales[:, place]
        error = (left[:, place] - found[:, place]) / upper[:, place, place, None]
        left[:, place + 1 :] -= upper[:, place, place + 1 :, None] * error[:, None]
    return torch.empty_like(found).scatter_(1, across.expand_as(found), found) * BELOW
