"""``make demo``: from nothing to depth maps of photos by every small network that is trained, with the commands a user would type.

``demo/overview.png`` shows them side by side with the true depth, ``demo/index.html`` says what they are worth.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...datasets.rooms.rooms import Rooms
from ...datasets.rooms.words import meanings
from ..model_cards import read_card, trained
from .contact_sheet import Column, Map, MaskRow, Row, draw_masks, draw_sheet
from .measured import measure
from .page import page

NETWORKS = {  # in this order; what depth-export wants besides
    "evp-tiny": (),
    "vpd-tiny": ("--scene", "living_room"),
    "moa-depthclip-tiny": (),
    "depthclip-tiny": (),
    "depthblip2-tiny": (),
    "llm-mde-tiny": (),
}
WORDS_NETWORK = "evp-refer-tiny"
NEEDS = {"depthclip-tiny": ("open_clip", "clip"), "moa-depthclip-tiny": ("open_clip", "clip")}  # package, extra
ROOM_SEED, ROOMS = 8, (0, 3)  # of the rooms that nobody learned from
SKIMAGE_PHOTOS = ("motorcycle_left.png", "coffee.png")
PAIRS = ("nyu_cafe_100", "nyu_basement_00050", "nyu_fastdepth_224", "tum_fr1_desk_1", "tum_desk_open3d")
MEASURED_UNTIL_S = 120  # nor measured after this
NEW_UNTIL_S = 80  # no further network is started after this: the whole demo, set-up included, is to take two and a half minutes at most
LEARNED = "Small networks that learned from synthetic rooms: warm is near, cold is far, and each row has its own bar. One look per photo, on the CPU."
UNTRAINED = "UNTRAINED WEIGHTS: this depth is meaningless; only the way through the tool is shown"
# Middlebury 2014 "Motorcycle" as scikit-image ships it: depth = focal * baseline / (disparity + offset), from its documentation.
MOTORCYCLE_FOCAL_PX, MOTORCYCLE_OFFSET_PX, MOTORCYCLE_BASELINE_M = 994.978, 31.086, 0.193001


@dataclass(frozen=True)
class Photo:
    """A photo as a file, and, where there is one, its true depth in metres (float32 [H, W], 0 where unknown)."""

    title: str
    path: Path
    truth_m: np.ndarray | None


def photos(folder: Path, pairs: Path) -> list[Photo]:
    """Rooms with exact depth, photos from the scikit-image package, and some of the real pairs in ``pairs``, copied into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in ROOMS:
        sample = Rooms(number + 1, ROOM_SEED)[number]
        Image.fromarray(sample.rgb).save(folder / f"{sample.id}.png")
        found.append(Photo(f"synthetic room {number + 1}", folder / f"{sample.id}.png", sample.depth_m))
    for name in PAIRS:
        rgb = next((path for path in (pairs / name / "rgb.png", pairs / name / "rgb.jpg") if path.exists()), None)
        if rgb is not None:
            copy = Path(shutil.copyfile(rgb, folder / f"{name}{rgb.suffix}"))
            found.append(Photo(name.replace("_", " "), copy, _pair_m(pairs / name)))
    spec = importlib.util.find_spec("skimage")
    if spec and spec.submodule_search_locations:
        data = Path(spec.submodule_search_locations[0]) / "data"
        for name in SKIMAGE_PHOTOS:
            if (data / name).exists():
                truth_m = _motorcycle_m(data) if name.startswith("motorcycle") else None
                found.append(Photo(f"scikit-image {Path(name).stem}", Path(shutil.copyfile(data / name, folder / name)), truth_m))
    return found


def _motorcycle_m(data: Path) -> np.ndarray | None:
    try:
        with np.load(data / "motorcycle_disp.npz", allow_pickle=False) as archive:
            disparity = archive["arr_0"].astype(np.float64)
    except (OSError, KeyError, ValueError):
        return None
    known = np.isfinite(disparity)
    metres = MOTORCYCLE_FOCAL_PX * MOTORCYCLE_BASELINE_M / (np.where(known, disparity, 1) + MOTORCYCLE_OFFSET_PX)
    return np.where(known, metres, 0).astype(np.float32)


def _pair_m(pair: Path) -> np.ndarray | None:
    if not (pair / "depth.png").exists() or not (pair / "meta.json").exists():
        return None
    with Image.open(pair / "depth.png") as image:
        return np.asarray(image).astype(np.float32) / np.float32(json.loads((pair / "meta.json").read_text())["depth_scale"])


def networks() -> tuple[list[str], list[str]]:
    """Small depth networks that can be shown, and sentences about those that cannot; the untrained EVP where nothing is trained."""
    shown, remarks = [], []
    for name in NETWORKS:
        package, extra = NEEDS.get(name, ("", ""))
        if not trained(name):
            continue
        if package and importlib.util.find_spec(package) is None:
            remarks.append(f"{name} needs pip install '.[{extra}]'.")
        else:
            shown.append(name)
    return shown or ["evp-tiny"], remarks


