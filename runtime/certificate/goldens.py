"""The golden tensors that travel in a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..artefact.manifest import GOLDENS
from ..artefact.spec import DTYPES, TensorSpec

if TYPE_CHECKING:
    from ..artefact.plan import PlanFile


def read_goldens(plan: PlanFile) -> dict[str, np.ndarray]:
    """Every golden tensor by name, as it is stored: float32, or float16 where that suffices; empty if the plan carries none."""
    found = {}
    for item in plan.manifest.goldens:
        shape = tuple(int(size) for size in item.tensor.shape)
        dtype, count = DTYPES[item.tensor.dtype], int(np.prod(shape, dtype=np.int64))
        with plan.view(GOLDENS) as view:
            found[item.tensor.name] = np.frombuffer(view, dtype, count, item.offset).reshape(shape).copy()
    return found


def as_input(golden: np.ndarray, spec: TensorSpec, batch: int) -> np.ndarray:
    """A golden tensor in the type and with the batch that an engine takes: one case is repeated."""
    array = golden.astype(DTYPES[spec.dtype], copy=False)
    rows = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else batch
    return np.repeat(array, rows, axis=0) if spec.shape and len(array) == 1 and rows != 1 else array
