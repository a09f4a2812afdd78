"""What the demo shows: rooms with exact depth, real photos with measured depth, and photos of the scikit-image package."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...datasets.pairs import Pairs
from ...datasets.rooms.rooms import Rooms

ROOM_SEED, ROOMS = 8, (0, 3)  # of the rooms that nobody learned from
SKIMAGE_PHOTOS = ("motorcycle_left.png", "coffee.png")
PAIRS = ("nyu_cafe_100", "nyu_basement_00050", "nyu_fastdepth_224", "tum_fr1_desk_1", "tum_desk_open3d")
# Middlebury 2014 "Motorcycle" as scikit-image ships it: depth = focal * baseline / (disparity + offset), from its documentation.
MOTORCYCLE_FOCAL_PX, MOTORCYCLE_OFFSET_PX, MOTORCYCLE_BASELINE_M = 994.978, 31.086, 0.193001


@dataclass(frozen=True)
class Photo:
    """A photo as a file.

    Args:
        truth_m: its true depth in metres (float32 [H, W], 0 where unknown), or None.
        focal_px: focal length in its pixels, or None where nobody wrote it down.
    """

    title: str
    path: Path
    truth_m: np.ndarray | None
    focal_px: float | None

    @property
    def camera(self) -> str:
        """What ``--intrinsics`` is given: a camera that looks at the photo's middle; empty where the focal length is not known."""
        if self.focal_px is None:
            return ""
        with Image.open(self.path) as image:
            return f"{self.focal_px:g},{self.focal_px:g},{(image.width - 1) / 2:g},{(image.height - 1) / 2:g}"


def photos(folder: Path, pairs: Path) -> list[Photo]:
    """Rooms with exact depth, photos from the scikit-image package, and some of the real pairs in ``pairs``, copied into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in ROOMS:
        sample = Rooms(number + 1, ROOM_SEED)[number]
        Image.fromarray(sample.rgb).save(folder / f"{sample.id}.png")
        focal = sample.intrinsics[0] if sample.intrinsics else None
        found.append(Photo(f"synthetic room {number + 1}", folder / f"{sample.id}.png", sample.depth_m, focal))
    for name in PAIRS:
        rgb = next((path for path in (pairs / name / "rgb.png", pairs / name / "rgb.jpg") if path.exists()), None)
        if rgb is not None:
            copy = Path(shutil.copyfile(rgb, folder / f"{name}{rgb.suffix}"))
            found.append(Photo(name.replace("_", " "), copy, *_pair(pairs / name)))
    spec = importlib.util.find_spec("skimage")
    if spec and spec.submodule_search_locations:
        data = Path(spec.submodule_search_locations[0]) / "data"
        for name in SKIMAGE_PHOTOS:
            if (data / name).exists():
                motorcycle = name.startswith("motorcycle")
                truth_m, focal = (_motorcycle_m(data), MOTORCYCLE_FOCAL_PX) if motorcycle else (None, None)
                found.append(Photo(f"scikit-image {Path(name).stem.replace('_', ' ')}", Path(shutil.copyfile(data / name, folder / name)), truth_m, focal))
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


def _pair(pair: Path) -> tuple[np.ndarray | None, float | None]:
    """Metres and focal length of a folder with ``depth.png`` and ``meta.json``; neither where it is no whole pair."""
    try:
        sample = Pairs(pair)[0]
    except (OSError, ValueError):
        return None, None
    return sample.depth_m, sample.intrinsics[0] if sample.intrinsics else None
