"""The commands that a fault is done to: how each is started, what it leaves, and how one knows that this is whole."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hardening.readers import READERS
from PIL import Image

from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.files import LEFT_ENDS, PART

MODULES = {
    "depth-export": "fathom.export.commands.export_command",
    "depth-build": "fathom.export.commands.build_command",
    "depth-calibrate": "fathom.calibration.calibrate_command",
    "depth-train": "fathom.models.training.train_command",
    "depth-run": "fathom.runtime.commands.run",
    "depth-bench": "fathom.benchmarks.bench_command",
}


@dataclass(frozen=True)
class Work:
    """One command line; ``{in}`` is the folder of good files, ``{out}`` the one that it writes to.

    Args:
        words: of the first run.
        again: words added to the second one; for what it can take up, see ``words_again``.
        kills: of the 200.
        resumes: what a run that ended early leaves on purpose, for the next one.
        prepare: fills ``{out}`` before.
    """

    words: tuple[str, ...]
    again: tuple[str, ...] = ("--force",)
    kills: int = 20
    resumes: frozenset[str] = frozenset()
    prepare: Callable[[Path, Path], None] = lambda source, out: None

    def words_again(self, out: Path) -> tuple[str, ...]:
        """Words of the second run: ``--resume`` where the first left its state."""
        return ("--resume",) if any((out / name).exists() for name in self.resumes) else self.again

    def command(self, source: Path, out: Path, more: tuple[str, ...] = ()) -> list[str]:
        """The words to start."""
        name, *words = (word.replace("{in}", str(source)).replace("{out}", str(out)) for word in self.words)
        return [sys.executable, "-m", MODULES[name], *words, *more]


def _with_bundle(source: Path, out: Path) -> None:
    shutil.copytree(source / "bundle", out / "bundle")


WORKS: dict[str, Work] = {
    "export": Work(("depth-export", "--onnx", "{in}/g.onnx", "--contract", "{in}/c.json", "-o", "{out}/bundle", "-q"), kills=35),
    "build": Work(("depth-build", "{in}/bundle", "-o", "{out}/x.plan", "-q"), kills=35),
    "calibrate": Work(("depth-calibrate", "{out}/bundle", "--data", "images:{in}/photos", "--regions", "1", "-q"), kills=30, prepare=_with_bundle),
    "train": Work(
        ("depth-train", "--model", "moa-depthclip-tiny", "--data", "rooms:4:1:48x64", "--val", "rooms:2:9:48x64", "--steps", "4", "--every", "1")
        + ("-o", "{out}/t.safetensors", "-q"),
        kills=15,
        resumes=frozenset({"t.state.safetensors"}),
    ),
    "run": Work(("depth-run", "--engine", "{in}/x.plan", "{in}/photos", "-o", "{out}/depth", "--save", "png16,npy,color", "-q"), kills=60),
    "bench": Work(("depth-bench", "latency", "--engine", "{in}/x.plan", "--rounds", "400", "-o", "{out}/latency.json", "-q"), kills=25),
}


def make_sources(folder: Path) -> None:
    """What the works read: a network with its contract, its bundle and plan, and eight photos."""
    folder.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()):
        READERS["bundle"].seeds(folder)
    (folder / "photos").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    subprocess.run(WORKS["build"].command(folder, folder), check=True, capture_output=True)


def environment(change: Mapping[str, str | None] = {}) -> dict[str, str]:
    """This process' environment with one thread for each library; None takes a variable away."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", **change}
    return {name: value for name, value in found.items() if value is not None}


def find_problem(out: Path, usual: set[str]) -> str:
    """What is wrong with what lies in ``out``: half-written files under final names, or names that an undisturbed run does not leave. ``""``: nothing."""
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if any(part.startswith(".") for part in name.split("/")) or path.is_dir():
            continue
        if name not in usual and not name.endswith(".jsonl"):
            return f"{name} is left"
        try:
            _read_whole(path)
        except Exception as error:
            return f"{name} is not whole ({type(error).__name__}: {error})"
    for bundle in out.glob("*/bundle.json"):
        try:
            BundleDirectory.open(bundle.parent).close()
        except Exception as error:
            return f"{bundle.parent.name} is not whole ({error})"
    return ""


def _read_whole(path: Path) -> None:
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".npy":
        np.load(path, allow_pickle=False)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".plan":
        PlanFile.open(path).close()
    elif path.suffix == ".safetensors":
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            if file.tell() + end != path.stat().st_size:
                raise ValueError("its size is wrong")
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines()[:-1]:  # a log: its last line may be under way
            json.loads(line)


def names(out: Path) -> set[str]:
    """Of all files and hidden folders' files below."""
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def left_over(out: Path) -> list[Path]:
    """What a killed run was writing."""
    return [path for path in out.rglob(f"{PART}*") if path.name.endswith(LEFT_ENDS)]
