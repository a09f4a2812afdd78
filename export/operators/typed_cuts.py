"""The types of what flows between the parts of a stage that was cut in FP32, for a compiler whose graphs carry no types (TensorRT 8)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np

from ...calibration.precision.operator_types import OUR_WIDE_INPUTS
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.errors import BuildFailedError
from .split import Piece

MOST = float(np.finfo(np.float16).max)


def type_pieces(pieces: Iterable[Piece], spec: StageSpec, half: bool, unread: Collection[str]) -> tuple[Piece, ...]:
    """Give every tensor at a cut one type; a kernel's inputs and outputs have it too, but for those that are FP32 always.

    Args:
        pieces: of the stage, all in FP32.
        spec: of the stage, with the types that it takes and makes.
        half: FP16 at the cuts, unless a constant of a kernel does not fit; else FP32.
        unread: outputs that no stage reads: where a kernel makes one, it has the kernel's type.

    Raises:
        BuildFailedError: if a kernel reads or makes a tensor of the stage's boundary that has another type.
    """
    pieces = tuple(pieces)
    kernels = [piece for piece in pieces if piece.operator]
    fits = all(np.abs(values).max(initial=0) <= MOST for piece in kernels for name, values in piece.constants.items() if name in _narrow(piece))
    kind = "float16" if half and fits else "float32"
    types = {tensor.name: kind for piece in pieces for tensor in piece.spec.tensors}
    types.update((tensor.name, tensor.dtype) for tensor in spec.tensors)
    for piece in kernels:
        for name in (*_narrow(piece), *piece.outputs):
            if name in unread and name in piece.outputs:
                types[name] = kind
            if types.get(name, kind) != kind:
                was = f"stage {spec.name} cannot be cut at its boundary: {name} is {types[name]}, and {piece.operator} computes there in {kind}"
                raise BuildFailedError(was, fix="leave this stage out of --operators, or --plugins FILE")
        types.update((name, "float32") for name in piece.inputs if name not in _narrow(piece))
    typed = []
    for piece in pieces:
        inputs, outputs = (tuple(TensorSpec(t.name, types[t.name], t.shape) for t in side) for side in (piece.spec.inputs, piece.spec.outputs))
        constants = {name: np.ascontiguousarray(values, types.get(name, kind)) for name, values in piece.constants.items()}
        typed.append(replace(piece, spec=StageSpec(piece.spec.name, inputs, outputs), constants=constants))
    return tuple(typed)


def _narrow(piece: Piece) -> list[str]:
    """The inputs of a kernel that may be FP16."""
    return [name for place, name in enumerate(piece.inputs) if place not in OUR_WIDE_INPUTS[piece.operator]]
