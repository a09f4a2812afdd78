"""Pictures of noise, and depth-run on whatever lies there."""

import numpy as np
from PIL import Image

from fathom.runtime.commands import run


def picture(path, seed=0, size=(60, 90)):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def depth_run(tiny, *words):
    return run.main(["--engine", str(tiny.plan), *map(str, words)])
