"""One wrong weight at a time: every weight of every stage of every small network 1 % off, judged as a plan's certificate judges engines.

The engines are the typed graphs in ONNX Runtime, with the demo weights. A weight counts as caught if the plan would be refused. Right engines of other
compilers are judged as well: none may be refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from weight_trials import StageTrial, chained_from, stage_trials

from fathom.benchmarks.record.record import read_study
from fathom.export.commands import export_command
from fathom.runtime.artefact.bundle import BundleDirectory

from .record import add_to_record

NETWORKS = ("evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny", "depthblip2-tiny", "llm-mde-tiny")
COMPILERS = 12  # that join and round otherwise, beside four levels of ONNX Runtime's


def run_network(bundle: Path, precision: str, exact: list[StageTrial]) -> dict[str, Any]:
    """What was caught of one network.

    Args:
        exact: its stages in FP32, to tell what a weight does from how rounding falls anew.

    Returns:
        ``stages``; ``right``, ``right_refused``: right engines that were judged, and the stages of those refused; ``whole_missed``: stages not refused with
        each weight 1 % too large or too small; ``weights``: single ones tried; ``by_size``, ``by_line``: caught by the error's size or scale, and by its
        direction alone; ``missed``: of each weight that was not, [stage, name, by how much 1 % of it moves its FP32 stage over the root mean square of the
        output, mean and largest change of the network's output in its own unit (a mask: share of pixels that change their class, twice)]; ``rounding``: the
        same two of the right engines against the golden output.
    """
    found: dict[str, Any] = {"stages": 0, "right": 0, "right_refused": [], "whole_missed": [], "weights": 0, "by_size": 0, "by_line": 0, "missed": []}
    with tempfile.TemporaryDirectory() as folder:
        with BundleDirectory.open(bundle) as opened:
            output = opened.manifest.contract.output.tensor
        named = list(stage_trials(bundle, precision, folder))
        trials = [trial for _, trial in named]
        rounded = chained_from(trials, 0, {}, output)
        found["rounding"] = _apart(rounded, trials[-1].golden(output))
        for number, (stage, trial) in enumerate(named):
            found["stages"] += 1
            judged = [trial.right, *trial.other_compilers(COMPILERS)]
            found["right"] += len(judged)
            found["right_refused"] += [stage] * sum(one.caught for one in judged)
            found["whole_missed"] += [stage] * (not all(trial.judge(dict.fromkeys(trial.weights, factor)).caught for factor in (1.01, 0.99)))
            right = chained_from(exact, number, {}, output)
            for name in trial.weights:
                one = trial.judge({name: 1.01})
                found["weights"] += 1
                found["by_size"] += one.size
                found["by_line"] += one.suspect is not None
                if not one.caught:
                    moved = exact[number].judge({name: 1.01}).moved
                    found["missed"].append([stage, name, float(f"{moved:.2e}"), *_apart(chained_from(exact, number, {name: 1.01}, output), right)])
    return found


def _apart(got: np.ndarray, right: np.ndarray) -> list[float]:
    """Mean and largest difference; of the two logits of a mask, the share of pixels whose class differs, twice."""
    got, right = got.astype(np.float64), right.astype(np.float64)
    if right.ndim == 4 and right.shape[1] == 2:
        apart = ((got[:, 1] > got[:, 0]) != (right[:, 1] > right[:, 0])).astype(np.float64)
        return [float(f"{apart.mean():.2e}")] * 2
    apart = np.abs(got - right)
    return [float(f"{apart.mean():.2e}"), float(f"{apart.max():.2e}")]


def main() -> int:
    """Returns 1 if a right engine was refused, or a stage of which all weights are 1 % off was not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="a network; may be given again; the record keeps what it has of the others")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    arguments = parser.parse_args()
    networks: dict[str, Any] = {}
    for name in arguments.only or NETWORKS:
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            scene = ["--scene", "kitchen"] if name == "vpd-tiny" else []
            if code := export_command.main(["--model", name, *scene, "-o", f"{folder}/bundle", "--quiet"]):
                return code
            bundle = Path(folder) / "bundle"
            exact = [trial for _, trial in stage_trials(bundle, "fp32", folder)]
            networks[name] = {precision: run_network(bundle, precision, exact) for precision in ("fp32", "fp16")}
            networks[name]["cpu_seconds"] = round(time.process_time() - start, 1)
            print(f"{name}: {json.dumps(networks[name])}", flush=True)
        if arguments.record:
            before = read_study(arguments.record).get("weights", {}).get("networks", {}) if arguments.only else {}
            every = {**before, **networks}
            add_to_record(arguments.record, "weights", {"networks": {name: every[name] for name in NETWORKS if name in every}})
    kinds = [one for network in networks.values() for one in network.values() if isinstance(one, dict)]
    return int(any(one["right_refused"] or one["whole_missed"] for one in kinds))


if __name__ == "__main__":
    sys.exit(main())
