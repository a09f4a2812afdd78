"""What tests mean by the same: weights bit by bit, and what is computed from them within a tolerance.

Two networks with equal weights need not give equal bits: kernels add in an order that depends on processor, threads and where memory lies.
"""

import torch

SAME_OUTPUT = 1e-5  # of the largest magnitude; FP32 sums in another order differ by about 1e-6 of it in networks of this depth


def same_weights(found: torch.nn.Module, wanted: torch.nn.Module) -> bool:
    """Whether two networks hold the same tensors under the same names, bit by bit."""
    ours, theirs = found.state_dict(), wanted.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def same_output(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two results of the same computation differ by no more than the order of summation explains."""
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= SAME_OUTPUT * wanted.abs().max())
