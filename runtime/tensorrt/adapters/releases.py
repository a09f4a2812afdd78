"""Which releases of TensorRT run here, and which of them belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import EnvironmentMismatchError
from ...jetson import tensorrt_upgrade

WANTED = "8.5 or 8.6 (JetPack 5), or 10.3 and later"


@dataclass(frozen=True)
class Tier:
    """Releases that take the same graphs and are called in the same way.

    Args:
        name: the first of them.
        strongly_typed: the types of the graph are the types of the engine; otherwise they are constraints on its layers.
    """

    name: str
    strongly_typed: bool


TIERS = {(8, 5): Tier("8.5", False), (8, 6): Tier("8.6", False)}
NEWEST, NEWEST_FROM = Tier("10.3", True), (10, 3)


def release(version: str) -> tuple[int, ...]:
    """Major, minor, patch; the build number behind them does not matter."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def library_release(version: str) -> str:
    """The part of a version that a plugin library serves: the major release, and of TensorRT 8 the minor one too (8.6 opens libraries, 8.5 does not)."""
    numbers = release(version)
    return ".".join(map(str, numbers[: 2 if numbers[0] == 8 else 1]))


def tier_of(version: str) -> Tier:
    """The tier of a version of plain TensorRT.

    Raises:
        EnvironmentMismatchError: if it is in none: before 8.5, 9, or 10.0 to 10.2.
    """
    numbers = release(version)[:2]
    if numbers in TIERS:
        return TIERS[numbers]
    if numbers >= NEWEST_FROM:
        return NEWEST
    raise EnvironmentMismatchError(f"TensorRT {version} is installed", wanted=WANTED, fix=tensorrt_upgrade())
