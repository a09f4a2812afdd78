"""Real pairs as files: a photo of a wall beside its depth."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_pair(folder: Path, depth_mm: int, size=(6, 8)) -> None:
    """A folder as ``pairs:DIR`` reads it: a grey photo and one depth, in millimetres, everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(folder / "rgb.png")
    Image.fromarray(np.full(size, depth_mm, np.uint16)).save(folder / "depth.png", compress_level=0)
    (folder / "meta.json").write_text(json.dumps({"depth_scale": 1000}))
