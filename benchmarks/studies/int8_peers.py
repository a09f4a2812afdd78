"""INT8 of one network by Fathom, by ONNX Runtime and by NVIDIA ModelOpt, in one run: same images, preprocessing and metrics.

    python -m fathom.benchmarks.studies.int8_peers --network fastdepth_7.onnx --contract fastdepth.json --protocol nyu-benchmark --pairs DIR
        -o int8_peers.json [--modelopt-python VENV/bin/python]   (made by int8_peers_setup; fastdepth.json stands in docs/contract.md)

Every arm is calibrated on the pairs marked ``train`` and measured on those marked ``test``, by ONNX Runtime on the CPU. The peers are
given a grid of their settings and the best result on the *test* pairs counts: an advantage for them. Besides the metrics against the true
depth, which INT8 can also better by chance, ``moved`` tells how far the depth itself is from the FP32 network's: the mean of |depth - FP32
depth| / FP32 depth over the pixels of a pair, then over the pairs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.depth_metrics import depth_errors
from ...datasets.pairs import Pairs
from ...datasets.sample import Sample
from ...runtime.artefact.contract import Contract
from ...runtime.commands.command import run_command
from ...runtime.errors import UsageError
from ...runtime.photo.postprocess import Assembly
from ...runtime.photo.preprocess import network_inputs, place_steps, windows_of
from ...runtime.pipeline import Pipeline
from ..record.record import study, write_record

ORT_METHODS = ("MinMax", "Entropy", "Percentile")
MODELOPT_METHODS = ("max", "entropy")
MODERN_CODE = """
import sys, onnx
model = onnx.load(sys.argv[1])
def only_pictures(model):
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)
    model.ir_version = max(model.ir_version, 9)
    return model
onnx.save(only_pictures(onnx.version_converter.convert_version(only_pictures(model), 18)), sys.argv[2])
"""
MODELOPT_CODE = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
source, target, data, method = sys.argv[1:]
images = np.load(data, allow_pickle=False)
quantize(source, quantize_mode="int8", calibration_data=images, calibration_method=method, output_path=target, high_precision_dtype="fp32")
"""


