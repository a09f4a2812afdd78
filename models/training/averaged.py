"""An exponential moving average of the weights that learn, which is validated and written instead of the last step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Averaged:
    """Averages of parameters by name, on their device.

    Args:
        names: of the parameters that learn.
        decay: share of the old average that each step keeps, 0 to below 1; 0: the average is the last step itself and costs nothing.

    Raises:
        ValueError: for another decay.
    """

    def __init__(self, names: dict[Tensor, str], decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"a decay from 0 to below 1 was wanted, got {decay}")
        self.decay, self.names = decay, names
        self.tensors = {name: parameter.detach().clone() for parameter, name in names.items()} if decay else {}

    def update(self, step: int) -> None:
        """Take a step's weights in; early steps count more, so that the start is soon forgotten: decay min(decay, (1 + step) / (10 + step))."""
        if self.decay:
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for parameter, name in self.names.items():
                    self.tensors[name].lerp_(parameter.detach(), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network has the averages; behind it, its own weights again."""
        if not self.decay:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for parameter, name in self.names.items():
                own = parameter.detach().clone()
                parameter.copy_(self.tensors[name])
                self.tensors[name] = own
