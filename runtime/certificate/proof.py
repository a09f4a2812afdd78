"""Run the engines of a plan on its golden tensors: back to back, and each alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artefact.spec import network_inputs
from ..errors import AccuracyError, InputError
from .comparison import Difference, compare_output, difference
from .goldens import as_input, read_goldens
from .tolerance import TOLERANCES, Tolerance

if TYPE_CHECKING:
    from ..artefact.plan import PlanFile


@dataclass(frozen=True)
class ProofRow:
    """One tensor in one mode: ``chained`` (the stages feed each other) or ``isolated`` (its stage was given golden tensors)."""

    stage: str
    mode: str
    tensor: str
    found: Difference

    def failure(self, tolerance: Tolerance) -> str:
        """What is wrong with it; empty if nothing is."""
        found, where = self.found, f"stage {self.stage}, tensor {self.tensor} ({self.mode})"
        if found.problem:
            return f"{where}: {found.problem}"
        if not found.rms <= tolerance.rms:
            return f"{where}: relative error {found.rms:.1e}, at most {tolerance.rms:.0e}"
        return "" if abs(found.gain) <= tolerance.gain else f"{where}: {found.gain:+.2%} in scale, at most {tolerance.gain:.1%}"


@dataclass(frozen=True)
class Proof:
    """What the engines of a plan gave.

    Args:
        rows: of every output of every stage, in running order; isolated ones first, where those were run.
        measure, error: of the network's output at the end of the chain; see ``comparison.compare_output``.
        output: that output itself.
        tolerance: what is allowed.
    """

    rows: tuple[ProofRow, ...]
    measure: str
    error: float
    output: np.ndarray
    tolerance: Tolerance

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """(stage, what is wrong), what is wrong alone before what is wrong in the chain; empty if everything holds."""
        found = [(row.stage, words) for row in self.rows if (words := row.failure(self.tolerance))]
        if not self.error <= self.tolerance.depth:
            limit = self.tolerance.depth
            found.append((self.rows[-1].stage, f"the output at the end of the chain: {self.measure} {self.error:.1e}, at most {limit:.0e}"))
        return tuple(found)

    @property
    def words(self) -> str:
        """The numbers, for people."""
        worst = max(row.found.rms for row in self.rows)
        return f"largest relative error of a tensor {worst:.1e}, {self.measure} {self.error:.1e}"

    def require(self, where: str) -> None:
        """Pass or raise.

        Raises:
            AccuracyError: naming the first stage that is wrong.
        """
        if failures := self.failures:
            stage, words = failures[0]
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise AccuracyError(
                f"the engine of stage {stage} does not give on {where} what the network gives: {words}{more}",
                wanted="the golden tensors within the tolerance of the precision",
                fix="do not use its depth; build with another release of TensorRT or in another precision",
            )


def prove(plan: PlanFile, backend: Any, alone: bool | None = None) -> Proof:
    """Run a plan's own case on an open backend.

    Args:
        backend: of this plan; if it can run single stages (``run_stage``), a wrong one is told from those that it feeds.
        alone: also run every stage on golden tensors, which takes as long as another run of the network; None for only if the chain fails.

    Raises:
        InputError: if the plan carries no golden tensors.
        FathomError: if an engine does not run.
    """
    manifest, golden = plan.manifest, read_goldens(plan)
    if not golden:
        raise InputError(f"{plan.path} carries no golden tensors", wanted="a plan that can prove itself", fix="depth-build it again with this release")
    specs, batch, output = manifest.specs(), manifest.batch[0], manifest.contract.output.tensor
    made = [(stage.name, tensor.name) for stage in specs for tensor in stage.outputs]
    inputs = {name: as_input(golden[name], spec, batch) for name, spec in network_inputs(specs).items()}
    got = backend.run(inputs, frozenset(name for _, name in made))
    rows = [ProofRow(stage, "chained", name, difference(got[name], golden[name])) for stage, name in made]
    end = np.broadcast_to(golden[output], got[output].shape) if got[output].shape[1:] == golden[output].shape[1:] else golden[output]
    ((measure, error),) = [(key, value) for key, value in compare_output(got[output], end).items() if key != "max_abs"]
    proof = Proof(tuple(rows), measure, error, got[output], TOLERANCES[manifest.precision])
    if alone is False or (alone is None and not proof.failures) or not hasattr(backend, "run_stage"):
        return proof
    isolated = []
    for stage in specs:
        found = backend.run_stage(stage.name, {tensor.name: as_input(golden[tensor.name], tensor, batch) for tensor in stage.inputs})
        isolated += [ProofRow(stage.name, "isolated", tensor.name, difference(found[tensor.name], golden[tensor.name])) for tensor in stage.outputs]
    return Proof((*isolated, *rows), measure, error, got[output], proof.tolerance)
