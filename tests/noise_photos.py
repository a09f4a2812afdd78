"""Pictures of noise, and depth-run on whatever lies there."""

import numpy as np
from PIL import Image

from fathom.runtime.commands import run


def photo(height=60, width=100, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(path, seed=0, size=(60, 90)):
    Image.fromarray(photo(*size, seed)).save(path)
    return path


def depth_run(tiny, *words):
    return run.main(["--engine", str(tiny.plan), *map(str, words)])