def command(name: str, *words: str, threads: int) -> str:
    """Run one of our commands as a user would; returns its standard output.

    Raises:
        SystemExit: with its exit code if it fails.
    """
    print(f"$ {shlex.join([name, *words])}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    line = [str(Path(sys.executable).parent / name), *words]
    result = subprocess.run(line, capture_output=True, text=True, env=environment)
    if result.returncode:
        print(result.stderr, file=sys.stderr)
        raise SystemExit(result.returncode)
    return result.stdout


class Show:
    """One demo in its folder.

    Args:
        folder: for everything that is made.
        start: when the demo began (``time.monotonic``).
        threads: of every command.
    """

    def __init__(self, folder: Path, start: float, threads: int):
        self.folder, self.start, self.threads = folder, start, threads

    def depth(self, name: str) -> dict[str, dict] | None:
        """Export, build and run one network; results by photo, None if there was no time left."""
        if time.monotonic() - self.start > NEW_UNTIL_S:
            return None
        plan, out = self.folder / f"{name}.plan", self.folder / "depth" / name
        if name == "evp-tiny":  # the steps one by one, so that the bundle can be looked at
            bundle = self.folder / name
            command("depth-export", "--model", name, "-o", str(bundle), "--force", "-q", threads=self.threads)
            command("depth-build", str(bundle), "-o", str(plan), "--force", "-q", threads=self.threads)
        else:
            command("depth-export", "--model", name, *NETWORKS[name], "-o", str(plan), "--force", "-q", threads=self.threads)
        words = ["--engine", str(plan), str(self.folder / "photos"), "-o", str(out), "--save", "png16,npy,color", "--force", "--json", "-q"]
        results = map(json.loads, command("depth-run", *words, threads=self.threads).splitlines())
        return {result["photo"]: result for result in results}

    def masks(self) -> list[MaskRow]:
        """The referring network on the rooms, asked for things that are there."""
        if not trained(WORDS_NETWORK) or time.monotonic() - self.start > NEW_UNTIL_S:
            return []
        plan, rows = self.folder / f"{WORDS_NETWORK}.plan", []
        command("depth-export", "--model", WORDS_NETWORK, "-o", str(plan), "--force", "-q", threads=self.threads)
        for number in ROOMS:
            source = Rooms(number + 1, ROOM_SEED)
            sample = source[number]
            known = sorted(meanings(source.things(number), sample.depth_m).items(), key=lambda item: -item[1].sum())
            known = [(meaning, mask) for meaning, mask in known if meaning.name not in ("wall", "ceiling")][:2]
            photo, out = self.folder / "photos" / f"{sample.id}.png", self.folder / "masks"
            for meaning, truth in known:
                words = meaning.sentences()[1]
                place = out / words.replace(" ", "-")
                line = ["--engine", str(plan), str(photo), "-o", str(place), "--prompt", words, "--save", "npy", "--force", "--json", "-q"]
                result = json.loads(command("depth-run", *line, threads=self.threads))
                rows.append(MaskRow(words, Image.fromarray(sample.rgb), truth, np.load(result["files"]["npy"], allow_pickle=False) > 0.5))
        return rows


def main(folder: Path = Path("demo"), pairs: Path = Path("../shared/data")) -> int:
    """Export, build, run, and draw ``demo/overview.png`` and ``demo/index.html``; returns the exit code."""
    start = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    chosen = photos(folder / "photos", pairs)
    names, remarks = networks()
    jobs = min(os.cpu_count() or 1, 4)
    show = Show(folder, start, max(1, (os.cpu_count() or 1) // jobs))
    with ThreadPoolExecutor(jobs) as pool:
        masks = pool.submit(show.masks)
        found = dict(zip(names, pool.map(show.depth, names), strict=True))
    remarks += [f"{name} was left out: the time was up." for name, results in found.items() if results is None]
    names = [name for name in names if found[name] is not None]
    if not names:
        raise SystemExit("the machine was too busy to show anything; run it again")
    print(command("depth-inspect", str(folder / f"{names[0]}.plan"), threads=1))
    untrained = any(result["untrained"] for name in names for result in found[name].values())
    rows = [Row(photo.title, _picture(photo.path), photo.truth_m, tuple(_map(found[name][str(photo.path)]) for name in names)) for photo in chosen]
    columns = [Column(name, _about(name)) for name in names]
    notes = [UNTRAINED if untrained else LEARNED]
    draw_sheet("Depth of photos they never saw", [*notes, *remarks], columns, rows, untrained).save(folder / "overview.png")
    drawn = masks.result()
    if drawn:
        draw_masks(f"{WORDS_NETWORK}: what the words mean", drawn).save(folder / "masks.png")
    remarks += [left] if (left := measure(folder, names, command, os.cpu_count() or 1, start + MEASURED_UNTIL_S)) else []
    (folder / "index.html").write_text(page(names, [*notes, *remarks], WORDS_NETWORK if drawn else "", untrained), "utf-8")
    if untrained:
        print("\nThe weights are UNTRAINED: the maps show the way through the tool, not depth.")
    print("\n".join(["", *remarks]).strip())
    print(
        f"\nLook at {folder / 'overview.png'}, {folder / 'index.html'} or {folder / 'report.html'}; "
        f"the depth of each photo is in {folder / 'depth'}/  ({time.monotonic() - start:.0f} s)"
    )
    return 0


def _about(name: str) -> tuple[str, ...]:
    """Two lines from the card: what it reached on rooms it never saw, and what a blind guess reaches."""
    results = read_card(name)
    if not results:
        return ("untrained",)
    return (f"rooms: {results[0].words()}", f"blind guess: {results[0].blind_words().partition(': ')[2]}")


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _map(result: dict) -> Map:
    return Map(np.nan_to_num(np.load(result["files"]["npy"], allow_pickle=False)), result["kind"] == "metric")


if __name__ == "__main__":
    sys.exit(main())
