"""Whether ``depth-bench compare`` keeps its promise on this machine: a plan against itself, and with a planted wait in one stage, as JSON.

    python -m fathom.benchmarks.studies.compare_promise --engine depthclip-tiny.plan -o benchmarks/results/compare_promise.json

Every session opens the plan anew and times it as ``depth-bench latency`` does. Wanted: of 100 pairs of equal sessions at most 5 with any word
but same or cannot tell; of 100 pairs with 20 ms more in one stage, that stage worse in all.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from ...runtime.commands.command import run_command
from ...runtime.commands.progress import Progress
from ...runtime.errors import FathomError
from ..compare.compare import compare
from ..latency.latency import Query, Subject, take_turns, to_json
from ..latency.opening import made_up_photo, open_pipeline
from ..machine.conditions import Conditions
from ..machine.system import host
from ..record.record import header, study, write_record

PLANTED_MS = 20.0
MOST_FALSE = 5


class Slowed:
    """A backend with a wait in one stage; see ``runtime.backend.Backend``."""

    def __init__(self, backend: Any, stage: str, ms: float):
        self._backend, self._stage, self._ms = backend, stage, ms
        self.stages, self.concurrent, self.remarks = backend.stages, 1, ()

    def run(self, inputs: dict, keep: frozenset[str] = frozenset()) -> dict:
        """With the wait."""
        time.sleep(self._ms / 1e3)
        return self._backend.run(inputs, keep)

    def stage_times_ms(self, inputs: dict, runs: int) -> dict[str, list[float]]:
        """With the wait in its stage, which the clock sees."""
        start = time.perf_counter()
        time.sleep(self._ms / 1e3)
        waited_ms = 1e3 * (time.perf_counter() - start)
        times_ms = self._backend.stage_times_ms(inputs, runs)
        return times_ms | {self._stage: [ms + waited_ms for ms in times_ms[self._stage]]}


def session(engine: Path, rounds: int, threads: int, system: dict[str, Any], planted: str = "") -> dict[str, Any]:
    """One result of latency, as ``depth-bench latency --details`` has it of this engine alone."""
    with open_pipeline(engine, None, threads) as pipeline:
        image = pipeline.contract.input
        photo = made_up_photo()
        from ...runtime.photo.preprocess import network_inputs

        inputs = {image.tensor: next(iter(network_inputs(photo, pipeline.contract, pipeline.contract.protocols[0], 1)))}
        backend = Slowed(pipeline.backend, planted, PLANTED_MS) if planted else pipeline.backend
        facts = {"backend": "onnxruntime", "device": "cpu", "threads": threads, "network": "", "precision": "fp32"}
        subject = Subject(engine.name, backend, None, facts=facts)
        take_turns([subject], Query(inputs, photo, stages=True), rounds, 3)
        about = {"system": system, "scenario": "SingleStream", "protocol": pipeline.contract.protocols[0].name, "conditions": {"throttling": []}}
        return {"latency": header("latency", []) | about | {"rows": to_json([subject])}}


def main(argv: list[str] | None = None) -> int:
    """Measure and write; returns the exit code, 1 if the promise was broken."""
    parser = argparse.ArgumentParser("compare_promise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, help="a plan for ONNX Runtime whose text, if any, is fixed")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    engine, pairs = arguments.engine, arguments.pairs
    system = host() | {"accelerators_per_node": 0, "accelerator_model_name": ""}
    with open_pipeline(engine, None, arguments.threads) as pipeline:
        stage = pipeline.backend.stages[0].name
    said: dict[str, int] = {}
    false_alarms = found = 0
    conditions = Conditions()
    with Progress(3 * pairs, "sessions") as progress:

        def one(planted: str = "") -> dict[str, Any]:
            record = session(engine, arguments.rounds, arguments.threads, system, planted)
            conditions.sample()
            progress.advance()
            return record

        for _ in range(pairs):
            base = one()
            verdicts = compare(base, one())
            false_alarms += any(verdict.found.word in ("better", "worse") for verdict in verdicts)
            for verdict in verdicts:
                said[verdict.found.word] = said.get(verdict.found.word, 0) + 1
            found += any(v.quantity == f"stage {stage} ms" and v.found.word == "worse" for v in compare(base, one(stage)))
    results = {"system": system, "engine": engine.name, "rounds": arguments.rounds, "threads": arguments.threads, "pairs": pairs}
    results |= {"false_alarms": false_alarms, "words_of_equal_sessions": said, "planted_ms": PLANTED_MS, "planted_stage": stage, "planted_found": found}
    write_record(arguments.output, study("compare_promise", results | {"conditions": conditions.close()}), force=True)
    print(f"equal sessions: {false_alarms} of {pairs} pairs with a false word; {PLANTED_MS:g} ms planted in {stage}: found in {found} of {pairs}")
    if false_alarms > MOST_FALSE * pairs / 100 or found < pairs:
        raise FathomError("the promise was broken here", wanted=f"at most {MOST_FALSE} in 100 false words, and every planted wait found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
