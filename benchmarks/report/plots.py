"""The drawings of a report, as SVG that takes its colours from the page. Bars and points carry numbers of the results; axes carry scales."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import missing_package
from .document import Number, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, GRID = "#010101", "#020202", "#030303"  # stand for the page's own colours
SERIES = tuple(f"#0404{number:02x}" for number in range(6))
WIDTH_IN = 5.6


class Canvas:
    """One drawing with one pair of axes.

    Args:
        name: unique on the page, in any letters.
        title: what it shows.
        height_in: of the drawing.

    Raises:
        EnvironmentMismatchError: if matplotlib is not installed.
    """

    def __init__(self, name: str, title: str, height_in: float = 3.2):
        try:
            import matplotlib as mpl
            from matplotlib.figure import Figure
        except ImportError as error:
            raise missing_package("matplotlib", "bench", "to draw the report") from error
        self.name, self.title, self._drawn = _identifier(name), title, []
        self._settings = {"svg.fonttype": "none", "svg.hashsalt": self.name, "font.size": 9, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}
        self._mpl = mpl
        with mpl.rc_context(self._settings):
            self.figure = Figure((WIDTH_IN, height_in), layout="constrained")
            self.axes: Axes = self.figure.subplots()
        self.figure.patch.set_alpha(0)
        self.axes.patch.set_alpha(0)
        for side in ("top", "right"):
            self.axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            self.axes.spines[side].set_color(GRID)
        self.axes.tick_params(colors=FAINT, length=3)
        self.axes.grid(color=GRID, linewidth=0.6)
        self.axes.set_axisbelow(True)

    def labels(self, x: str, y: str) -> None:
        """Name the axes."""
        self.axes.set_xlabel(x, color=INK)
        self.axes.set_ylabel(y, color=INK)

    def number(self, x: float, y: float, number: Number, **options: Any) -> None:
        """Write a number of a result beside what it belongs to."""
        options = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "color": INK, "fontsize": 8} | options
        self.axes.annotate(number.text, (x, y), **options).set_gid(f"number:{number.at}")

    def belongs(self, drawn: Any, name: str) -> None:
        """Remember whose a line or point is, for the legend."""
        self._drawn.append((drawn, name))

    def legend(self) -> None:
        """Which colour is whose, where there is more than one."""
        if len(self._drawn) > 1:
            handles, places = [drawn for drawn, _ in self._drawn], [str(place) for place in range(len(self._drawn))]
            legend = self.figure.legend(handles, places, loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, fontsize=8)
            for text, (_, name) in zip(legend.get_texts(), self._drawn, strict=True):
                text.set_text(_short(name))  # as a label of the handle, a name that begins with _ would be left out

    def plot(self) -> Plot:
        """The finished drawing."""
        stream = io.StringIO()
        with self._mpl.rc_context(self._settings):
            self.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        return Plot(self.name, self.title, _themed(stream.getvalue(), self.name))


def _themed(svg: str, name: str) -> str:
    """The element alone, with ids of its own and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<svg ([^>]*?)height=\"[^\"]*\" ?", r"<svg \1", svg, count=1)
    svg = re.sub(r"(<svg [^>]*?) width=\"[^\"]*\"", r'\1 role="img"', svg, count=1)
    return re.sub(r"<[^>]*>", lambda tag: _themed_tag(tag[0], name), svg).strip()


def _themed_tag(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r"url\(#", f"url(#{name}-", tag)
    tag = re.sub(r'(xlink:href|href)="#', rf'\1="#{name}-', tag)
    for colour, variable in ((INK, "ink"), (FAINT, "faint"), (GRID, "grid"), *((colour, f"c{place}") for place, colour in enumerate(SERIES))):
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


def _identifier(name: str) -> str:
    """The name as an id of a page: without letters that mean something there, and another for every name."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    return safe if safe == name else f"{safe}-{zlib.crc32(name.encode()):08x}"


def bars(canvas: Canvas, names: Sequence[str], numbers: Sequence[Number | None], colours: Sequence[str] | None = None) -> None:
    """Horizontal bars from the top down, each with its number; a name without one has no bar."""
    places = np.arange(len(names))[::-1]
    values = [0.0 if number is None else number.shown for number in numbers]
    canvas.axes.barh(places, values, 0.62, color=list(colours or [SERIES[0]] * len(names)))
    canvas.axes.set_yticks(places, [_short(name) for name in names])
    canvas.axes.set_xlim(0, max([*values, 1e-9]) * 1.22)
    canvas.axes.grid(False, axis="y")
    for place, value, number in zip(places, values, numbers, strict=True):
        if number is not None:
            canvas.number(value, float(place), number)
    for tick in canvas.axes.get_yticklabels():
        tick.set_color(INK)


def points(canvas: Canvas, entries: Sequence[tuple[str, float, float, tuple[float, float] | None, tuple[float, float] | None]]) -> None:
    """Named points with the intervals they lie in (x, then y)."""
    for place, (name, x, y, x_ends, y_ends) in enumerate(entries):
        colour = SERIES[place % len(SERIES)]
        errors = [None if ends is None else [[max(0, at - ends[0])], [max(0, ends[1] - at)]] for at, ends in ((x, x_ends), (y, y_ends))]
        marker = "osD^vP"[place % 6]
        point = canvas.axes.errorbar([x], [y], errors[1], errors[0], fmt=marker, color=colour, capsize=2, elinewidth=1, markersize=6)
        canvas.belongs(point, name)
    canvas.axes.margins(0.15)
    canvas.legend()


def front(canvas: Canvas, entries: Sequence[tuple[float, float]], sign: int = 1) -> None:
    """Join the points that no other beats in both; ``sign`` is -1 where a larger y is better."""
    best = sorted(point for point in entries if not any(o != point and o[0] <= point[0] and sign * o[1] <= sign * point[1] for o in entries))
    if len(best) > 1:
        canvas.axes.plot(*zip(*best, strict=True), color=FAINT, linewidth=1, linestyle="--", zorder=1)


def curves(canvas: Canvas, entries: Sequence[tuple[str, Sequence[float], Sequence[float]]], marker: str = "") -> None:
    """Named lines."""
    for place, (name, x, y) in enumerate(entries):
        (line,) = canvas.axes.plot(x, y, color=SERIES[place % len(SERIES)], marker=marker or None, markersize=4, linewidth=1.5)
        canvas.belongs(line, name)
    canvas.legend()


def steps(canvas: Canvas, entries: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Share of the samples that were at least as fast, for each name."""
    for place, (name, samples) in enumerate(entries):
        ordered = np.sort(np.asarray(samples, np.float64))
        (line,) = canvas.axes.step(ordered, np.arange(1, ordered.size + 1) / ordered.size, where="post", color=SERIES[place % len(SERIES)])
        canvas.belongs(line, name)
    canvas.axes.set_ylim(0, 1.02)
    canvas.legend()


def _short(name: str) -> str:
    """A name for the drawing, whose ``$`` is no formula."""
    return (name if len(name) <= 30 else f"{name[:18]}…{name[-11:]}").replace("$", r"\$")
