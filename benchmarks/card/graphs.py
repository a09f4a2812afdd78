"""What replaying a plan's stages as one CUDA graph saves, and whether it changes a bit. As JSON.

    python -m fathom.benchmarks.card.graphs x.plan y.plan -o FILE

Both forms of a plan are open at once and take turns in random order, on the plan's own case, between two CUDA events.
"""

from __future__ import annotations

import argparse
import random
import statistics
from typing import Any

import numpy as np

from ...runtime.artefact.plan import PlanFile
from ...runtime.artefact.spec import network_inputs
from ...runtime.certificate.goldens import as_input, read_goldens
from ...runtime.commands.command import run_command
from ...runtime.errors import FathomError, InputError
from ...runtime.tensorrt.backend import TensorRTBackend
from ..record.record import study, write_record

ROUNDS, RUNS = 30, 5


def measure(path: str) -> dict[str, Any]:
    """Both forms of one plan.

    Raises:
        FathomError: if it does not run here, or carries no case.
    """
    with PlanFile.open(path) as plan:
        golden, batch = read_goldens(plan), plan.manifest.batch[0]
        if not golden:
            raise InputError(f"{path} carries no golden tensors", fix="depth-build makes a plan that does")
        inputs = {name: as_input(golden[name], spec, batch) for name, spec in network_inputs(plan.manifest.specs()).items()}
        backends = {"graph": TensorRTBackend(plan, graphs=True), "no graph": TensorRTBackend(plan, graphs=False)}
        try:
            outputs = [backend.run(inputs) for backend in backends.values()]
            samples: dict[str, list[float]] = {name: [] for name in backends}
            for _ in range(ROUNDS):
                for name in random.sample(list(backends), 2):
                    samples[name] += backends[name].device_times_ms(inputs, RUNS)
        finally:
            for backend in backends.values():
                backend.close()
    equal = all(np.array_equal(outputs[0][name], outputs[1][name]) for name in outputs[0])
    return {"median_ms": {name: statistics.median(values) for name, values in samples.items()}, "sample_times_ms": samples, "same_bits": equal}


def _run(arguments: argparse.Namespace) -> int:
    found: dict[str, Any] = {}
    for path in arguments.plans:
        name = path.rsplit("/", 1)[-1]
        try:
            found[name] = measure(path)
        except FathomError as error:
            found[name] = {"skip_reason": str(error)}
        print(name, found[name].get("median_ms", found[name].get("skip_reason")), flush=True)
    write_record(arguments.output, study("graphs", found, (), "card"), True)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Measure and write the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="graphs", description=__doc__.splitlines()[0])
    parser.add_argument("plans", nargs="+", metavar="PLAN")
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