class Network:
    """An ONNX file behind the contract's preprocessing: photo in, map on the photo's pixels out."""

    def __init__(self, file: Path, contract: Contract):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._contract, self._protocol = contract, contract.protocols[0]

    def __call__(self, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values float32 [H, W] and valid bool [H, W]."""
        placed = place_steps(self._protocol.steps, *photo.shape[:2])
        whole = Assembly(self._contract, self._protocol, placed, photo.shape[:2])
        for window, tensor in zip(windows_of(self._protocol), network_inputs(photo, self._contract, self._protocol, 1), strict=True):
            found = self._session.run([self._contract.output.tensor], {self._contract.input.tensor: tensor})[0]
            whole.add(window, found[0])
        return whole.finish()


Maps = dict[str, tuple[np.ndarray, np.ndarray]]


def judge(run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], pairs: Pairs, contract: Contract, reference: Maps) -> dict[str, Any]:
    """Mean abs_rel and delta1 over the pairs, and of each pair; how far the maps moved from ``reference``, which the first arm fills."""
    rows, moved = {}, []
    for sample in pairs:
        values, valid = run(sample.rgb)
        rows[sample.id] = _errors(sample, values, valid, contract)
        wide, also_valid = reference.setdefault(sample.id, (values, valid))
        counts = valid & also_valid & (wide > 0)
        moved.append(float(np.mean(np.abs(values[counts] - wide[counts]) / wide[counts])))
    nyu = [row for name, row in rows.items() if name.startswith("nyu")]
    means = {metric: float(np.mean([row[metric] for row in rows.values()])) for metric in ("abs_rel", "delta1")}
    return {
        **means,
        "moved": float(np.mean(moved)),
        "nyu": {metric: float(np.mean([row[metric] for row in nyu])) for metric in means} if nyu else {},
        "pairs": rows,
    }


def _errors(sample: Sample, values: np.ndarray, valid: np.ndarray, contract: Contract) -> dict[str, float]:
    counts = valid & sample.valid & (sample.depth_m >= contract.output.near) & (sample.depth_m <= contract.output.far)
    found = depth_errors(np.maximum(values[counts], 1e-3), sample.depth_m[counts])
    return {metric: found[metric] for metric in ("abs_rel", "delta1")}


def fathom_plans(network: Path, contract: Path, pairs: Path, budget: str, folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """FP32 and INT8 plans by the commands a user gives; and what the calibration said."""
    bundle, facts = folder / "bundle", {}
    commands = [
        ("export", ["export.commands.export_command", "--onnx", str(network), "--contract", str(contract), "-o", str(bundle)]),
        ("calibrate", ["calibration.calibrate_command", str(bundle), "--data", f"pairs:{pairs}:train", "--budget", budget, "--json", "-q"]),
        ("fp32", ["export.commands.build_command", str(bundle), "-o", str(folder / "fp32.plan")]),
        ("int8", ["export.commands.build_command", str(bundle), "--precision", "int8", "-o", str(folder / "int8.plan")]),
    ]
    for name, (module, *rest) in commands:
        start = time.monotonic()
        code = f"import sys; from fathom.{module} import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run([sys.executable, "-c", code, *rest], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}")
        facts[f"{name}_s"] = time.monotonic() - start
        if name == "calibrate":
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            facts["verdicts"] = [line["text"] for line in lines if line["kind"] == "verdict"]
            facts["variants"] = [line for line in lines if line["kind"] == "variant"]
            facts["regions"] = {choice: sum(line.get("choice") == choice for line in lines) for choice in {line.get("choice") for line in lines} - {None}}
    return {"fp32": folder / "fp32.plan", "int8": folder / "int8.plan"}, facts


class _Reader:
    """Calibration inputs for ONNX Runtime's ``quantize_static``."""

    def __init__(self, name: str, inputs: list[np.ndarray]):
        self._name, self._inputs = name, inputs
        self.rewind()

    def rewind(self) -> None:
        self._left: Iterator[np.ndarray] = iter(self._inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        found = next(self._left, None)
        return None if found is None else {self._name: found}


def onnxruntime_arms(network: Path, contract: Contract, inputs: list[np.ndarray], folder: Path) -> Iterator[tuple[str, Path]]:
    """``quantize_static`` with every method, symmetric (what TensorRT takes) and with its own CPU defaults (asymmetric bytes)."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    clean = folder / "clean.onnx"
    quant_pre_process(str(network), str(clean), skip_symbolic_shape=True)
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    for method in ORT_METHODS:
        for style, kind, extra in (("symmetric", QuantType.QInt8, symmetric), ("asymmetric", QuantType.QUInt8, {})):
            target = folder / f"ort_{method}_{style}.onnx"
            quantize_static(
                str(clean),
                str(target),
                _Reader(contract.input.tensor, inputs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "ConvTranspose", "MatMul", "Gemm"],
                per_channel=True,
                activation_type=kind,
                weight_type=QuantType.QInt8,
                calibrate_method=getattr(CalibrationMethod, method),
                extra_options=extra,
            )
            yield f"onnxruntime quantize_static {method} {style}", target


def modelopt_arms(python: Path, network: Path, inputs: list[np.ndarray], folder: Path) -> Iterator[tuple[str, Path | str]]:
    """ModelOpt's ONNX PTQ in its own environment; a failure is a result too."""
    data = folder / "calibration.npy"
    np.save(data, np.concatenate(inputs), allow_pickle=False)
    for method in MODELOPT_METHODS:
        target = folder / f"modelopt_{method}.onnx"
        done = subprocess.run([str(python), "-c", MODELOPT_CODE, str(network), str(target), str(data), method], capture_output=True, text=True)
        yield f"modelopt {method}", target if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All arms; see the module."""
    contract = Contract.from_json(json.loads(options.contract.read_text()))
    shown = [protocol for protocol in contract.protocols if options.protocol in (None, protocol.name)][:1]
    if not shown:
        raise UsageError(f"the contract has no protocol {options.protocol!r}", wanted=", ".join(protocol.name for protocol in contract.protocols))
    contract = replace(contract, protocols=tuple(shown))
    train, test = Pairs(options.pairs, "train"), Pairs(options.pairs, "test")
    inputs = [tensor for sample in train for tensor in network_inputs(sample.rgb, contract, contract.protocols[0], 1)]
    arms: dict[str, Any] = {}
    reference: Maps = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "contract.json").write_text(json.dumps(contract.to_json()))
        plans, facts = fathom_plans(options.network, folder / "contract.json", options.pairs, options.budget, folder)
        for name, plan in plans.items():
            with Pipeline.open(plan) as pipeline:

                def run(photo: np.ndarray, pipeline: Pipeline = pipeline) -> tuple[np.ndarray, np.ndarray]:
                    found = pipeline.predict(photo)
                    return found.values, found.valid

                arms[f"fathom {name}"] = judge(run, test, contract, reference)
        network = folder / "opset18.onnx"
        subprocess.run([sys.executable, "-c", MODERN_CODE, str(options.network), str(network)], check=True)
        for name, file in onnxruntime_arms(network, contract, inputs, folder):
            arms[name] = judge(Network(file, contract), test, contract, reference)
        for name, file in modelopt_arms(options.modelopt_python, network, inputs, folder) if options.modelopt_python else ():
            arms[name] = judge(Network(file, contract), test, contract, reference) if isinstance(file, Path) else {"failed": file}
    base = arms["fathom fp32"]
    for arm in arms.values():
        if "abs_rel" in arm:
            arm["abs_rel_change"], arm["delta1_change"] = arm["abs_rel"] / base["abs_rel"] - 1, arm["delta1"] / base["delta1"] - 1
    return {
        "network": options.network.name,
        "protocol": shown[0].name,
        "budget": options.budget,
        "train": len(train),
        "test": len(test),
        "calibration": facts,
        "arms": arms,
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser("int8_peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--contract", type=Path, required=True)
    parser.add_argument("--protocol", help="how photos are shown to the network (default: the contract's first)")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--budget", default="abs_rel=1%,delta1=0.5pp")
    parser.add_argument("--modelopt-python", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    result = compare(options)
    write_record(options.output, study("int8_peers", result, ("numpy", "onnx", "onnxruntime")), force=True)
    for name, arm in result["arms"].items():
        numbers = (
            f"abs_rel {arm['abs_rel']:.4f} ({arm['abs_rel_change']:+.2%})  delta1 {arm['delta1']:.4f} ({arm['delta1_change']:+.2%})  moved {arm['moved']:.2%}"
            if "abs_rel" in arm
            else arm["failed"]
        )
        print(f"{name:<52} {numbers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
