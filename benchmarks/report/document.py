"""What a report says, before it is a web page or Markdown. Every number knows where in the results it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DASH = "-"
UNITS = {  # name of a format -> (factor, digits after the point or significant digits, what is written behind)
    "ms": (1, "auto", ""),
    "metric": (1, ".4f", ""),
    "share": (100, "+.3f", " %"),
    "percent": (100, ".1f", " %"),
    "ratio": (1, ".2f", ""),
    "count": (1, ".0f", ""),
    "mib": (1 / 2**20, "auto", " MiB"),
    "mm": (1000, ".2f", " mm"),
    "joules": (1, ".3g", " J"),
    "plain": (1, "g", ""),
}


@dataclass(frozen=True)
class Number:
    """A number of a result, as it is shown.

    Args:
        at: its address: ``latency/rows/0/latency_ms/photo/p50``.
        value: as it stands there.
        unit: one of ``UNITS``.
    """

    at: str
    value: float
    unit: str = "plain"

    @property
    def shown(self) -> float:
        """In its unit, not rounded."""
        return self.value * UNITS[self.unit][0]

    @property
    def text(self) -> str:
        """Rounded, with its unit."""
        _, form, unit = UNITS[self.unit]
        value = self.shown
        if form == "auto":
            size = abs(value)
            form = ".0f" if size >= 100 else ".1f" if size >= 10 else ".2f" if size >= 1 else ".3f"
        return f"{value:{form}}{unit}"


@dataclass(frozen=True)
class Given:
    """Words that stand in a result (names, versions, commands)."""

    text: str


Part = str | Number | Given
Cell = Part | tuple[Part, ...]


@dataclass(frozen=True)
class Paragraph:
    """A sentence or two; ``kind`` is "", ``verdict`` or ``alarm``."""

    parts: tuple[Part, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Rows below a head; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A drawing: ``svg`` is an element, ``title`` says what it shows."""

    name: str
    title: str
    svg: str


@dataclass(frozen=True)
class Pictures:
    """Photos with their maps: per row a name and (caption, data URL)."""

    rows: tuple[tuple[tuple[Part, ...], tuple[tuple[Cell, str], ...]], ...]


@dataclass(frozen=True)
class Listing:
    """Sentences, one below the other."""

    items: tuple[tuple[Part, ...], ...]


Block = Paragraph | Table | Plot | Pictures | Listing


@dataclass(frozen=True)
class Section:
    """Blocks under a heading of level 2 or 3."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 3


@dataclass(frozen=True)
class Report:
    """The whole."""

    title: str
    sections: tuple[Section, ...]


class Results:
    """A record that gives out its numbers with their addresses.

    Args:
        root: first word of every address: which result it is.
        record: JSON values.
    """

    def __init__(self, root: str, record: dict[str, Any]):
        self.root, self.record = root, record

    def value(self, *way: str | int) -> Any:
        """What stands there; None if there is nothing."""
        place: Any = self.record
        for step in way:
            try:
                place = place[step]
            except (KeyError, IndexError, TypeError):
                return None
        return place

    def number(self, *way: str | int, unit: str = "plain") -> Part:
        """The number that stands there; a dash if there is none."""
        value = self.value(*way)
        if value is None or isinstance(value, (bool, str, list, dict)):
            return DASH
        return Number("/".join(map(str, (self.root, *way))), value, unit)

    def interval(self, *way: str | int, unit: str = "plain") -> tuple[Part, ...]:
        """The two ends that stand there, as ``low to high``; nothing if there are none."""
        ends = self.value(*way)
        if not isinstance(ends, list) or len(ends) != 2:
            return ()
        return (self.number(*way, 0, unit=unit), " to ", self.number(*way, 1, unit=unit))

    def given(self, *way: str | int) -> Part:
        """The words that stand there; a dash if there are none."""
        value = self.value(*way)
        return Given(str(value)) if isinstance(value, str) and value else DASH


def with_interval(number: Part, interval: Sequence[Part]) -> Cell:
    """A number and, in brackets behind it, where it lies."""
    return (number, " (", *interval, ")") if interval else number
