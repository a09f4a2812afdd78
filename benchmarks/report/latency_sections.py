"""The parts of a report that are about time, memory and energy."""

from __future__ import annotations

from .document import DASH, Block, Cell, Given, Paragraph, Part, Plot, Results, Section, Table, with_interval
from .pairing import Network
from .plots import SERIES, Canvas, bars, curves, steps

BOUNDARIES = ("photo", "host", "device")
LAYERS = 10  # of each engine


def timed_rows(results: Results) -> list[tuple[int, dict]]:
    """Rows that were timed, with their places."""
    return [(place, row) for place, row in enumerate(results.record["rows"]) if not row["is_skipped"]]


def distribution_section(network: Network) -> Section | None:
    """Percentiles of every boundary, the distribution, and frames dropped at fixed rates."""
    latency = network.latency
    if latency is None or not timed_rows(latency):
        return None
    rows = timed_rows(latency)
    lines: list[tuple[Cell, ...]] = []
    for boundary in BOUNDARIES:
        for place, row in rows:
            if boundary in row["latency_ms"]:
                way = ("rows", place, "latency_ms", boundary)
                p50 = with_interval(latency.number(*way, "p50", unit="ms"), latency.interval(*way, "p50_interval", unit="ms"))
                others = [latency.number(*way, name, unit="ms") for name in ("p90", "p99", "min", "max", "jitter")]
                lines.append((Given(row["name"]), boundary, p50, *others, latency.number("rows", place, "samples_per_second", boundary, unit="ms")))
    table = Table(("engine", "boundary", "p50 ms", "p90", "p99", "min", "max", "jitter (p99 - p50)", "images/s"), tuple(lines))
    words = "photo: a decoded photo to its finished map; host: tensors to tensors in host memory; device: the network alone, between two CUDA events."
    return Section("Latency", (Paragraph((words,)), table, *_rates(latency, rows)))


def _rates(latency: Results, rows: list[tuple[int, dict]]) -> tuple[Block, ...]:
    rated = [(place, row) for place, row in rows if row.get("fixed_rate")]
    if not rated:
        return ()
    lines = []
    for place, row in rated:
        cells: list[Cell] = [Given(row["name"])]
        for k in range(len(row["fixed_rate"])):
            way = ("rows", place, "fixed_rate", k)
            numbers = (latency.number(*way, "dropped", unit="count"), " of ", latency.number(*way, "frames", unit="count"))
            cells.append((latency.number(*way, "rate_hz", unit="count"), " Hz: ", latency.number(*way, "drop_rate", unit="percent"), " (", *numbers, ")"))
        lines.append(tuple(cells))
    words = "Frames dropped by a camera at a fixed rate, worked out from the samples of a photo: a frame that comes while one is in work is lost."
    return (Paragraph((words,)), Table(("engine", "slow camera", "middle", "fast"), tuple(lines)))


def stages_section(network: Network) -> Section | None:
    """Milliseconds of every stage."""
    latency = network.latency
    if latency is None:
        return None
    blocks: list[Block] = []
    lines: list[tuple[Cell, ...]] = []
    for place, row in timed_rows(latency):
        stages = row.get("stages")
        if stages:
            numbers = [latency.number("rows", place, "stages", k, "latency_ms", "p50", unit="ms") for k in range(len(stages))]
            canvas = Canvas(_name(f"stages-{place}", network), f"Stages of {row['name']}, medians on the {stages[0]['boundary']}", 0.9 + 0.34 * len(stages))
            bars(canvas, [stage["name"] for stage in stages], numbers, [SERIES[place % len(SERIES)]] * len(stages))
            canvas.labels("ms", "")
            blocks.append(canvas.plot())
            p99 = [latency.number("rows", place, "stages", k, "latency_ms", "p99", unit="ms") for k in range(len(stages))]
            lines += [(Given(row["name"]), Given(stage["name"]), number, last) for stage, number, last in zip(stages, numbers, p99, strict=True)]
    return Section("Stages", (*blocks, Table(("engine", "stage", "p50 ms", "p99"), tuple(lines)))) if blocks else None


def layers_section(network: Network) -> Section | None:
    """The layers of engines that take longest."""
    latency = network.latency
    lines: list[tuple[Cell, ...]] = []
    for place, row in [] if latency is None else timed_rows(latency):
        for k, layer in enumerate(row.get("layers", ())[:LAYERS]):
            way = ("rows", place, "layers", k)
            numbers = (latency.number(*way, "p50_ms", unit="ms"), latency.number(*way, "share", unit="percent"))
            lines.append((Given(row["name"]), Given(layer["stage"]), Given(layer["name"]), *numbers))
    if not lines:
        return None
    words = "As the compiler's profiler tells them, stage by stage and not as one graph: where the time goes, not how much it is."
    return Section("Slowest layers", (Paragraph((words,)), Table(("engine", "stage", "layer", "p50 ms", "share of all layers"), tuple(lines))))


def photo_parts_section(network: Network) -> Section | None:
    """What a photo takes on the GPU beside the network."""
    latency = network.latency
    told = [] if latency is None else [(place, row) for place, row in timed_rows(latency) if row.get("photo_parts_ms")]
    if not told:
        return None
    names = list(told[0][1]["photo_parts_ms"])
    lines = [(Given(row["name"]), *(latency.number("rows", place, "photo_parts_ms", name, unit="ms") for name in names)) for place, row in told]
    words = "One photo alone, medians by the device's clock; host is what the boundary photo has beside them."
    return Section("Where a photo's time goes", (Paragraph((words,)), Table(("engine", *(f"{name.replace('_', ' ')}, ms" for name in names)), tuple(lines))))


