"""The parts of a report that are about metres, or about masks."""

from __future__ import annotations

import re

from ...runtime.errors import InputError
from .document import DASH, Block, Cell, Given, Paragraph, Part, Pictures, Results, Section, Table, with_interval
from .measure import MASKS
from .pairing import Network
from .plots import SERIES, Canvas, bars

WORST = 5


def protocol_words(network: Network) -> tuple[Part, ...]:
    """By what protocol and on which data the numbers were obtained."""
    accuracy, latency = network.accuracy, network.latency
    parts: list[Part] = []
    if accuracy is not None:
        parts += ["Accuracy: evaluation ", accuracy.given("evaluation", "name")]
        parts += [", alignment ", accuracy.given("evaluation", "alignment")] if "alignment" in accuracy.record["evaluation"] else []
        parts += [", data ", accuracy.given("data", "name"), " (", accuracy.number("data", "measured", unit="count"), f" {network.measure.samples}), protocol "]
        parts += [accuracy.given("rows", 0, "protocol"), ". "]
        if any(row["means_interval"] for row in accuracy.record["rows"]):
            parts += ["Intervals: ", accuracy.given("confidence", "method"), ", level ", accuracy.number("confidence", "level"), ". "]
    if latency is not None:
        parts += ["Latency: protocol ", latency.given("protocol"), ", network input ", *_by(latency, "input_shape"), ", photo ", *_by(latency, "photo_shape")]
        parts += [", ", latency.number("min_query_count", unit="count"), " rounds in turns after ", latency.number("warm_up_query_count", unit="count")]
        parts += [" that do not count. Intervals: ", latency.given("confidence", "method"), "."]
    return tuple(parts)


