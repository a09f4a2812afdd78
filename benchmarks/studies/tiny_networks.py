"""Every small network with its demo weights: does FP32, FP16 and INT8 keep the depth that PyTorch gives? As JSON.

    python -m fathom.benchmarks.studies.tiny_networks --work DIR [--pairs DIR] -o benchmarks/results/tiny_networks.json

Export, calibration and builds are the commands a user gives; the measurement is that of ``depth-bench accuracy``: 50 synthetic rooms of
a seed that nobody trains or calibrates on, and the indoor pairs marked ``test`` in DIR (all learned indoors). The referring network
draws masks; it is judged by the share of pixels that change sides. A network that is in the JSON with the same weights and pictures is not
measured again, so an interrupted run is taken up where it was; ``--only NAME`` measures the named ones anew.

ONNX Runtime runs all plans on the CPU: INT8 with its own integer kernels and the rest in FP32, FP16 simulated (tensors are rounded as an
FP16 engine stores them, sums are FP32).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...datasets.sample import Sample
from ...datasets.source import open_source
from ...runtime.commands.command import run_command
from ...runtime.commands.inspection import read_manifest
from ...runtime.errors import AccuracyError, FathomError, InputError, UsageError
from ..accuracy.accuracy import measure, to_json
from ..accuracy.journal import Journal
from ..accuracy.rows import fitted, open_rows
from ..evaluation.published import EVALUATIONS
from ..machine.system import host
from ..our_commands import command_line
from ..record.record import read_study, study, write_record
from .mask_agreement import compare_masks

NETWORKS: dict[str, tuple[str, ...]] = {  # name -> what depth-export wants besides
    "evp-tiny": (),
    "vpd-tiny": ("--scene", "living_room"),
    "depthclip-tiny": (),
    "moa-depthclip-tiny": (),
    "depthblip2-tiny": (),
    "llm-mde-tiny": (),
    "evp-refer-tiny": (),
}
MASKS = ("evp-refer-tiny",)
PROMPTS = ("the wall", "the floor", "the sofa")  # much, some and little of a picture; a mask that is empty everywhere proves nothing
ROOMS, CALIBRATION_ROOMS = "rooms:50:8", "rooms:49:1:168x224"  # with 15 training pairs 64 images, of which a quarter validates
INT8 = ("--budget", "abs_rel=0.5%,delta1=0.5pp", "--regions", "6")
FP16 = ("--budget", "abs_rel=0.1%,delta1=0.1pp", "--precisions", "fp32,fp16", "--regions", "12")
METRICS = ("abs_rel", "rmse", "delta1")
LIMITS = {"fp32": 0.001, "fp16": 0.001, "int8": 0.01}  # of abs_rel relative to PyTorch; FP32: of rmse and delta1 too; of a mask: what its overlap lacks to 1
WEIGHTS = Path(__file__).parents[2] / "models" / "weights"


class Held:
    """Samples of a source, each read once: every network and every plan is shown the same ones."""

    def __init__(self, text: str):
        self._source = open_source(text)
        self.provenance = self._source.provenance
        self._samples: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> Sample:
        if number not in self._samples:
            self._samples[number] = self._source[number]
        return self._samples[number]

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))


def command(program: str, *words: str) -> list[dict[str, Any]]:
    """Run one of our commands; returns its JSON lines.

    Raises:
        FathomError: if it fails, with its last words.
    """
    line = [*command_line(program), *words, "--json", "--force", "--quiet"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        last = next((text for text in reversed(done.stderr.splitlines()) if text.strip()), "no message")
        raise FathomError(f"{program} ended with exit code {done.returncode}: {last}")
    return [json.loads(text) for text in done.stdout.splitlines()]


class Trial:
    """One network on its way; ``steps`` holds the seconds of each step.

    Args:
        name: of the network.
        work: an empty folder.
        calibration: ``--data`` arguments of ``depth-calibrate``.
        threads: of ONNX Runtime.
    """

    def __init__(self, name: str, work: Path, calibration: list[str], threads: int):
        self.name, self.work, self.threads = name, work, threads
        self.data = [word for text in calibration for word in ("--data", text)]
        self.prompt = [word for prompt in PROMPTS for word in ("--prompt", prompt)] if name in MASKS else []
        self.steps: dict[str, float] = {}

    def step(self, what: str, program: str, *words: str) -> list[dict[str, Any]]:
        """One command, timed."""
        start = time.monotonic()
        found = command(program, *words)
        self.steps[what] = round(time.monotonic() - start, 1)
        print(f"{self.name}: {what}, {self.steps[what]:.0f} s", file=sys.stderr, flush=True)
        return found

    def plan(self, precision: str, bundle: Path) -> Path:
        """Build for ONNX Runtime."""
        target = self.work / f"{precision}.plan"
        self.step(f"{precision} plan", "depth-build", str(bundle), "--precision", precision, "-o", str(target))
        return target

    def calibrate(self, bundle: Path, what: str, *words: str) -> dict[str, Any]:
        """Calibrate a bundle in place; returns the settings and what the search says about stages and the regions it kept higher."""
        lines = self.step(what, "depth-calibrate", str(bundle), *self.data, *self.prompt, *words)
        regions = [line for line in lines if line["kind"] == "region"]
        kept = [{key: line[key] for key in ("stage", "path", "choice", "reason")} for line in regions if line["choice"].split()[0] in ("fp32", "bf16")]
        return {
            "settings": " ".join(words),
            "images": lines[0]["images"],
            "tried": lines[0]["tried"],
            "verdicts": [line["text"] for line in lines if line["kind"] == "verdict"],
            "regions": {kind: sum(line["choice"].split()[0] == kind for line in regions) for kind in ("int8", "fp16", "bf16", "fp32")},
            "kept": kept,
        }

    def run(self, sets: dict[str, Held]) -> dict[str, Any]:
        """Everything that is measured of the network.

        Raises:
            FathomError: if a command fails or a prediction is no depth.
        """
        bundle = self.work / "bundle"
        self.step("export", "depth-export", "--model", self.name, *NETWORKS[self.name], "-o", str(bundle))
        manifest = read_manifest(bundle)
        plans = {"fp32": self.plan("fp32", bundle), "fp16": self.plan("fp16", bundle)}
        measured = self.measure(bundle, plans, sets)
        found: dict[str, Any] = {
            "weights": dict(manifest.network.weights),
            "parameters": manifest.network.parameters,
            "protocol": manifest.contract.protocols[0].name,
            "fp16": {"kept": []},
        }
        if not _kept(measured, "fp16"):
            fp16 = Path(shutil.copytree(bundle, self.work / "fp16"))
            found["fp16"] = self.calibrate(fp16, "FP16 search", *FP16)
            measured |= self.measure(bundle, {"fp16": self.plan("fp16", fp16)}, sets, measured)
        found["int8"] = self.calibrate(bundle, "INT8 search", *INT8)
        plan = self.plan("int8", bundle)
        found["int8"]["stages"] = {stage.spec.name: stage.precision for stage in read_manifest(plan).stages}
        measured = self.measure(bundle, {"int8": plan}, sets, measured)
        return found | {"sets": measured, "within": {precision: _kept(measured, precision) for precision in LIMITS}, "seconds": self.steps}

    def measure(self, bundle: Path, plans: dict[str, Path], sets: dict[str, Held], known: dict[str, Any] | None = None) -> dict[str, Any]:
        """Rows of every set: ``pytorch`` and the plans, added to those of ``known``."""
        start, found = time.monotonic(), {}
        for title, source in sets.items():
            rows = dict(known[title]["rows"]) if known else {}
            if self.name in MASKS:
                fresh = compare_masks(bundle, plans, source, PROMPTS, self.threads)
                found[title] = {"images": len(source), "rows": rows | fresh}
                continue
            made = open_rows(plans.values(), None if rows else bundle, threads=self.threads)
            evaluation = fitted(EVALUATIONS["full"], made)
            with Journal(None, {}) as journal:
                results = measure(made, source, len(source), evaluation, journal, lambda done: None)
            record = to_json(results, source.provenance.to_json(), evaluation, len(source))
            for label, row in zip([*(() if rows else ("pytorch",)), *plans], record["rows"], strict=True):
                if row["means"] is None:
                    raise AccuracyError(f"{label} on {title}: {row['failed']} images failed, the first: {(row['failures'] or [{}])[0]}")
                rows[label] = {metric: row["means"][metric] for metric in METRICS}
            base = rows["pytorch"]
            for row in rows.values():
                row["relative"] = {metric: row[metric] / base[metric] - 1 if base[metric] else None for metric in METRICS}
            found[title] = {"images": record["rows"][0]["images"], "skipped": record["rows"][0]["skipped"], "alignment": evaluation.alignment, "rows": rows}
        label = "measuring " + ", ".join(plans)
        self.steps[label] = round(time.monotonic() - start, 1)
        print(f"{self.name}: {label}, {self.steps[label]:.0f} s", file=sys.stderr, flush=True)
        return found


def _kept(measured: dict[str, Any], precision: str) -> bool:
    """Whether a precision stays within its limit on every set."""
    limit, judged = LIMITS[precision], METRICS if precision == "fp32" else ("abs_rel",)
    for found in measured.values():
        row = found["rows"][precision]
        changes = [1 - row["oIoU"]] if "oIoU" in row else [row["relative"][metric] for metric in judged]
        if any(change is None or abs(change) > limit for change in changes):
            return False
    return True


def main(argv: list[str] | None = None) -> int:
    """Run all networks (or those named) and write the JSON after each; returns the exit code."""
    parser = argparse.ArgumentParser("tiny_networks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, metavar="DIR", help="scratch folder, about 100 MB")
    parser.add_argument("--pairs", metavar="DIR", help="real pairs with a manifest.json: those marked train calibrate, those marked test are measured")
    parser.add_argument("--only", metavar="NAME,NAME", help=f"measure these anew (default: all that were not measured yet, of {', '.join(NETWORKS)})")
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime (default: %(default)s)")
    parser.add_argument("-o", "--output", required=True, metavar="JSON")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _weights_sha256(name: str) -> str:
    file = WEIGHTS / f"{name}.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _run(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output)
    calibration, texts = [CALIBRATION_ROOMS], {"rooms": ROOMS}
    if arguments.pairs:
        calibration.append(f"pairs:{arguments.pairs}:train:indoor")
        texts["pairs"] = f"pairs:{arguments.pairs}:test:indoor"
    try:
        sets = {title: Held(text) for title, text in texts.items()}
    except (OSError, ValueError) as error:
        raise InputError(str(error), wanted="a folder of pairs whose manifest.json says train and test") from error
    data = {title: source.provenance.to_json() for title, source in sets.items()}
    networks = _read(output)
    names = [name.strip() for name in arguments.only.split(",")] if arguments.only else list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        raise UsageError(f"there is no small network {', '.join(sorted(unknown))}", wanted=", ".join(NETWORKS))
    if not arguments.only:
        names = [name for name in names if not _measured(networks.get(name, {}), data, name)]
    for name in names:
        work = Path(arguments.work) / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            facts = Trial(name, work, calibration, arguments.threads).run(sets) | {"data": data, "system": host()}
        except FathomError as error:
            facts = {"failed": str(error)}
            print(f"{name}: {error}", file=sys.stderr)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        networks = _read(output) | {name: facts}  # another run may have written others meanwhile
        _write(output, networks)
    bad = [f"{name}: {facts['failed']}" for name, facts in networks.items() if "failed" in facts]
    bad += [f"{name}: {p} beyond its limit" for name, facts in networks.items() for p, kept in facts.get("within", {}).items() if not kept]
    if bad:
        raise AccuracyError("; ".join(bad))
    return 0


def _measured(facts: dict[str, Any], data: dict[str, Any], name: str) -> bool:
    """Whether these are results of the same pictures and of the weights that lie here."""
    return facts.get("data") == data and facts.get("weights", {}).get("sha256") == (_weights_sha256(name) or None)


def _read(output: Path) -> dict[str, Any]:
    """Networks that the file has already, each with the pictures it was measured on."""
    return read_study(output).get("networks", {})


def _write(output: Path, networks: dict[str, Any]) -> None:
    """Networks in the order of the catalog, with the settings that all share."""
    facts = {
        "calibration": {
            "rooms": CALIBRATION_ROOMS,
            "pairs": "those marked train, of the kind that is measured",
            "int8": " ".join(INT8),
            "fp16 (only where plain FP16 fails)": " ".join(FP16),
        },
        "limits": LIMITS,
        "prompts": PROMPTS,
        "networks": {name: networks[name] for name in NETWORKS if name in networks},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_record(output, study("tiny_networks", facts, ("numpy", "onnxruntime", "torch")), force=True)


if __name__ == "__main__":
    sys.exit(main())
