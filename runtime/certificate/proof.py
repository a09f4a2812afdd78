"""Run the engines of a plan on its golden tensors: back to back, and each alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artefact.spec import StageSpec, network_inputs
from ..errors import AccuracyError, InputError
from .comparison import Difference, compare_output, difference
from .goldens import as_input, read_goldens
from .probes import StageProbes, Suspect, read_probes, sample
from .tolerance import TOLERANCES, Tolerance

if TYPE_CHECKING:
    from ..artefact.plan import PlanFile


MODES = ("isolated", "chained")  # each stage on golden tensors; the stages on what the one before made


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
        rows: of every output of every stage, in running order; isolated ones first.
        suspects: stage -> the one weight whose change would explain the stage's error.
        probed: how many weights were looked for.
        measure, error: of the network's output, at the end of the chain where that was run; see ``comparison.compare_output``.
        output: that output itself.
        tolerance: what is allowed.
    """

    rows: tuple[ProofRow, ...]
    suspects: dict[str, Suspect]
    probed: int
    measure: str
    error: float
    output: np.ndarray
    tolerance: Tolerance

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """(stage, what is wrong), what is wrong alone before what is wrong in the chain; empty if everything holds."""
        over = [row for row in self.rows if row.failure(self.tolerance)]
        alone = [(row.stage, row.failure(self.tolerance)) for row in over if row.mode == "isolated"]
        alone += [(stage, one.words) for stage, one in self.suspects.items() if not any(stage == named for named, _ in alone)]
        order = list(dict.fromkeys(row.stage for row in self.rows))
        found = sorted(alone, key=lambda item: order.index(item[0])) + [(row.stage, row.failure(self.tolerance)) for row in over if row.mode == "chained"]
        if not self.error <= self.tolerance.depth:
            limit = self.tolerance.depth
            found.append((self.rows[-1].stage, f"the network's output: {self.measure} {self.error:.1e}, at most {limit:.0e}"))
        return tuple(found)

    @property
    def words(self) -> str:
        """The numbers, for people."""
        worst = max(row.found.rms for row in self.rows)
        looked = f", none of {self.probed} weights seems changed" if self.probed and not self.suspects else ""
        return f"largest relative error of a tensor {worst:.1e}, {self.measure} {self.error:.1e}{looked}"

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


def prove(plan: PlanFile, backend: Any, modes: tuple[str, ...] = MODES) -> Proof:
    """Run a plan's own case on an open backend.

    Args:
        backend: of this plan; if it cannot run single stages (``run_stage``), the chain alone is run.
        modes: ``isolated``, ``chained`` or both: each is one run of every stage.

    Raises:
        InputError: if the plan carries no golden tensors.
        FathomError: if an engine does not run.
    """
    manifest, golden = plan.manifest, read_goldens(plan)
    if not golden:
        raise InputError(f"{plan.path} carries no golden tensors", wanted="a plan that can prove itself", fix="depth-build it again with this release")
    modes = modes if hasattr(backend, "run_stage") else ("chained",)
    specs, batch, output = manifest.specs(), manifest.batch[0], manifest.contract.output.tensor
    made = [(stage.name, tensor.name) for stage in specs for tensor in stage.outputs]
    rows: list[ProofRow] = []
    suspects, probed = {}, 0
    if "isolated" in modes:
        got, probes = {}, read_probes(plan)
        for stage in specs:
            got.update(backend.run_stage(stage.name, {tensor.name: as_input(golden[tensor.name], tensor, batch) for tensor in stage.inputs}))
        rows += [
            ProofRow(stage.name, "isolated", tensor.name, difference(got[tensor.name], golden[tensor.name])) for stage in specs for tensor in stage.outputs
        ]
        suspects, probed = _suspects(probes, specs, got, golden, manifest.precision), sum(one.count for one in probes.values())
    if "chained" in modes:
        inputs = {name: as_input(golden[name], spec, batch) for name, spec in network_inputs(specs).items()}
        got = backend.run(inputs, frozenset(name for _, name in made))
        rows += [ProofRow(stage, "chained", name, difference(got[name], golden[name])) for stage, name in made]
    end = np.broadcast_to(golden[output], got[output].shape) if got[output].shape[1:] == golden[output].shape[1:] else golden[output]
    ((measure, error),) = [(key, value) for key, value in compare_output(got[output], end).items() if key != "max_abs"]
    return Proof(tuple(rows), suspects, probed, measure, error, got[output], TOLERANCES[manifest.precision])


def _suspects(
    probes: dict[str, StageProbes], stages: tuple[StageSpec, ...], got: dict[str, np.ndarray], golden: dict[str, np.ndarray], precision: str
) -> dict[str, Suspect]:
    """Stage -> the weight that explains the error it makes of golden inputs."""
    found = {}
    for stage in stages:
        names = [tensor.name for tensor in stage.outputs if golden[tensor.name].dtype.kind == "f"]
        if stage.name in probes and all(got[name].shape[1:] == golden[name].shape[1:] for name in names):
            error = sample([got[name] for name in names], [golden[name] for name in names])
            if len(error) == probes[stage.name].lines.shape[1] and (suspect := probes[stage.name].suspect(error, precision)):
                found[stage.name] = suspect
    return found
