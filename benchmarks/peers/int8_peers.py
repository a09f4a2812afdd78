"""INT8 and FP8 of one network by Fathom, ONNX Runtime, NVIDIA ModelOpt and Intel NNCF, in one run: same photos, preprocessing and metrics.

    python -m fathom.benchmarks.peers.int8_peers --network fastdepth_7.onnx --contract fastdepth.json --protocol nyu-benchmark --pairs DIR
        [--environments FOLDER] -o int8_peers.json   (FOLDER is made by ``environments``; fastdepth.json stands in docs/contract.md)

Every arm is calibrated on pairs marked ``train`` and measured on all those marked ``test``, by ONNX Runtime on the CPU. For each seed four in five
of the training pairs are drawn, the same for every arm; Fathom's commands and AutoQuantize are given the seed as well. The peers are given a
grid of their settings, and the best result on the *test* pairs counts: an advantage for them. Besides the metrics against the true
depth, which fewer bits can also better by chance, ``moved`` tells how far the depth itself is from the FP32 network's: the mean of |depth - FP32
depth| / FP32 depth over the pixels of a pair, then over the pairs. Its bounds come from drawing the scenes of the test pairs anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.pairs import PLACES, Pairs
from ...runtime.artefact.contract import Contract
from ...runtime.commands.command import run_command
from ...runtime.errors import UsageError
from ...runtime.photo.preprocess import network_inputs
from ...runtime.pipeline import Pipeline
from ..machine.system import host
from ..record.record import study, write_record
from .arms import Arm
from .environments import PACKAGES, python_of
from .fathom_arms import fathom_arms, fp32_plan
from .judge import Maps, Run, ahead, judge, of_file, of_outputs, summary
from .low_share import low_share, tensorrt_reads
from .modelopt_arms import modelopt_arms
from .nncf_arms import nncf_arms
from .onnxruntime_arms import onnxruntime_arms

DRAWN = 0.8  # of the training pairs, for every seed
OPSET = 21  # the least that NNCF wants for FP8
OURS = "Fathom"
MODERN_CODE = """
import sys, onnx
model = onnx.load(sys.argv[1])
def only_pictures(model):
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)
    model.ir_version = max(model.ir_version, 10)
    return model
