"""Memory plan for inter-stage tensors: one block of device memory, in which disjoint lifetimes share space."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 256


@dataclass(frozen=True)
class Lifetime:
    """One tensor: its size in bytes, the stage that writes it (-1: before the first), and the last stage that reads it (inclusive)."""

    name: str
    nbytes: int
    first: int
    last: int


def plan_memory(lifetimes: list[Lifetime]) -> tuple[dict[str, int], int]:
    """Offsets of all tensors, and the bytes that the block needs. Two tensors overlap only if they are never alive together.

    Large ones are placed first, each at the lowest place that is free for its whole life.
    """
    placed: list[tuple[int, int, Lifetime]] = []
    for life in sorted(lifetimes, key=lambda life: (-life.nbytes, life.first, life.name)):
        size, start = _aligned(life.nbytes), 0
        for begin, end, other in sorted(placed, key=lambda item: item[0]):
            together = life.first <= other.last and other.first <= life.last
            if together and begin < start + size and start < end:
                start = end
        placed.append((start, start + size, life))
    return {life.name: begin for begin, _, life in placed}, max((end for _, end, _ in placed), default=0)


def _aligned(nbytes: int) -> int:
    return -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
