"""The golden tensors of a bundle on their way into a plan, where NumPy alone can read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...runtime.artefact.manifest import Initializer
from ...runtime.artefact.spec import StageSpec, TensorSpec, network_inputs

ALIGNMENT = 64
HALF_SUFFICES = 2.5e-4  # share of a tensor's root mean square that FP16 may round away: FP16's own mean rounding, far below its tolerance


def golden_tensors(files: tuple[Path, ...], specs: tuple[StageSpec, ...], precision: str, output: str) -> dict[str, np.ndarray]:
    """The tensors that a plan's stages are held against, by name in alphabetical order.

    Inputs and the network's output are kept in FP32; tensors between stages become FP16 where the plan computes in no more and nothing is
    lost by it but a rounding.

    Args:
        files: safetensors; a tensor is taken from the first that holds it.
        specs: the stages of the plan.
        precision: of the plan.
        output: name of the network's output tensor.

    Raises:
        KeyError: if a tensor is in no file.
    """
    from safetensors.numpy import load_file

    held = {name: array for file in reversed(files) for name, array in load_file(str(file)).items()}
    exact = {output, *network_inputs(specs)} if precision != "fp32" else held.keys()
    names = sorted({tensor.name for spec in specs for tensor in spec.inputs + spec.outputs})
    return {name: np.ascontiguousarray(held[name] if name in exact else _half(held[name])) for name in names}


def collect_goldens(files: tuple[Path, ...], specs: tuple[StageSpec, ...], precision: str, output: str) -> tuple[tuple[Initializer, ...], bytes]:
    """``golden_tensors`` as one raw file and its table."""
    items: list[Initializer] = []
    raw = bytearray()
    for name, array in golden_tensors(files, specs, precision, output).items():
        raw += bytes(-len(raw) % ALIGNMENT)
        items.append(Initializer(TensorSpec(name, array.dtype.name, array.shape), len(raw)))
        raw += array.tobytes()
    return tuple(items), bytes(raw)


def _half(array: np.ndarray) -> np.ndarray:
    """As float16 if that suffices, else as it is."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    error = np.linalg.norm((half.astype(np.float64) - array).ravel())
    return half if np.isfinite(half).all() and error <= HALF_SUFFICES * np.linalg.norm(array.ravel().astype(np.float64)) else array
