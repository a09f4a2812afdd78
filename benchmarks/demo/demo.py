"""``make demo``: from nothing to depth maps of photos by every small network that is trained, with the commands a user would type.

``demo/index.html`` shows them and says what they are worth, ``demo/overview.png`` is everything as one picture.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ...datasets.rooms.rooms import Rooms
from ...datasets.rooms.words import meanings
from ...runtime.commands.command import run_command
from ...runtime.commands.inspection import read_manifest
from ..model_cards import CardResult, read_card, trained
from .commands import Commands, loaded_commands
from .contact_sheet import Column, MaskRow, draw_masks, draw_sheet
from .measured import accuracy, latency, report
from .page import page, verdicts
from .photos import ROOM_SEED, ROOMS, Photo, photos
from .pictures import COARSE, Map, Row
from .plans import keep, kept, latency_file
from .viewer_data import script, write_pictures

NETWORKS = {  # in this order; what depth-export wants besides
    "evp-tiny": (),
    "vpd-tiny": ("--scene", "living_room"),
    "llm-mde-tiny": (),
    "depthclip-tiny": (),
    "depthblip2-tiny": (),
    "moa-depthclip-tiny": (),
}
WORDS_NETWORK = "evp-refer-tiny"
LEARNED = "Small networks that learned from synthetic rooms: warm is near, cold is far, and each row has its own bar. One look per photo, on the CPU."
TOLD = "evp-tiny and vpd-tiny are told the photo's camera, where it is known."
UNTRAINED = "UNTRAINED WEIGHTS: this depth is meaningless; only the way through the tool is shown"
COARSE_TITLE = "coarse by design"
MOST_JOBS = 4


def networks() -> list[str]:
    """Small depth networks with demo weights; the untrained EVP where nothing is trained."""
    return [name for name in NETWORKS if trained(name)] or ["evp-tiny"]


def grouped(names: list[str]) -> list[tuple[str, list[str]]]:
    """Networks that say depth at every pixel, then those that say it for a few cells."""
    groups = [("", [name for name in names if name not in COARSE]), (COARSE_TITLE, [name for name in names if name in COARSE])]
    return [(title, members) for title, members in groups if members]


class Show:
    """One demo in its folder; one thread for every command, as independent networks run side by side.

    Args:
        folder: for everything that is made.
        photos: that are shown.
        run: runs those commands.
    """

    def __init__(self, folder: Path, photos: list[Photo], run: Commands):
        self.folder, self.photos, self.run = folder, photos, run

    def plan(self, name: str) -> Path:
        """Export, build and measure a network, or take what an earlier demo made of the same weights and code."""
        plan, words = self.folder / f"{name}.plan", NETWORKS.get(name, ())
        if kept(name, words, self.folder):
            print(f"{plan}: kept from an earlier demo, as nothing it is made of has changed", flush=True)
            return plan
        if name == "evp-tiny":  # the steps one by one, so that the bundle can be looked at
            bundle = self.folder / name
            self.run("depth-export", "--model", name, "-o", str(bundle), "--force", "-q")
            self.run("depth-build", str(bundle), "-o", str(plan), "--force", "-q")
        else:
            self.run("depth-export", "--model", name, *words, "-o", str(plan), "--force", "-q")
        if name != WORDS_NETWORK:
            accuracy(self.folder, name, self.run)
        keep(name, words, self.folder)
        return plan

    def depth(self, name: str) -> dict[str, dict]:
        """Results of one network by photo. Photos of one camera go together where the network's metres depend on the camera, else all."""
        plan, cameras, results = self.plan(name), defaultdict(list), {}
        told = read_manifest(plan).contract.output.focal_px > 0
        for photo in self.photos:
            cameras[photo.camera if told else ""].append(str(photo.path))
        for camera, paths in cameras.items():
            words = ["--engine", str(plan), *paths, "-o", str(self.folder / "depth" / name), *(["--intrinsics", camera] if camera else [])]
            lines = self.run("depth-run", *words, "--save", "png16,npy,color", "--force", "--json", "-q").splitlines()
            results |= {result["photo"]: result for result in map(json.loads, lines)}
        return results

    def masks(self) -> list[MaskRow]:
        """The referring network on the rooms, asked for things that are there."""
        if not trained(WORDS_NETWORK):
            return []
        plan, rows = self.plan(WORDS_NETWORK), []
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
                result = json.loads(self.run("depth-run", *line))
                rows.append(MaskRow(words, Image.fromarray(sample.rgb), truth, np.load(result["files"]["npy"], allow_pickle=False) > 0.5))
        return rows


