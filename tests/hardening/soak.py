"""``make soak``: long runs. Host memory, file descriptors and threads in the last fifth against the second fifth."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from hardening.record import add_to_record
from hardening.work import environment

PLAN = Path(__file__).parent.parent / "data" / "plans" / "small-0.1.0.plan"
GROWTH = 0.02
EVERY_S = 0.05
FRAMES, PHOTOS, IN_THREADS, ON_DEVICE = 10_000, 5_000, 40_000, 20_000


class Watch:
    """Samples of this process while it works."""

    def __init__(self):
        self.samples: list[tuple[int, int, int]] = []
        self._ended = threading.Event()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Sample while inside."""
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _sample(self) -> None:
        page = os.sysconf("SC_PAGESIZE")
        while not self._ended.wait(EVERY_S):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            self.samples.append((resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))

    def facts(self) -> dict[str, Any]:
        """Medians of the second and the last fifth, and whether what they count has stayed."""
        if len(self.samples) < 20:
            raise RuntimeError(f"only {len(self.samples)} samples: too short to say anything")
        fifth = len(self.samples) // 5
        second, last = ([median(column) for column in zip(*part, strict=True)] for part in (self.samples[fifth : 2 * fifth], self.samples[-fifth:]))
        growth = last[0] / second[0] - 1
        flat = growth <= GROWTH and last[1] <= second[1] and last[2] <= second[2]
        found = {"samples": len(self.samples), "resident_mb": [round(value[0] / 1e6, 1) for value in (second, last)], "growth": round(growth, 4)}
        return {**found, "descriptors": [second[1], last[1]], "threads": [second[2], last[2]], "flat": flat}


def video(folder: Path, count: int) -> int:
    """One video through ``depth-run``."""
    import av

    path, draw = folder / "long.mp4", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=Fraction(30))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        scene = draw.integers(0, 256, (64, 96 + count % 997 + 64, 3), dtype=np.uint8)
        for number in range(count):
            left = number % (scene.shape[1] - 96)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, left : left + 96]), format="rgb24")))
        container.mux(stream.encode(None))
    return _depth_run(str(path), folder)


def photos(folder: Path, count: int) -> int:
    """Photos of 97 sizes in turn through ``depth-run``."""
    from PIL import Image

    (folder / "in").mkdir()
    for number in range(97):
        height, width = 40 + 7 * number % 331, 50 + 11 * number % 397
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / "in" / f"{number:05d}.png")
    for number in range(97, count):
        os.link(folder / "in" / f"{number % 97:05d}.png", folder / "in" / f"{number:05d}.png")
    return _depth_run(str(folder / "in"), folder)


def _depth_run(what: str, folder: Path) -> int:
    from fathom.runtime.commands import run

    watch, kinds = Watch(), "color" if what.endswith(".mp4") else "png16"
    with open(folder / "said", "w") as said, contextlib.redirect_stdout(said), watch():  # a file: what is kept in memory would grow
        code = run.main(["--engine", str(PLAN), what, "-o", str(folder / "out"), "--save", kinds, "--threads", "1", "--json", "-q"])
    lines = (folder / "said").read_text().splitlines()
    done = json.loads(lines[0])["frames"] if kinds == "color" else len(list((folder / "out").glob("*.png")))
    return _told(watch, done, code)


def threads(folder: Path, count: int) -> int:
    """Eight threads with one pipeline; every map is the one that a lone thread gets."""
    from fathom.runtime.pipeline import Pipeline

    shown = [np.random.default_rng(number).integers(0, 256, (40 + 9 * number, 60 + 5 * number, 3), dtype=np.uint8) for number in range(8)]
    watch, wrong = Watch(), []
    with Pipeline.open(PLAN, threads=1) as pipeline:
        wanted = [pipeline.predict(photo).depth_m for photo in shown]

        def work(mine: int) -> None:
            for number in range(count // 8):
                which = (mine + number) % 8
                if not np.array_equal(pipeline.predict(shown[which]).depth_m, wanted[which]):
                    wrong.append(which)

        with watch():
            workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            [worker.start() for worker in workers]
            [worker.join() for worker in workers]
    return _told(watch, count // 8 * 8, len(wrong))


def device(folder: Path, count: int) -> int:
    """The TensorRT path on the stand-in device: nothing of it is left, neither on the device nor on the host."""
    import pytest
    import test_runtime_faults as stand_in

    with pytest.MonkeyPatch.context() as patch:
        machine = stand_in.machine_with(patch, folder, "tensorrt")
        from fathom.runtime.pipeline import Pipeline

        plan = _device_plan(folder)
        watch = Watch()
        with Pipeline.open(plan, verify=False) as pipeline:
            for _ in range(50):
                pipeline.predict(stand_in.PHOTO)
            with watch():
                for number in range(count):
                    height, width = 12 + number % 37, 16 + number % 53
                    photo = np.full((height, width, 3), number % 256, np.uint8)
                    if not (pipeline.predict(photo).depth_m == 2).all():
                        return _told(watch, number, 1)
        return _told(watch, count, len(machine.leaks()))


def _device_plan(folder: Path) -> Path:
    """What the session fixture ``tiny`` gives tests, made without a session."""
    import conftest
    import fake_plans

    class Folders:
        def mktemp(self, name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

    return fake_plans.gpu_plan(conftest.make_artefacts.__wrapped__(Folders())(), folder / "gpu.plan", "tensorrt", batch=(1, 2, 4))


def _told(watch: Watch, done: int, wrong: int) -> int:
    print(json.dumps({"done": done, "wrong": wrong, **watch.facts()}))
    return 0


PARTS: dict[str, tuple[Callable[[Path, int], int], int]] = {
    "video": (video, FRAMES),
    "photos": (photos, PHOTOS),
    "threads": (threads, IN_THREADS),
    "device": (device, ON_DEVICE),
}


def main() -> int:
    """Returns 1 if something grew or came out wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        work, count = PARTS[arguments.part]
        with tempfile.TemporaryDirectory(prefix="fathom-soak-") as folder:
            return work(Path(folder), int(count * arguments.share))
    found: dict[str, Any] = {}
    for name in arguments.only or PARTS:
        begun = time.monotonic()
        words = [sys.executable, "-m", "hardening.soak", "--part", name, "--share", str(arguments.share)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment())
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}")
        found[name] = {**json.loads(done.stdout.splitlines()[-1]), "seconds": round(time.monotonic() - begun, 1)}
        print(f"{name}: {json.dumps(found[name])}", flush=True)
        if arguments.record:
            add_to_record(arguments.record, "soak", {"seconds": round(sum(part["seconds"] for part in found.values()), 1), "parts": found})
    return int(any(part["wrong"] or not part["flat"] for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
