"""What ``benchmarks/gpu_session.sh`` left in its folder, as one JSON: machine, tests, builds and certificates, accuracy beside PyTorch's, latency, operators.

    python -m fathom.benchmarks.card.gather FOLDER -o benchmarks/results/gpu_CARD.json

Nothing is measured here. Accuracy on a card is compared with PyTorch's on the CPU in ``benchmarks/results/tiny_networks.json``: same weights, same
pictures, same protocol.
"""

from __future__ import annotations

import argparse
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from ...runtime.commands.command import run_command
from ...runtime.errors import InputError
from ..record.record import read_study, study, write_record

REFERENCE = Path(__file__).parent.parent / "results" / "tiny_networks.json"
METRICS = ("abs_rel", "rmse", "delta1")
PACKAGES = ("torch", "triton", "numpy", "cuda-bindings", "pycuda", "onnx", "onnxruntime", "transformers", "diffusers", "open_clip_torch")


def _read(path: Path) -> Any:
    text = path.read_text() if path.exists() else ""  # a log stays empty where its command was stopped
    return json.loads(text) if text else None


def machine(folder: Path) -> dict[str, Any]:
    """Card, driver, limits and versions: what nvidia-smi told, and where there is none (a Jetson) what depth-doctor did."""
    text, doctor = (folder / "logs" / "facts.log").read_text(), _read(folder / "logs" / "doctor.log") or {}
    found = {
        "gpu": re.search(r"\|\s+0\s+(NVIDIA .*?)\s{2,}", text),
        "driver": re.search(r"Driver Version\s*: ([\d.]+)", text),
        "power_limit": re.search(r"Current Power Limit\s*: (.*)", text),
        "max_sm_clock": re.search(r"Max Clocks\s+Graphics\s*: (.*)", text),
        "processor": re.search(r"model name\s*:\s*(.*)", text, re.IGNORECASE),
    }
    facts = {name: match.group(1).strip() if match else "" for name, match in found.items()}
    facts["gpu"] = facts["gpu"] or next((gpu["name"] for gpu in doctor.get("gpus", ())), "")
    facts["driver"] = facts["driver"] or doctor.get("driver", {}).get("release", "")
    if jetson := doctor.get("jetson"):
        facts["jetson"] = jetson["says"]
    listed = dict(re.findall(r"^([\w.-]+)\s+(\d\S*)$", text, re.MULTILINE))
    return facts | {"packages": {name: listed[name] for name in PACKAGES if name in listed}}


def tests(folder: Path) -> dict[str, Any]:
    """JUnit files: how many passed, failed and were skipped, and what failed."""
    found = {}
    for path in sorted((folder / "out").glob("*.xml")):
        suite = ElementTree.parse(path).getroot().find("testsuite")
        cases = list(suite.iter("testcase"))
        failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
        skipped = sum(case.find("skipped") is not None for case in cases)
        found[path.stem] = {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed, "seconds": float(suite.get("time", 0))}
    return found


def builds(folder: Path) -> list[dict[str, Any]]:
    """Every plan that was asked for: seconds, layers, certificate; or why there is none."""
    found = []
    for path in sorted((folder / "logs").glob("build-*.err")):
        text, made = path.read_text(), path.with_suffix(".log").read_text().strip()
        name, precision = path.stem.removeprefix("build-").rsplit("-", 1)
        row: dict[str, Any] = {"network": name, "precision": precision}
        last = re.search(r"^(PASSED|FAILED) \| depth-build \| ([\d.]+) s", text, re.MULTILINE)
        row |= {"passed": bool(last and last.group(1) == "PASSED"), "seconds": float(last.group(2)) if last else None}
        if certificate := re.search(r"^right on .*$", text, re.MULTILINE):
            row["certificate"] = certificate.group(0).split("; the certificate")[0]
        if not row["passed"]:
            errors = re.findall(r"^(?:error: .*|interrupted.*)$", text, re.MULTILINE)
            row["why"] = errors[-1][:600] if errors else "stopped before its end"
        elif made:
            facts = json.loads(made.splitlines()[-1])
            row |= {key: facts[key] for key in ("backend", "backend_version", "targets", "batch", "nbytes")}
            row["stages"] = [{key: stage[key] for key in ("name", "engine_nbytes", "layers", "seconds", "peak_nbytes")} for stage in facts["stages"]]
        found.append(row)
    return found


def accuracy(folder: Path) -> list[dict[str, Any]]:
    """Rows of every plan, with their distance from PyTorch's."""
    known, found = read_study(REFERENCE)["networks"], []
    for path in sorted((folder / "out").glob("acc-*.json")):
        record = _read(path)
        network, pictures = path.stem.removeprefix("acc-").rsplit("-", 1)
        reference = known.get(network, {}).get("sets", {}).get(pictures, {})
        for row in record["rows"]:
            means = row["means"]
            base = reference["rows"]["pytorch"] if reference.get("images") == row["images"] else None  # means of other pictures say nothing
            entry = {"network": network, "set": pictures, "plan": row["name"], "precision": row["precision"], "images": row["images"], "failed": row["failed"]}
            if means:
                entry |= {metric: means[metric] for metric in METRICS}
                entry["relative"] = {metric: means[metric] / base[metric] - 1 for metric in METRICS} if base else None
            found.append(entry)
    return found


def latency(folder: Path) -> list[dict[str, Any]]:
    """The runs in the order in which they ran; engines and PyTorch may be at home in different Pythons, and took turns run by run."""
    found = []
    for path in sorted((folder / "out").glob("lat-*.json")):
        record = _read(path)
        kept = {key: record[key] for key in ("protocol", "min_query_count", "warm_up_query_count", "conditions") if key in record}
        found.append({"run": path.stem, **kept, "rows": record["rows"]})
    return found


def _run(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder)
    if not (folder / "logs").is_dir():
        raise InputError(f"{folder} has no folder logs", wanted="what benchmarks/gpu_session.sh left")
    results: dict[str, Any] = {"machine": machine(folder), "tests": tests(folder), "builds": builds(folder), "accuracy": accuracy(folder)}
    results["latency"] = latency(folder)
    if (made := _read(folder / "out" / "operators.json")) is not None:
        results["operators"] = made["results"]["operators"]
    if (made := _read(folder / "out" / "graphs.json")) is not None:
        results["graphs"] = made["results"]
    if (asked := folder / "logs" / "rtx60.log").exists():
        results["tensorrt_rtx"] = [json.loads(line) for line in asked.read_text().splitlines() if line.startswith("{")]
    if (notes := folder / "notes.txt").exists():  # what whoever ran it has to say: interruptions, other work on the card
        results["notes"] = notes.read_text().splitlines()
    write_record(arguments.output, study("gather", results, (), "card"), True)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Gather and write the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gather", description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
