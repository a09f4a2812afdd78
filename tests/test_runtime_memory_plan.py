"""Where tensors between stages lie on the device."""

import numpy as np

from fathom.runtime.tensorrt.memory_plan import Lifetime, plan_memory


def test_places_of_tensors_are_used_again_but_never_shared():
    """Random lifetimes: no two tensors that are alive together overlap, everything is aligned, the least possible is not missed by far."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        lifetimes = []
        for k in range(int(generator.integers(1, 12))):
            first = int(generator.integers(-1, 6))
            lifetimes.append(Lifetime(str(k), int(generator.integers(0, 5000)), first, first + int(generator.integers(0, 5))))
        offsets, size = plan_memory(lifetimes)
        needed = 0
        for step in range(-1, 12):
            alive = [life for life in lifetimes if life.first <= step <= life.last]
            needed = max(needed, sum(-(-max(life.nbytes, 1) // 256) * 256 for life in alive))
            for one in alive:
                assert offsets[one.name] % 256 == 0 and offsets[one.name] + one.nbytes <= size
                for other in alive:
                    if one.name < other.name:
                        apart = offsets[one.name] + one.nbytes <= offsets[other.name] or offsets[other.name] + other.nbytes <= offsets[one.name]
                        assert apart, (one, other)
        assert needed <= size <= 2 * needed
