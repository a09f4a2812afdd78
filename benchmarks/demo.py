"""``make demo``: from nothing to depth maps of real photos, with the commands a user would type, and one picture to look at."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime.colormap import colorize

NETWORK = "evp-tiny"
SKIMAGE_PHOTOS = ("coffee.png", "astronaut.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
# Middlebury 2014 "Motorcycle" as scikit-image ships it: depth = focal * baseline / (disparity + offset), from its documentation.
MOTORCYCLE_FOCAL_PX, MOTORCYCLE_OFFSET_PX, MOTORCYCLE_BASELINE_M = 994.978, 31.086, 0.193001
THUMB = (320, 240)
INK, FAINT, ALARM = (235, 235, 235), (150, 150, 150), (255, 110, 110)


@dataclass(frozen=True)
class Photo:
    """A photo and, where there is one, its true depth in metres (float32 [H, W], 0 where unknown)."""

    path: Path
    truth_m: np.ndarray | None

    def copied(self, folder: Path) -> Photo:
        """The same photo as a copy in ``folder``, named after its scene."""
        folder.mkdir(exist_ok=True)
        name = self.path.parent.name + self.path.suffix if self.path.stem == "rgb" else self.path.name
        return Photo(Path(shutil.copyfile(self.path, folder / name)), self.truth_m)


def photos(pairs: Path) -> list[Photo]:
    """Photos from the scikit-image package, and every RGB-D pair in ``pairs`` (folders with ``meta.json``) if that folder is there."""
    found: list[Photo] = []
    spec = importlib.util.find_spec("skimage")
    if spec and spec.submodule_search_locations:
        data = Path(spec.submodule_search_locations[0]) / "data"
        for name in SKIMAGE_PHOTOS:
            if (data / name).exists():
                found.append(Photo(data / name, _motorcycle_m(data) if name == "motorcycle_left.png" else None))
    for meta in sorted(pairs.glob("*/meta.json")):
        rgb = next((meta.parent / name for name in ("rgb.png", "rgb.jpg") if (meta.parent / name).exists()), None)
        if rgb:
            found.append(Photo(rgb, _pair_m(meta)))
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


def _pair_m(meta: Path) -> np.ndarray | None:
    file = meta.parent / "depth.png"
    if not file.exists():
        return None
    with Image.open(file) as image:
        return np.asarray(image).astype(np.float32) / float(json.loads(meta.read_text())["depth_scale"])


def _command(name: str, *words: str) -> str:
    """Run one of our commands as a user would; returns its standard output."""
    print(f"$ {shlex.join([name, *words])}", flush=True)
    result = subprocess.run([str(Path(sys.executable).parent / name), *words], stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(result.returncode)
    return result.stdout


def overview(rows: list[tuple[Photo, dict]], heading: str, untrained: bool) -> Image.Image:
    """Photo, depth and true depth side by side, the two depths in the same colours (the range of the truth, or of the depth)."""
    font, small = ImageFont.load_default(22), ImageFont.load_default(15)
    width, height = THUMB
    line = height + 34
    sheet = Image.new("RGB", (3 * width + 40, 90 + line * len(rows)), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    draw.text((10, 10), heading, fill=INK, font=font)
    words = "UNTRAINED WEIGHTS: this depth is meaningless; only the way through the tool is shown" if untrained else "near is warm, far is cold"
    draw.text((10, 42), words, fill=ALARM if untrained else FAINT, font=small)
    for column, title in enumerate(("photo", "depth", "true depth")):
        draw.text((10 + column * (width + 10), 66), title, fill=FAINT, font=small)
    for index, (photo, result) in enumerate(rows):
        top = 90 + index * line
        depth_m = np.load(result["files"]["npy"], allow_pickle=False)
        with Image.open(photo.path) as image:
            _paste(sheet, image.convert("RGB"), 10, top)
        truth = photo.truth_m if photo.truth_m is not None else np.zeros((1, 1), np.float32)
        seen = truth[truth > 0] if (truth > 0).any() else depth_m[np.isfinite(depth_m)]
        low, high = (float(v) for v in np.percentile(seen, [1, 99]))
        high = high if high > low else low + 1e-3
        for column, values in enumerate((depth_m, truth), start=1):
            known = np.isfinite(values) & (values > 0)
            left = 10 + column * (width + 10)
            if not known.any():
                draw.text((left + 10, top + height // 2 - 10), "no ground truth", fill=FAINT, font=small)
                continue
            _paste(sheet, Image.fromarray(colorize(np.where(known, values, 0).astype(np.float32), known, low, high, "turbo", reverse=True)), left, top)
            median = float(np.median(values[known]))
            draw.text((left, top + height + 4), f"{values[known].min():.2f} to {values[known].max():.2f} m, median {median:.2f} m", fill=FAINT, font=small)
        draw.text((10, top + height + 4), photo.path.stem, fill=FAINT, font=small)
    return sheet


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    image.thumbnail(THUMB)
    sheet.paste(image, (left + (THUMB[0] - image.width) // 2, top + (THUMB[1] - image.height) // 2))


def main(folder: Path = Path("demo"), pairs: Path = Path("../shared/data")) -> int:
    """Export, build, run, and draw ``demo/overview.png``; returns the exit code."""
    start = time.monotonic()
    folder.mkdir(exist_ok=True)
    chosen = [photo.copied(folder / "photos") for photo in photos(pairs)]
    if not chosen:
        raise SystemExit("no photos: install scikit-image (pip install scikit-image), whose wheel ships some")
    bundle, plan, out = folder / NETWORK, folder / f"{NETWORK}.plan", folder / "depth"
    _command("depth-export", "--model", NETWORK, "-o", str(bundle), "--force")
    _command("depth-build", str(bundle), "--backend", "onnxruntime", "-o", str(plan), "--force")
    print(_command("depth-inspect", str(plan)))
    words = ["--engine", str(plan), str(folder / "photos"), "-o", str(out), "--save", "png16,npy,color", "--force", "--json"]
    results = {result["photo"]: result for result in map(json.loads, _command("depth-run", *words).splitlines())}
    rows = [(photo, results[str(photo.path)]) for photo in chosen]
    untrained = any(result["untrained"] for _, result in rows)
    overview(rows, f"{NETWORK}, single-image protocol, ONNX Runtime on CPU", untrained).save(folder / "overview.png")
    if untrained:
        print("\nThe weights are UNTRAINED: the maps show the way through the tool, not depth.")
    print(f"\nLook at {folder / 'overview.png'}; 16-bit PNG, NPY and colour PNG of each photo are in {out}/  ({time.monotonic() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