onnx.save(only_pictures(onnx.version_converter.convert_version(only_pictures(model), int(sys.argv[3]))), sys.argv[2])
"""


class Comparison:
    """All arms over all seeds.

    Args:
        options: of the command line.
        folder: scratch.
    """

    def __init__(self, options: argparse.Namespace, folder: Path):
        contract = Contract.from_json(json.loads(options.contract.read_text()))
        shown = [protocol for protocol in contract.protocols if options.protocol in (None, protocol.name)][:1]
        if not shown:
            raise UsageError(f"the contract has no protocol {options.protocol!r}", wanted=", ".join(protocol.name for protocol in contract.protocols))
        self.options, self.folder, self.contract = options, folder, replace(contract, protocols=tuple(shown))
        self.train, self.test = Pairs(options.pairs, "train", options.place), Pairs(options.pairs, "test", options.place)
        self.scenes = {sample.id: sample.id.rstrip("_0123456789") or sample.id for sample in self.test}  # a data set has several
        self.proof = self._inputs(self.test, range(len(self.test)))
        self.reference: Maps = {}
        self.rows: dict[tuple[str, str], list[dict[str, dict[str, float]]]] = {}  # bits, arm -> of every seed
        self.facts: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.failed: dict[tuple[str, str], str] = {}

    def _inputs(self, pairs: Pairs, places: range | list[int]) -> np.ndarray:
        found = [tensor[0] for place in places for tensor in network_inputs(pairs[place].rgb, self.contract, self.contract.protocols[0], 1)]
        return np.stack(found)

    def run(self) -> Iterator[dict[str, Any]]:
        """Everything that is measured, after every seed."""
        contract = self.folder / "contract.json"
        contract.write_text(json.dumps(self.contract.to_json()))
        self.base = self._judge_plan(fp32_plan(self.options.network, contract, self.folder))
        network = self.folder / "network.onnx"
        subprocess.run([sys.executable, "-c", MODERN_CODE, str(self.options.network), str(network), str(OPSET)], check=True)
        for seed in range(self.options.seeds):
            drawn = sorted(np.random.default_rng(seed).permutation(len(self.train))[: round(DRAWN * len(self.train))].tolist())
            self._fathom(drawn, seed)
            for arm in self._peers(network, self._inputs(self.train, drawn), seed):
                self._take(arm, seed)
            yield self._told(seed + 1)

    def _fathom(self, drawn: list[int], seed: int) -> None:
        chosen = self.folder / f"pairs_{seed}"
        chosen.mkdir()
        entries = {entry["name"]: entry for entry in json.loads((self.options.pairs / "manifest.json").read_text())}
        names = [self.train.pairs[place].name for place in drawn]
        for name in names:
            (chosen / name).symlink_to((self.options.pairs / name).resolve())
        (chosen / "manifest.json").write_text(json.dumps([entries[name] for name in names]))
        for setting, plan, facts in fathom_arms(self.folder, f"pairs:{chosen}", seed):
            key = (setting.bits, setting.name)
            if isinstance(plan, str):
                self._fail(key, plan, seed)
            else:
                self._keep(key, self._judge_plan(plan), facts | {"tensorrt": True}, seed)

    def _peers(self, network: Path, inputs: np.ndarray, seed: int) -> Iterator[Arm]:
        contract, folder, environments = self.contract, self.folder, self.options.environments
        yield from onnxruntime_arms(network, contract.input.tensor, inputs, folder)
        if environments:
            yield from modelopt_arms(python_of(environments, "modelopt"), network, inputs, self.proof, folder, seed)
            yield from nncf_arms(python_of(environments, "nncf"), network, (contract.input.tensor, contract.output.tensor), inputs, folder)

    def _take(self, arm: Arm, seed: int) -> None:
        key, facts = (arm.bits, arm.name), dict(arm.facts)
        try:
            if arm.failed:
                raise RuntimeError(arm.failed)
            if arm.file is not None:
                facts |= low_share(arm.file)
                run: Run = of_file(arm.file, self.contract)
            else:
                run = of_outputs(self.proof, arm.outputs, self.contract)
            rows = judge(run, self.test, self.contract, self.reference)
        except Exception as error:  # a file that ONNX Runtime refuses is a peer's result too
            self._fail(key, (str(error).strip().splitlines() or [type(error).__name__])[0][:300], seed)
        else:
            self._keep(key, rows, facts | {"tensorrt": tensorrt_reads(facts)}, seed)

    def _judge_plan(self, plan: Path) -> dict[str, dict[str, float]]:
        with Pipeline.open(plan) as pipeline:

            def run(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                found = pipeline.predict(photo)
                return found.values, found.valid

            return judge(run, self.test, self.contract, self.reference)

    def _keep(self, key: tuple[str, str], rows: dict[str, dict[str, float]], facts: dict[str, Any], seed: int) -> None:
        self.rows.setdefault(key, []).append(rows)
        self.facts.setdefault(key, []).append(facts)
        moved = np.mean([row["moved"] for row in rows.values()])
        print(f"seed {seed}: {' '.join(key)}: moved {moved:.2%}, share {facts.get('share', 0):.1%}", file=sys.stderr, flush=True)

    def _fail(self, key: tuple[str, str], why: str, seed: int) -> None:
        self.failed.setdefault(key, why)
        print(f"seed {seed}: {' '.join(key)}: {why}", file=sys.stderr, flush=True)

    def _told(self, seeds: int) -> dict[str, Any]:
        arms = []
        for key, rows in self.rows.items():
            facts = self.facts[key]
            shares = [fact["share"] for fact in facts if "share" in fact]
            arm = {"bits": key[0], "name": key[1], "seeds": len(rows), "share": float(np.mean(shares)), "tensorrt": all(fact["tensorrt"] for fact in facts)}
            arm |= summary(rows, self.base, self.scenes) | {"facts": facts}
            if not key[1].startswith(OURS):
                arm["ours_ahead"] = {
                    name: ahead(ours, rows, self.scenes) for (bits, name), ours in self.rows.items() if bits == key[0] and name.startswith(OURS)
                }
            arms.append(arm)
        arms.sort(key=lambda arm: (arm["bits"] != "int8", arm["moved"]))
        base = {metric: float(np.mean([row[metric] for row in self.base.values()])) for metric in ("abs_rel", "delta1")}
        return {
            "network": self.options.network.name,
            "protocol": self.contract.protocols[0].name,
            "seeds": seeds,
            "pairs": {"train": len(self.train), "drawn": DRAWN, "test": len(self.test), "scenes": len(set(self.scenes.values()))},
            "peers": {peer: list(packages) for peer, packages in PACKAGES.items()} if self.options.environments else {},
            "fp32": base,
            "arms": arms,
            "failed": [{"bits": bits, "name": name, "why": why} for (bits, name), why in self.failed.items()],
            "system": host(),
        }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser("int8_peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--contract", type=Path, required=True)
    parser.add_argument("--protocol", help="how photos are shown to the network (default: the contract's first)")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--place", choices=PLACES, help="only pairs of this kind (default: all)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many draws of training pairs (default: %(default)s)")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="made by environments; without it ONNX Runtime is the only peer")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        for result in Comparison(options, Path(scratch)).run():
            write_record(options.output, study("int8_peers", result, ("numpy", "onnx", "onnxruntime"), room="peers"), force=True)
    for arm in result["arms"]:
        low, high = arm["moved_95"]
        changes = f"abs_rel {arm['abs_rel_change']:+.2%}  delta1 {arm['delta1_change']:+.2%}"
        print(f"{arm['bits']:<5}{arm['name']:<52} moved {arm['moved']:.2%} ({low:.2%} .. {high:.2%})  share {arm['share']:.1%}  {changes}")
    for arm in result["failed"]:
        print(f"{arm['bits']:<5}{arm['name']:<52} {arm['why']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
