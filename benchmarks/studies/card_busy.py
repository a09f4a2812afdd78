"""How busy ``depth-run`` keeps a card: a stand-in that takes a fixed time for each photo, real photos, real files, as JSON.

    python -m fathom.benchmarks.studies.card_busy --engine BUNDLE --photo FILE.jpg -o benchmarks/results/card_busy.json

The contract is the artefact's; its network never runs. In its place a device with one queue works ``--forward`` milliseconds on each photo, through
the runtime's own GPU thread, with the copies of the photo to and of the map from page-locked memory done for real on the host. The
map is made beforehand: on a card it is made by a kernel. What is measured is everything else: reading, decoding, copies, judging, encoding,
writing. ``busy`` is the share of the time from the first forward to the end of the last in which the device worked. ``limit`` is the share
that the CPU time allows if nothing waits for anything: cores x forward / CPU time of a photo. ``cores_used`` is CPU time by wall time: on a machine
with other work it says how much of the cores this got.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.plan import PlanFile
from ...runtime.commands.command import run_command
from ...runtime.commands.photo_session import PhotoSession
from ...runtime.commands.run import SUFFIX, build_parser
from ...runtime.photo.interpolate import resize
from ...runtime.photo.photo import PhotoFile, read_photo
from ...runtime.photo.raw_maps import RawMaps
from ...runtime.pipeline import Pipeline
from ...runtime.tensorrt.gpu_worker import GpuWorker
from ..record.record import study, write_record
from .measured_commands import PACKAGES, system

SAVES = ("npy", "png16", "color", "png16,color")


class StandIn:
    """A session of the GPU thread (``gpu_worker.Session``) whose device works for a fixed time on each job, one after the other."""

    any_thread = True

    def __init__(self, size: tuple[int, int], forward_s: float):
        self.forward_s, self.idle_at, self.worked_s, self.begun_at, self.flying = forward_s, 0.0, 0.0, 0.0, 0
        height, width = size
        rooms = resize(np.random.default_rng(0).uniform(1, 9, (12, 16)).astype(np.float32), height, width, "bicubic-antialias")
        self.map = rooms + np.random.default_rng(1).normal(0, 0.003, size).astype(np.float32)  # metres, with the noise of a real one
        self.photo = np.empty((height, width, 3), np.uint8)

    def has_idle_slot(self) -> bool:
        """See ``gpu_worker.Session``: two at a time."""
        return self.flying < 2

    def begin(self, photo: np.ndarray) -> _Flight:
        """Copy it, and let it be done ``forward_s`` after the one before."""
        np.copyto(self.photo, photo)
        now = time.perf_counter()
        self.begun_at = self.begun_at or now
        self.idle_at = max(self.idle_at, now) + self.forward_s
        self.worked_s, self.flying = self.worked_s + self.forward_s, self.flying + 1
        return _Flight(self, self.idle_at)

    def close(self) -> None:
        """Nothing is held."""


class _Flight:
    def __init__(self, card: StandIn, done_at: float):
        self.card, self.done_at = card, done_at

    def wait(self) -> None:
        time.sleep(max(self.done_at - time.perf_counter(), 0))

    def finish(self) -> RawMaps:
        self.wait()
        self.card.flying -= 1
        return RawMaps([(self.card.map.copy(), np.ones(self.card.map.shape, bool))], self.card.forward_s * 1e3)


class StandInBackend:
    """What ``Pipeline`` asks of a backend that works on whole photos."""

    stages, concurrent, remarks = (), 2, ()

    def __init__(self, card: StandIn):
        self._worker = GpuWorker(lambda: card)

    def predict_photos(self, photos: list[np.ndarray], *_: Any) -> RawMaps:
        """Each photo is a job of its own."""
        found = [self._worker.submit(photo).result() for photo in photos]
        return RawMaps([one for maps in found for one in maps.maps], sum(maps.network_ms for maps in found))

    def interrupt(self) -> None:
        """See ``backend.Backend``."""
        self._worker.interrupt()

    def close(self) -> None:
        """See ``backend.Backend``."""
        self._worker.close()


def measure(engine: str, photos: list[Path], saves: str, forward_ms: float, folder: Path) -> dict[str, float]:
    """One run of ``depth-run``'s loop over all photos."""
    height, width = read_photo(photos[0]).shape[:2]
    card = StandIn((height, width), forward_ms / 1e3)
    artefact = BundleDirectory.open(engine, verify=False) if Path(engine).is_dir() else PlanFile.open(engine, verify=False)
    arguments = build_parser().parse_args(["--engine", engine, "-o", str(folder), "--save", saves, "--quiet", "--force", "--json", "photo"])
    targets = {PhotoFile(path, path.stem): {kind: folder / (path.stem + SUFFIX[kind]) for kind in arguments.save} for path in photos}
    with Pipeline(artefact, StandInBackend(card), 1) as pipeline:
        start, cpu = time.perf_counter(), time.process_time()
        code = PhotoSession(pipeline, arguments, None, targets).work()
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    assert code == 0 and len(list(folder.iterdir())) >= len(photos)
    cores, per_photo_ms = len(os.sched_getaffinity(0)), cpu_s * 1e3 / len(photos)
    return {
        "busy": round(card.worked_s / (card.idle_at - card.begun_at), 3),
        "limit": round(min(cores * forward_ms / per_photo_ms, 1.0), 3),
        "cores_used": round(cpu_s / seconds, 2),
        "cpu_ms_per_photo": round(per_photo_ms, 1),
        "photos_per_s": round(len(photos) / seconds, 2),
        "MiB_per_photo": round(sum(path.stat().st_size for path in folder.iterdir()) / len(photos) / 2**20, 2),
    }


def decode_ms(photo: Path, runs: int = 20) -> float:
    """CPU time of reading one photo, the least of some runs."""
    found = []
    for _ in range(runs):
        start = time.process_time()
        read_photo(photo)
        found.append((time.process_time() - start) * 1e3)
    return round(min(found), 1)


def main(argv: list[str] | None = None) -> int:
    """Measure and write the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="card_busy", description=__doc__.splitlines()[0])
    parser.add_argument("--engine", required=True, help="a bundle or plan, for its contract")
    parser.add_argument("--photo", required=True, help="a JPEG, shown again and again")
    parser.add_argument("--size", default="1920x1080", help="of the photos in pixels (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--forward", type=float, default=20.0, metavar="MS")
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    width, height = map(int, arguments.size.split("x"))
    here = system()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = folder / "0.jpg"
        with Image.open(arguments.photo) as image:
            image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(first, quality=92)
        photos = [first] + [Path(shutil.copyfile(first, folder / f"{number}.jpg")) for number in range(1, arguments.photos)]
        found = {}
        for saves in SAVES:
            out = folder / saves.replace(",", "-")
            out.mkdir()
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                found[saves] = measure(arguments.engine, photos, saves, arguments.forward, out)
            print(saves, found[saves], flush=True)
            shutil.rmtree(out)
        results = {
            "system": here,
            "size": arguments.size,
            "photos": arguments.photos,
            "forward_ms": arguments.forward,
            "decode_cpu_ms": decode_ms(first),
            "saves": found,
        }
    write_record(arguments.output, study("card_busy", results, PACKAGES), force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