def sweep_section(network: Network) -> Section | None:
    """Images per second over the batch."""
    latency = network.latency
    swept = [] if latency is None else [(place, row) for place, row in timed_rows(latency) if any(not e["is_skipped"] for e in row.get("sweep", ()))]
    if not any(len(row["sweep"]) > 1 for _, row in swept):
        return None
    lines, lines_of = [], []
    for place, row in swept:
        entries = [(k, entry) for k, entry in enumerate(row["sweep"]) if not entry["is_skipped"]]
        lines_of.append((row["name"], [entry["batch"] for _, entry in entries], [entry["samples_per_second"] for _, entry in entries]))
        for k, _ in entries:
            way = ("rows", place, "sweep", k)
            per_second, p50 = latency.number(*way, "samples_per_second", unit="ms"), latency.number(*way, "latency_ms", "p50", unit="ms")
            lines.append((Given(row["name"]), latency.number(*way, "batch", unit="count"), per_second, p50))
    canvas = Canvas(_name("sweep", network), "Images per second by batch (host)", 3.0)
    curves(canvas, lines_of, "o")
    canvas.axes.set_ylim(0)
    canvas.labels("batch", "images per second")
    return Section("Batches", (canvas.plot(), Table(("engine", "batch", "images/s", "p50 ms of the batch"), tuple(lines))))


def memory_section(network: Network) -> Section | None:
    """Memory, cold start and energy, in one row for each engine."""
    latency = network.latency
    rows = [] if latency is None else [(place, row) for place, row in timed_rows(latency) if "energy" in row or row["memory"].get("device_nbytes")]
    if not rows:
        return None
    memory, start = [], []
    for place, row in rows:
        way = ("rows", place, "memory")
        names = ("weights_nbytes", "tensors_nbytes", "host_peak_nbytes", "host_anonymous_nbytes", "device_nbytes")
        memory.append((Given(row["name"]), *(latency.number(*way, name, unit="mib") for name in names)))
        cold = ("rows", place, "cold_start_ms")
        times = [latency.number(*cold, name, unit="ms") for name in ("import", "open", "first_query", "total")]
        joules = latency.number("rows", place, "energy", "joules_per_query", unit="joules")
        start.append((Given(row["name"]), *times, joules if joules != DASH else "not measured", latency.given("rows", place, "energy", "source")))
    heads = ("engine", "weights", "tensors between stages", "host, peak", "host, not of files", "device")
    words = "host: of a process that opens the engine and answers one query; peak counts mapped files too. Cold start: the same process, files in memory."
    blocks: list[Block] = [Paragraph((words,)), Table(heads, tuple(memory))]
    blocks.append(Table(("engine", "imports ms", "open", "first query", "process start to answer", "energy per photo", "source"), tuple(start)))
    return Section("Memory, cold start, energy", tuple(blocks))


def conditions_section(network: Network) -> Section | None:
    """What the machine did meanwhile."""
    latency = network.latency
    conditions = latency.value("conditions") if latency is not None else None
    if not conditions:
        return None
    lines: list[tuple[Cell, ...]] = [
        (name.replace("_", " "), *(latency.number("conditions", "readings", name, end) for end in ("min", "max", "last"))) for name in conditions["readings"]
    ]
    throttling: Part = Given(", ".join(conditions["throttling"])) if conditions["throttling"] else "none seen"
    parts: list[Part] = ["Others had ", latency.number("conditions", "others_busy", unit="percent"), " of the processor, the hypervisor took "]
    parts += [latency.number("conditions", "stolen", unit="percent"), ", over ", latency.number("conditions", "duration_s", unit="ms"), " s. Throttling: "]
    parts += [throttling, ". Power mode: ", latency.given("system", "power_mode"), ". Governor: ", latency.given("system", "host_processor_governor"), "."]
    blocks: tuple[Block, ...] = (Paragraph(tuple(parts)),)
    return Section("Clocks and temperature during the run", (*blocks, Table(("reading", "least", "greatest", "last"), tuple(lines))) if lines else blocks)


def distribution_plot(network: Network) -> Plot | None:
    """Share of the rounds that were at least as fast."""
    rows = timed_rows(network.latency) if network.latency is not None else []
    if not rows:
        return None
    canvas = Canvas(_name("distribution", network), "Latency of one photo, cumulative", 3.4)
    steps(canvas, [(row["name"], row["sample_times_ms"].get("photo") or row["sample_times_ms"]["host"]) for _, row in rows])
    canvas.labels("ms", "share of rounds")
    return canvas.plot()


def pareto_plot(network: Network) -> Plot | None:
    """Accuracy against latency."""
    from .plots import front, points

    entries, measure = [], network.measure
    sign, best = (-1, "upper") if measure.larger_is_better else (1, "lower")
    for engine in network.engines:
        if engine.accuracy is None or engine.latency is None:
            continue
        row, scored = network.latency.record["rows"][engine.latency], network.accuracy.record["rows"][engine.accuracy]
        found = row["latency_ms"].get("photo")
        if found and scored["means"]:
            y_ends = (scored["means_interval"] or {}).get(measure.metric)
            entries.append((engine.name, found["p50"], scored["means"][measure.metric], found["p50_interval"], y_ends))
    if not entries:
        return None
    canvas = Canvas(_name("pareto", network), f"Accuracy against latency: {best} left is better", 3.4)
    points(canvas, entries)
    front(canvas, [(x, y) for _, x, y, *_ in entries], sign)
    canvas.labels("ms for one photo, median", f"{measure.metric}, mean over {measure.samples}")
    return canvas.plot()


def _name(what: str, network: Network) -> str:
    return f"{what}-{network.name}"
