"""Flying pixels: found where an edge was blended, and nowhere else."""

import numpy as np

from fathom.runtime.photo.depth_edges import flying
from fathom.runtime.photo.depth_map import DepthMap


def step_scene(seed, height=480, width=640):
    """A slanted wall with nearer boxes whose edges are blended over one pixel; returns depth and where the blends are."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    depth = (5 + 0.002 * columns + 0.001 * rows).astype(np.float32)
    planted = np.zeros((height, width), bool)
    for _ in range(6):
        top, left = int(draw.integers(5, height - 130)), int(draw.integers(5, width - 130))
        tall, wide, near = int(draw.integers(40, 120)), int(draw.integers(40, 120)), np.float32(draw.uniform(1, 3))
        ring = np.zeros_like(planted)
        ring[top - 1 : top + tall + 1, left - 1 : left + wide + 1] = True
        ring[top : top + tall, left : left + wide] = False
        depth[ring] += (near - depth[ring]) * draw.uniform(0.25, 0.75, int(ring.sum())).astype(np.float32)
        depth[top : top + tall, left : left + wide], planted[top : top + tall, left : left + wide] = near, False
        planted |= ring
    return depth, planted


def test_flying_pixels_are_found_and_surfaces_stay():
    for seed in range(10):
        depth, planted = step_scene(seed)
        found = flying(depth)
        assert found[planted].mean() >= 0.9
        assert found[~planted].mean() < 0.005


def test_a_clean_jump_and_unknown_depth_are_no_flying_pixels():
    clean = np.full((20, 20), 2, np.float32)
    clean[:, 10:] = 5
    clean[5:8] = 0
    assert not flying(clean).any()


def test_mask_edges_takes_flying_pixels_out_of_maps():
    values, planted = step_scene(3)
    depth = DepthMap(values, values > 0, "metric", "m", 0.1, 10, "far")
    masked = depth.without_flying()
    assert not masked.valid[planted].all() and (~masked.valid[planted]).mean() >= 0.9 and (masked.values[~masked.valid] == 0).all()
    relative = DepthMap(values, values > 0, "relative", "", 0, 10, "near")
    assert relative.without_flying() is relative
