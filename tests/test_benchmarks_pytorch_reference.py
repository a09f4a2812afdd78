"""A bundle says which network PyTorch should run beside it, with all that the network was told when it was exported."""

import numpy as np

from fathom.benchmarks.pytorch_reference import open_reference


def test_vpd_runs_for_the_kind_of_room_it_was_exported_for(tiny_bundle):
    bundle = tiny_bundle("vpd-tiny")
    with open_reference(bundle) as reference:
        depth_m = reference.predict(np.zeros((60, 80, 3), np.uint8)).depth_m
    assert depth_m.shape == (60, 80) and np.isfinite(depth_m).all()