def time_plans(folder: Path, names: list[str], run: Commands) -> None:
    """Time the networks that no earlier demo timed on this machine, one after the other: nothing else may run meanwhile."""
    for name in names:
        if not (folder / latency_file(name)).is_file():
            latency(folder, name, run, os.cpu_count() or 1)
            keep(name, NETWORKS[name], folder)


def main(folder: Path = Path("demo"), pairs: Path = Path("../shared/data")) -> int:
    """Export, build, run, and draw ``demo/index.html`` and ``demo/overview.png``; returns the exit code."""
    start = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    chosen = photos(folder / "photos", pairs)
    groups = grouped(networks())
    names = [name for _, members in groups for name in members]
    jobs = min(os.cpu_count() or 1, MOST_JOBS)
    with loaded_commands(jobs) as run:
        with ThreadPoolExecutor(jobs) as pool:
            show = Show(folder, chosen, run)
            masks = pool.submit(show.masks)
            found = dict(zip(names, pool.map(show.depth, names), strict=True))
            drawn = masks.result()
        time_plans(folder, names, run)
        report(folder, names, run)
        print(run("depth-inspect", str(folder / f"{names[0]}.plan")))
    untrained = any(result["untrained"] for name in names for result in found[name].values())
    rows = [Row(photo.title, _picture(photo.path), photo.truth_m, tuple(_map(found[name][str(photo.path)]) for name in names)) for photo in chosen]
    columns = [_column(name, title) for title, members in groups for name in members]
    notes = [UNTRAINED] if untrained else [LEARNED, TOLD]
    draw_sheet("Depth of photos they never saw", notes, columns, rows, untrained).save(folder / "overview.png")
    if drawn:
        draw_masks(drawn).save(folder / "masks.png")
    shown = write_pictures(folder / "pictures", names, chosen, rows)
    (folder / "viewer-data.js").write_text(script(shown, groups), "utf-8")
    (folder / "index.html").write_text(page(groups, shown, notes, WORDS_NETWORK if drawn else "", untrained), "utf-8")
    if untrained:
        print("\nThe weights are UNTRAINED: the maps show the way through the tool, not depth.")
    print("\n".join(["", *verdicts([*names, *([WORDS_NETWORK] if drawn else [])])]))
    print(f"\nThe depth of each photo is in {folder / 'depth'}/, everything as one picture in {folder / 'overview.png'}  ({time.monotonic() - start:.0f} s)")
    print(f"Look at {folder / 'index.html'}")
    return 0


def _column(name: str, group: str) -> Column:
    """From the card: what it reached on pictures it never saw, what a blind guess reaches there, and whether that is better."""
    results = read_card(name)
    title = f"{group}: depth of a few cells" if group else ""
    shape = (COARSE[name],) if name in COARSE else ()
    if not results:
        return Column(name, (*shape, "untrained"), title)
    shown = [("rooms" if place == 0 else "indoors" if result.indoor else "photos", result) for place, result in enumerate(results[:2])]
    lines = tuple(f"{word}: {_against_blind(result)}" for word, result in shown)
    worse = [f"{word} {', '.join(metrics)}" for word, result in shown if (metrics := result.worse_metrics())]
    alarm = (f"worse than blind: {'; '.join(worse)}",) if worse else ()
    return Column(f"{name}, {shape[0]}" if shape else name, (*lines, *alarm), title, bool(worse))


def _against_blind(result: CardResult) -> str:
    return f"{result.words().partition(',')[0]} (blind {result.blind_words().partition(': ')[2].partition(',')[0].split()[-1]})"


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _map(result: dict) -> Map:
    return Map(np.nan_to_num(np.load(result["files"]["npy"], allow_pickle=False)), result["kind"] == "metric")


if __name__ == "__main__":
    sys.exit(run_command(main))
