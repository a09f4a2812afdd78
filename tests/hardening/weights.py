"""One wrong weight at a time: every weight of every stage of every small network 1 % off, judged as a plan's certificate judges engines.

The engines are the typed graphs in ONNX Runtime, with the demo weights. A weight counts as caught if the plan would be refused.
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

from weight_trials import stage_trials

from fathom.export.commands import export_command

from .record import add_to_record

NETWORKS = ("evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny", "depthblip2-tiny", "llm-mde-tiny")


def run_network(bundle: Path, precision: str) -> dict[str, Any]:
    """What was caught of one network.

    Returns:
        ``stages``; ``right_refused``: stages refused as they are; ``whole_missed``: those not refused with each weight 1 % too large or too small;
        ``weights``: single ones tried; ``by_size``, ``by_line``: caught by the error's size or scale, and by its direction alone; ``largest_missed``: the
        most that a weight which was not caught moves its stage, over the root mean square of the output.
    """
    found: dict[str, Any] = {"stages": 0, "right_refused": [], "whole_missed": [], "weights": 0, "by_size": 0, "by_line": 0, "largest_missed": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for stage, trial in stage_trials(bundle, precision, folder):
            found["stages"] += 1
            found["right_refused"] += [stage] * trial.right.caught
            found["whole_missed"] += [stage] * (not all(trial.judge(dict.fromkeys(trial.weights, factor)).caught for factor in (1.01, 0.99)))
            for name in trial.weights:
                judged = trial.judge({name: 1.01})
                found["weights"] += 1
                found["by_size"] += judged.size
                found["by_line"] += judged.suspect is not None
                if not judged.caught:
                    found["largest_missed"] = max(found["largest_missed"], float(f"{judged.moved:.1e}"))
    return found


def main() -> int:
    """Returns 1 if a right engine was refused, or a stage of which all weights are 1 % off was not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="a network; may be given again")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    arguments = parser.parse_args()
    start, networks = time.monotonic(), {}
    for name in arguments.only or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            scene = ["--scene", "kitchen"] if name == "vpd-tiny" else []
            if code := export_command.main(["--model", name, *scene, "-o", f"{folder}/bundle", "--quiet"]):
                return code
            networks[name] = {precision: run_network(Path(folder) / "bundle", precision) for precision in ("fp32", "fp16")}
            print(f"{name}: {json.dumps(networks[name])}", flush=True)
    if arguments.record:
        add_to_record(arguments.record, "weights", {"seconds": round(time.monotonic() - start, 1), "networks": networks})
    return int(any(one["right_refused"] or one["whole_missed"] for network in networks.values() for one in network.values()))


if __name__ == "__main__":
    sys.exit(main())
