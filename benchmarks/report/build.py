"""Results to a report: the verdict first, then the table, the drawings, and what was not measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ...runtime.errors import AccuracyError
from ..record.statistics import LEAST
from .accuracy_sections import metric_cells, protocol_words, scale_section, stage_cost_section, worst_section
from .document import DASH, Block, Cell, Given, Listing, Paragraph, Part, Report, Results, Section, Table, with_interval
from .latency_sections import (
    conditions_section,
    distribution_plot,
    distribution_section,
    layers_section,
    memory_section,
    pareto_plot,
    photo_parts_section,
    stages_section,
    sweep_section,
    timed_rows,
)
from .measure import MASKS
from .pairing import Engine, Network, read_networks

BUSY = 0.1  # share of the processor that others have, beyond which times are of a disturbed machine
GOOD_ENOUGH = 0.01  # relative loss of accuracy at which a faster engine is still recommended


def build_report(paths: Sequence[str | Path]) -> Report:
    """Everything that the results say.

    Raises:
        InputError: see ``pairing.read_networks``.
    """
    networks = read_networks(paths)
    sections: list[Section] = []
    if len(networks) > 1:
        sections.append(Section("In short", (Listing(tuple(verdict(network) for network in networks)),), 2))
    for network in networks:
        sections.append(Section(network.name, _top(network), 2))
        parts = (
            distribution_section,
            scale_section,
            stages_section,
            layers_section,
            photo_parts_section,
            stage_cost_section,
            sweep_section,
            memory_section,
            worst_section,
            conditions_section,
        )
        sections += [section for make in parts if (section := make(network)) is not None]
        sections += [Section("Not measured", (Listing(tuple(_missing(network))),)), _origin(network)]
    title = f"{networks[0].name}: how exact, how fast" if len(networks) == 1 else "How exact and how fast these networks are"
    return Report(title, tuple(sections))


def _top(network: Network) -> tuple[Block, ...]:
    """Verdict, warning, the table of all engines and the picture of it."""
    blocks: list[Block] = [Paragraph(verdict(network), "verdict"), *_warnings(network)]
    if any(row.get("untrained") for results in network.records for row in results.record["rows"]):
        meaning = "masks mean" if network.measure is MASKS else "depth means"
        blocks.append(Paragraph((f"The weights are random: the times are real, the {meaning} nothing.",), "alarm"))
    latency = network.latency
    if latency is not None and (latency.value("conditions", "others_busy") or 0) > BUSY:
        share = latency.number("conditions", "others_busy", unit="percent")
        blocks.append(Paragraph(("The machine was busy: other programs had ", share, " of the processor while the times were taken."), "alarm"))
    lines: list[tuple[Cell, ...]] = []
    for engine in network.engines:
        lines.append((Given(engine.name), *metric_cells(network, engine.accuracy), *_time_cells(network, engine)))
    heads = ("engine", *network.measure.heads, "photo p50 ms", "p99 ms", "of first row")
    blocks += [Table(heads, tuple(lines)), Paragraph(protocol_words(network))]
    return (*blocks, *(plot for plot in (pareto_plot(network), distribution_plot(network)) if plot is not None))


def _warnings(network: Network) -> list[Block]:
    """For every row of which some images gave nothing that can be used, and where too few were scored."""
    accuracy, found = network.accuracy, []
    if accuracy is None:
        return []
    measured = accuracy.number("data", "measured", unit="count")
    if (accuracy.value("data", "measured") or 0) < LEAST:
        words = f" {network.measure.samples}: too few to tell engines apart, or where a mean lies."
        found.append(Paragraph(("Scored on ", measured, " of ", accuracy.number("data", "count", unit="count"), words), "alarm"))
    for place, row in enumerate(accuracy.record["rows"]):
        if row.get("failed"):
            counts = (accuracy.number("rows", place, "failed", unit="count"), " of ", measured)
            found.append(Paragraph((Given(row["name"]), " FAILED: ", *counts, f" {network.measure.samples} gave nothing that can be used."), "alarm"))
    return found


def _time_cells(network: Network, engine: Engine) -> tuple[Cell, ...]:
    latency = network.latency
    if latency is None or engine.latency is None or latency.record["rows"][engine.latency]["is_skipped"]:
        return (DASH, DASH, DASH)
    way = ("rows", engine.latency, "latency_ms", "photo")
    p50 = with_interval(latency.number(*way, "p50", unit="ms"), latency.interval(*way, "p50_interval", unit="ms"))
    ratio_way = ("rows", engine.latency, "difference", "ratio", "photo")
    ratio = with_interval(latency.number(*ratio_way, "p50", unit="ratio"), latency.interval(*ratio_way, "p50_interval", unit="ratio"))
    return (p50, latency.number(*way, "p99", unit="ms"), ratio if latency.value(*ratio_way) else "first row")


def verdict(network: Network) -> tuple[Part, ...]:
    """One sentence: which engine to take, what it costs and what it gives; only of numbers that stand in the results."""
    best, exact = _best(network)
    if best is None:
        failed = any(_failed(network, engine) for engine in network.engines)
        return ("No engine can be recommended: none passed.",) if failed else ("Nothing could be measured.",)
    parts: list[Part] = [Given(best.name)] if exact else ["None is known to be as exact as the first row. The most exact, ", Given(best.name), ","]
    latency, accuracy, metric = network.latency, network.accuracy, network.measure.metric
    way = ("rows", best.latency, "latency_ms", "photo", "p50")
    timed = best.latency is not None and latency.value(*way) is not None
    if timed:
        ratio = ("rows", best.latency, "difference", "ratio", "photo", "p50")
        parts += [" takes ", latency.number(*way, unit="ms"), " ms for a photo"]
        if latency.value(*ratio):
            parts += [", ", latency.number(*ratio, unit="ratio"), " of the time of ", latency.given("rows", best.latency, "difference", "to")]
    if best.accuracy is not None and accuracy.value("rows", best.accuracy, "means"):
        parts += [" and " if timed else " ", f"reaches {metric} ", accuracy.number("rows", best.accuracy, "means", metric, unit="metric")]
        change = ("rows", best.accuracy, "difference", "relative", metric)
        if accuracy.value(*change) is not None:
            parts += [", ", accuracy.number(*change, unit="share"), " beside ", accuracy.given("rows", best.accuracy, "difference", "to")]
    return (*parts, ".")


def _failed(network: Network, engine: Engine) -> bool:
    """Whether an engine gave images without usable numbers, or was refused for what it computes: nobody is to take it, however fast it is."""
    scored = network.accuracy.record["rows"][engine.accuracy] if engine.accuracy is not None else {}
    timed = network.latency.record["rows"][engine.latency] if engine.latency is not None else {}
    return bool(scored.get("failed")) or timed.get("skip_code") == AccuracyError.exit_code


def _best(network: Network) -> tuple[Engine | None, bool]:
    """The fastest engine whose accuracy is at most ``GOOD_ENOUGH`` worse than the first row's; without times the most exact one.

    An engine that failed is never taken; if others failed, neither is one that nobody scored.

    Returns:
        the engine, and False if it is only the most exact one because of none it is known that it is good enough.
    """
    timed = [place for place, _ in timed_rows(network.latency)] if network.latency else []
    passed = [engine for engine in network.engines if not _failed(network, engine)]
    engines = [engine for engine in passed if engine.latency in timed or not timed]
    measure, rows = network.measure, network.accuracy.record["rows"] if network.accuracy else []
    scored = [engine for engine in engines if engine.accuracy is not None and rows[engine.accuracy]["means"]]
    losses = {engine: measure.loss(rows[engine.accuracy]) for engine in scored}
    good = [engine for engine, loss in losses.items() if loss is not None and loss <= GOOD_ENOUGH]
    if scored and not (good and timed):
        return min(good or scored, key=lambda engine: measure.error(rows[engine.accuracy])), bool(good)
    if not timed or (not scored and len(passed) < len(network.engines)):
        return None, True
    times = network.latency.record["rows"]
    return min(good or engines, key=lambda engine: times[engine.latency]["latency_ms"].get("photo", times[engine.latency]["latency_ms"]["host"])["p50"]), True


def _missing(network: Network) -> list[tuple[Part, ...]]:
    """Sentences about what nobody measured."""
    found: list[tuple[Part, ...]] = []
    if network.accuracy is None:
        found.append(("Accuracy: there is no result of it here.",))
    if network.latency is None:
        return [*found, ("Latency: there is no result of it here.",)]
    latency = network.latency
    for place, row in enumerate(latency.record["rows"]):
        if row["is_skipped"]:
            found.append((Given(row["name"]), ": ", latency.given("rows", place, "skip_reason")))
    timed = timed_rows(latency)
    if timed and not any("device" in row["latency_ms"] for _, row in timed):
        found.append(("Times on a device: nothing here ran on a GPU.",))
    if timed and not any((row.get("energy") or {}).get("joules_per_query") for _, row in timed):
        found.append(("Energy: no counter moved or was there.",))
    if timed and not any(row.get("stages") for _, row in timed):
        found.append(("Stages one by one.",))
    if timed and not any(len(row.get("sweep") or ()) > 1 for _, row in timed):
        found.append(("Batches of more than one photo.",))
    for place, row in timed:
        if (row.get("cold_start_ms") or {}).get("is_skipped"):
            found.append(("Cold start of ", Given(row["name"]), ": ", latency.given("rows", place, "cold_start_ms", "skip_reason")))
    alone = [engine.name for engine in network.engines if engine.accuracy is None and network.accuracy is not None]
    if alone:
        found.append(("Accuracy of ", Given(", ".join(alone)), "."))
    quiet = latency.value("conditions", "readings") or {}
    if not any("temperature" in name for name in quiet):
        found.append(("Temperature: no sensor can be read.",))
    return found or [("Nothing that this report knows of.",)]


def _origin(network: Network) -> Section:
    """Machine, versions, seeds, and how to repeat it."""
    items: list[tuple[Part, ...]] = []
    for results in network.records:
        versions = ", ".join(f"{name} {version}" for name, version in results.value("meta", "version").items())
        items.append(("Command: ", Given(shlex.join(results.value("meta", "argv")))))
        items.append(("Made ", results.given("meta", "date"), ", commit ", results.given("meta", "commit"), ", seed ", results.number("meta", "seed"), "."))
        items.append(("Versions: ", Given(versions), "."))
        items.append(_machine(results))
    return Section("Machine, versions, how to repeat it", (Listing(tuple(dict.fromkeys(items))),))


def _machine(results: Results) -> tuple[Part, ...]:
    system = ("system",)
    parts: list[Part] = ["Machine: ", results.given(*system, "host_processor_model_name"), ", "]
    parts += [results.number(*system, "host_processor_core_count", unit="count"), " cores, ", results.number(*system, "host_memory_capacity_gib"), " GiB, "]
    parts += [results.given(*system, "operating_system"), "; GPU: "]
    gpu = results.value(*system, "accelerator_model_name")
    return (*parts, Given(gpu) if gpu else "none", ".")