def _by(results: Results, name: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    for place in range(len(results.value(name) or ())):
        parts += [" x " if place else "", results.number(name, place, unit="count")]
    return tuple(part for part in parts if part != "")


def stage_cost_section(network: Network) -> Section | None:
    """What the precision of each stage costs."""
    accuracy = network.accuracy
    if accuracy is None:
        return None
    blocks: list[Block] = []
    lines: list[tuple[Cell, ...]] = []
    for place, row in enumerate(accuracy.record["rows"]):
        stages = row.get("stages")
        if not stages:
            continue
        metres = all(stage["depth_change_m"] is not None for stage in stages)
        quantity, unit = ("depth_change_m", "mm") if metres else ("depth_change", "share")
        numbers = [accuracy.number("rows", place, "stages", k, quantity, unit=unit) for k in range(len(stages))]
        canvas = Canvas(f"cost-{network.name}-{place}", f"Depth moved by each stage's precision, {row['name']}", 0.9 + 0.34 * len(stages))
        bars(canvas, [f"{stage['name']}, {stage['precision']}" for stage in stages], numbers, [SERIES[1]] * len(stages))
        canvas.labels("mm, mean of the absolute change" if metres else "% of the mean depth", "")
        blocks.append(canvas.plot())
        shares = [accuracy.number("rows", place, "stages", k, "depth_change", unit="share") for k in range(len(stages))]
        named = [(Given(row["name"]), Given(stage["name"]), Given(stage["precision"])) for stage in stages]
        lines += [(*who, number if metres else DASH, share) for who, number, share in zip(named, numbers, shares, strict=True)]
    if not blocks:
        return None
    heads = ("engine", "stage", "precision", "depth moved", "of the mean depth")
    words = "The FP32 chain with one stage of the engine in it: how far the map moves, on the first photos of the data."
    return Section("What each stage's precision costs", (Paragraph((words,)), *blocks, Table(heads, tuple(lines))))


def scale_section(network: Network) -> Section | None:
    """How much of the error is scale: whole maps too near or too far, and whether the camera decides it."""
    accuracy = network.accuracy
    lines: list[tuple[Cell, ...]] = []
    for place, row in enumerate(accuracy.record["rows"] if accuracy is not None else ()):
        if not row.get("scale"):
            continue
        way = ("rows", place, "scale")
        factors = [accuracy.number(*way, name, unit="ratio") for name in ("low", "median", "high")]
        fitted = [accuracy.number(*way, name, unit="metric") for name in ("abs_rel", "delta1")]
        camera = accuracy.number(*way, "with_focal", "rank_correlation", unit="ratio")
        lines.append((Given(row["name"]), *factors, *fitted, with_interval(camera, accuracy.interval(*way, "with_focal", "interval", unit="ratio"))))
    if not lines:
        return None
    heads = ("engine", "factor: low", "median", "high", "abs_rel left", "delta1", "goes with focal length")
    words = "A map's factor is the median of prediction / truth over an image: below one, the whole map is too near. The errors are those that are left "
    words += "where each map is divided by its factor. The last column is the factor's rank correlation with the camera's focal length: where it is "
    words += "not near zero, one correction for each camera helps."
    return Section("How much is scale", (Paragraph((words,)), Table(heads, tuple(lines))))


def worst_section(network: Network) -> Section | None:
    """The photos with the greatest errors, with their error maps.

    Raises:
        InputError: if a picture does not lie in the result itself: the page loads nothing.
    """
    accuracy = network.accuracy
    if accuracy is not None and network.measure is MASKS:
        return _worst_sentences(accuracy)
    worst = accuracy.value("worst") if accuracy is not None else None
    if not worst:
        return None
    rows = []
    for place, image in enumerate(worst):
        truth: Cell = ("truth, ", accuracy.number("worst", place, "near_m", unit="ratio"), " to ", accuracy.number("worst", place, "far_m", unit="ratio"), " m")
        pictures: list[tuple[Cell, str]] = [("photo", _in_result(image["photo"])), (truth, _in_result(image["truth"]))]
        for error in image["errors"]:
            caption: tuple[Part, ...] = (Given(error["name"]),)
            at = _score_way(accuracy, error["name"], image["id"])
            pictures.append(((*caption, ", abs_rel ", accuracy.number(*at, unit="metric")) if at else caption, _in_result(error["picture"])))
        rows.append(((Given(image["id"]),), tuple(pictures)))
    words = "Error maps: blue is too near, red too far, white is right; full colour from half of the depth on; grey was not counted."
    return Section("The worst photos", (Paragraph((words,)), Pictures(tuple(rows))))


def _in_result(url: str) -> str:
    if not re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*", url):
        raise InputError(f"a picture of the worst photos is {url[:60]!r}", wanted="the picture itself, as data:image/…", fix="measure again with --details")
    return url


def _worst_sentences(accuracy: Results) -> Section | None:
    """The sentences whose masks overlap least over all rows, in pixels."""
    rows = [row for row in accuracy.record["rows"] if row["means"]]
    places = {row["name"]: {sample["id"]: k for k, sample in enumerate(row["samples"])} for row in rows}
    overlaps: dict[str, list[float]] = {}
    for row in rows:
        for sample in row["samples"]:
            overlaps.setdefault(sample["id"], []).append(sample["intersection"] / sample["union"] if sample["union"] else 0.0)
    worst = sorted(overlaps, key=lambda name: (sum(overlaps[name]) / len(overlaps[name]), name))[:WORST]
    lines: list[tuple[Cell, ...]] = []
    for name in worst:
        for number, row in enumerate(accuracy.record["rows"]):
            if name in places.get(row["name"], {}):
                way = ("rows", number, "samples", places[row["name"]][name])
                pixels = [accuracy.number(*way, what, unit="count") for what in ("intersection", "union")]
                lines.append((accuracy.given(*way, "id"), Given(row["name"]), *pixels))
    if not lines:
        return None
    words = "The sentences whose masks overlap least with the true ones: pixels in both, and in either."
    return Section("The worst sentences", (Paragraph((words,)), Table(("sentence", "engine", "in both", "in either"), tuple(lines))))


def _score_way(accuracy: Results, name: str, image: str) -> tuple[str | int, ...] | None:
    """Where an image's abs_rel stands in the row of that name."""
    for place, row in enumerate(accuracy.record["rows"]):
        if row["name"] == name:
            for number, group in enumerate(row["groups"]):
                if image in group["ids"] and len(group["ids"]) == len(group["scores"]):
                    return ("rows", place, "groups", number, "scores", group["ids"].index(image), "values", "abs_rel")
    return None


def metric_cells(network: Network, row: int | None) -> tuple[Cell, ...]:
    """The metric with its interval, its change against the first row with its interval, and the other metrics of the table."""
    accuracy, measure = network.accuracy, network.measure
    if accuracy is None or row is None:
        return (DASH,) * len(measure.heads)
    way, metric = ("rows", row), measure.metric
    mean = with_interval(accuracy.number(*way, "means", metric, unit="metric"), accuracy.interval(*way, "means_interval", metric, unit="metric"))
    mean = "FAILED" if accuracy.value(*way, "failed") else mean
    change: Cell = "first row" if row == 0 else accuracy.number(*way, "difference", "relative", metric, unit="share")
    if row:
        change = with_interval(change, accuracy.interval(*way, "difference", "relative_interval", metric, unit="share"))
    return (mean, change, *(accuracy.number(*way, "means", name, unit="metric") for name in measure.others))
