"""Fathom's own arms, by the commands a user gives."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.artefact.plan import PlanFile
from ..our_commands import command_line
from .low_share import low_share

CARDS = {"int8": "orin-nano", "fp8": "l4"}  # of those that compute in it the slowest: the one on which it saves most


@dataclass(frozen=True)
class Setting:
    """What ``depth-calibrate`` is asked for.

    Args:
        bits: ``int8`` or ``fp8``.
        moved: how far the depth may move from FP32, in percent; None for as far as it likes, every layer that can be being quantised.
    """

    bits: str
    moved: float | None = None

    @property
    def name(self) -> str:
        """Of the arm."""
        return "Fathom, all of it" if self.moved is None else f"Fathom, at most {self.moved:g} % moved"

    def words(self) -> list[str]:
        """For ``depth-calibrate``."""
        bound = "100%" if self.moved is None else f"{self.moved:g}%"
        return ["--precisions", f"fp32,{self.bits}", "--budget", f"abs_rel=100%,delta1=100pp,moved={bound}", "--for", CARDS[self.bits]]


BOUNDS = (2.0, 1.75, 1.5, 1.25)  # the usual one, and down to how far NNCF's search lets its depth move
SETTINGS = (Setting("int8"), *(Setting("int8", moved) for moved in BOUNDS), Setting("fp8"), Setting("fp8", BOUNDS[0]))


def run(program: str, *words: str) -> list[dict[str, Any]]:
    """One of our commands; its JSON lines.

    Raises:
        RuntimeError: if it fails, with its last words.
    """
    done = subprocess.run([*command_line(program), *words, "--json", "--force", "-q"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def fp32_plan(network: Path, contract: Path, folder: Path) -> Path:
    """Export to ``folder/bundle``, and the FP32 plan of it."""
    run("depth-export", "--onnx", str(network), "--contract", str(contract), "-o", str(folder / "bundle"))
    run("depth-build", str(folder / "bundle"), "-o", str(folder / "fp32.plan"))
    return folder / "fp32.plan"


def fathom_arms(folder: Path, data: str, seed: int) -> Iterator[tuple[Setting, Path | str, dict[str, Any]]]:
    """Plans of all settings for ``folder/bundle``, each with what the search said; where a command refuses, its words instead of a plan."""
    bundle = folder / "bundle"
    for setting in SETTINGS:
        facts: dict[str, Any] = {}
        plan = folder / "fathom.plan"
        try:
            lines = run("depth-calibrate", str(bundle), "--data", data, "--seed", str(seed), *setting.words())
            run("depth-build", str(bundle), "--precision", setting.bits, "-o", str(plan))
            facts |= {"share": share_of(plan, bundle), "verdicts": [line["text"] for line in lines if line["kind"] == "verdict"]}
        except RuntimeError as error:
            yield setting, str(error), facts
        else:
            yield setting, plan, facts


def share_of(plan: Path, bundle: Path) -> float:
    """Part of the multiply-adds that a plan for ONNX Runtime does in 8 bits; of a network of one stage."""
    graph = plan.with_suffix(".onnx")
    with PlanFile.open(plan) as found:
        graph.write_bytes(found.read(found.manifest.stages[0].engine))
    return low_share(graph, next((bundle / "stages").glob("*.onnx")))["share"]
