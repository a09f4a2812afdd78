"""A plan proved on this machine on demand: chained, stage by stage, and in two starts in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .artefact.plan import PlanFile
from .backend import open_backend
from .certificate.certificate import Certificate
from .certificate.comparison import compare_output
from .certificate.proof import MODES, Proof, prove
from .errors import AccuracyError
from .tensorrt.backend import TensorRTBackend

if TYPE_CHECKING:
    from collections.abc import Callable

REPEATS = 0.1  # two starts may differ by this share of what the depth may: TensorRT-RTX chooses its kernels anew at every start


@dataclass(frozen=True)
class Examination:
    """What two starts of a plan gave.

    Args:
        proof: of the first.
        repeated: by how much the output of the second start differs from the first, in the proof's measure.
        equal: whether both are the same bits.
        where: GPU, TensorRT release and driver, or the CPU.
        kept: what became of the certificate, in words.
    """

    proof: Proof
    repeated: float
    equal: bool
    where: str
    kept: str

    @property
    def words(self) -> str:
        """For people."""
        again = "the second start gave the same bits" if self.equal else f"the second start differed by {self.proof.measure} {self.repeated:.1e}"
        return f"right on {self.where}: {self.proof.words}; {again}" + (f"; {self.kept}" if self.kept else "")


def examine_file(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """``examine_plan`` for a process of its own: native code that does not fit the machine may take the process with it.

    Args:
        request: ``plan``, its path.
        send: sends one event to the parent.

    Returns:
        ``says``, for people.
    """
    send("progress", what="running the plan's own case", done=0.0)
    with PlanFile.open(request["plan"], verify=False) as plan:
        return {"says": examine_plan(plan).words}


def examine_plan(plan: PlanFile, index: int = 0) -> Examination:
    """Open a plan twice and run its golden tensors each time; if both hold, the proof is kept as a certificate.

    Args:
        plan: open, with golden tensors.
        index: which GPU.

    Raises:
        AccuracyError: if an engine does not give them, naming the first wrong stage, or the starts do not agree.
        InputError: if the plan carries no golden tensors, or an engine is broken.
        EnvironmentMismatchError, OutOfMemoryError: if this machine cannot run it; see ``TensorRTBackend``.
    """
    outputs: list[np.ndarray] = []
    proofs: list[Proof] = []
    environment: dict[str, str] = {}
    for start in (1, 2):
        backend = open_backend(plan) if plan.manifest.backend == "onnxruntime" else TensorRTBackend(plan, index)
        try:
            environment = getattr(backend, "environment", {})
            proofs.append(prove(plan, backend, MODES if start == 1 else ("chained",)))
            outputs.append(proofs[-1].output)
        finally:
            backend.close()
        proofs[-1].require(environment.get("gpu", "this CPU"))
    proof = proofs[0]
    repeated = compare_output(outputs[1], outputs[0])[proof.measure]
    if not repeated <= REPEATS * proof.tolerance.depth:
        raise AccuracyError(
            f"two starts in a row differ by {proof.measure} {repeated:.1e} on the same input",
            wanted=f"at most {REPEATS * proof.tolerance.depth:.0e}",
            fix="do not use its depth; build with another release of TensorRT or in another precision",
        )
    where = "{gpu} ({target}), TensorRT {tensorrt}, driver {driver}".format(**environment) if environment else "this CPU"
    kept = Certificate(plan, environment).write(proof) if environment else ""
    return Examination(proof, repeated, bool(np.array_equal(outputs[0], outputs[1])), where, kept)
