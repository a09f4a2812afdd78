"""The whole calibration of a bundle: images, ranges, search, and the two files that come of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..runtime.artefact.bundle import MANIFEST, BundleDirectory
from ..runtime.artefact.manifest import FileFacts
from ..runtime.artefact.manifest_json import manifest_bytes
from ..runtime.errors import InputError, UsageError
from ..runtime.files import refuse_existing, sha256_of, whole_file
from .artefact import model_fingerprint
from .graph.chain import Chain
from .observation.flow import Flow
from .observation.images import Chosen
from .observation.journal import Journal
from .observation.observe import DEFAULT_MEMORY_NBYTES, OnProgress, left_out, observe, prepare_photos, silent
from .observation.photo import Photo
from .observation.split import Split, split
from .observation.stage_observation import StageObservation
from .precision.precision_plan import PrecisionPlan, write_plan
from .quantisation.formats import FORMATS
from .ranges.observers import RULES
from .ranges.table import CalibrationTable, write_table
from .schedule import Schedule
from .search.cards import CARDS, DEFAULT_CARD, Card
from .search.clock import Clock
from .search.cost import EIGHT_BITS
from .search.evaluate import Evaluator
from .search.objective import Budget
from .search.search import CANDIDATES, MOST_REGIONS, Search
from .search.sensitivity import FIRST_OBSERVER
from .search.stage_times import StageTimes

TABLE, PLAN = "calibration.json", "precision_plan.json"
SCORES = 8  # raised whenever the score of a choice means something else: a journal of older ones is not taken up


@dataclass(frozen=True)
class Settings:
    """How to calibrate.

    Args:
        budget: what the result must keep.
        precisions: candidates.
        protocol: how photos are shown; None for the first of the contract.
        prompts: words, for a network that is asked in words.
        memory_nbytes: bound for the observation.
        regions: most regions per stage.
        measured: stage times of a card, or None.
        card: whose published rates stand in where nothing was measured.
        clock: builds and times mixtures on a card before one is kept, or None.
        also: see ``quantize.activation_inputs``.
        hours: how long it may take, or None: images, regions and trials are cut to fit.
    """

    budget: Budget = field(default_factory=Budget)
    precisions: tuple[str, ...] = CANDIDATES
    protocol: str | None = None
    prompts: tuple[str, ...] = ()
    memory_nbytes: int = DEFAULT_MEMORY_NBYTES
    regions: int = MOST_REGIONS
    measured: StageTimes | None = None
    card: Card = CARDS[DEFAULT_CARD]
    clock: Clock | None = None
    also: tuple[str, ...] = ()
    hours: float | None = None

    def __post_init__(self):
        if "fp8" in self.precisions and "fp8" not in self.card.macs_per_ms:
            raise UsageError(
                f"the {self.card.name} has no FP8 tensor cores",
                wanted=f"--for {', '.join(name for name, card in CARDS.items() if 'fp8' in card.macs_per_ms)}",
                fix="leave fp8 out of --precisions, or say which card this is for",
            )
        if not 1 <= self.regions <= 4096:
            raise ValueError(f"regions: {self.regions}, wanted 1 to 4096")
        if self.memory_nbytes < 1 << 28:
            raise ValueError("memory: at least 256 MiB are wanted")
        if self.hours is not None and not 0 < self.hours <= 10000:
            raise ValueError(f"hours: {self.hours}, wanted more than 0 and at most 10000")


@dataclass(frozen=True)
class Calibrated:
    """Result of a calibration; its journal goes when it is written (``add_to_bundle``)."""

    table: CalibrationTable
    plan: PrecisionPlan
    tried: int
    journal: Journal | None = None


def calibrate(
    bundle: BundleDirectory,
    data: Chosen,
    settings: Settings,
    journal_folder: Path,
    on_progress: OnProgress = silent,
    on_message: Callable[[str], None] = lambda text: None,
    force: bool = False,
) -> Calibrated:
    """Observe, search, and keep the table and the plan; nothing is written but the journal.

    Args:
        on_progress: called after every step with what is counted and how many there are.
        on_message: told how long it will take, before it starts and again as it goes.
        force: throw away what an interrupted calibration with other settings has left in the folder.

    Raises:
        UsageError: if the hours that are given do not suffice for the least.
        InputError: if the bundle is not FP32, the data cannot be read or is too small, the protocol does not fit the images, or the journal is of another
            calibration.
        AccuracyError: if a stage of the FP32 network puts out NaN, infinity or a constant; stage and tensor are named.
        OutOfMemoryError: if a stage does not fit the memory.
    """
    model = model_fingerprint(bundle.manifest)
    chain = Chain(bundle, settings.protocol, settings.prompts)
    provenance = data.provenance() | ({"prompts": list(settings.prompts)} if settings.prompts else {})
    key = {"model": model, "data": provenance, "protocol": chain.protocol.name, "memory": settings.memory_nbytes, "version": SCORES}
    key |= {"also": list(settings.also), "hours": settings.hours, "seed": data.seed}
    key |= {} if settings.hours is None else {"regions": settings.regions}  # how many photos fit into the hours depends on them
    journal = Journal(journal_folder, key, force)
    photos = prepare_photos(chain, data, journal, on_progress)
    parts = split(photos, data.evaluation_ids(), provenance["kind"], left_out(journal), data.seed)
    flow = Flow(chain, data, journal)
    schedule = Schedule(chain, flow, parts, settings.regions, settings.memory_nbytes, settings.also, settings.hours, on_message)
    parts = schedule.parts
    used = sorted([*parts.observe, *parts.select], key=lambda photo: photo.number)
    hold = {photo.number for photo in parts.select}
    seen, held = observe(chain, used, data, journal, hold=hold, memory_nbytes=settings.memory_nbytes, also=settings.also, on_progress=on_progress)
    for stage, looked in seen.items():
        for form in (FORMATS[name] for name in EIGHT_BITS if name in settings.precisions):
            looked.suit(chain.graphs[stage], form)
    whole = {stage: looked.with_ranges_of(held[stage]) for stage, looked in seen.items()}  # once the choice is made, no photo need be spared for it
    schedule.done("observing")

    def judge(looked: dict[str, StageObservation], some: tuple[Photo, ...], purpose: str) -> Evaluator:
        return Evaluator(chain, looked, list(some), data.__getitem__, flow, settings.also, purpose)

    evaluator = judge(seen, parts.select, "select")
    telling = evaluator.telling(schedule.extent.screen)
    screener = judge(seen, telling, f"screen_{len(telling)}")
    prover = judge(whole, parts.prove, "prove")  # before the search: photos that cannot prove anything are refused here
    found = Search(
        evaluator,
        model,
        settings.budget,
        settings.precisions,
        settings.measured,
        settings.card,
        settings.clock,
        screener,
        prover,
        schedule.extent.regions,
        schedule.extent.trials,
        on_progress,
        lambda: schedule.done("screening"),
        schedule.out_of_time,
    ).run()
    table = make_table(model, chain, parts, provenance, whole)
    for stage, ranges in found.ranges.items():
        table = table.with_ranges(stage, ranges)
    table = replace(table, shifts=found.shifts)
    return Calibrated(table, found.plan, evaluator.tried + screener.tried, journal)


def make_table(
    model: str, chain: Chain, chosen: Split, provenance: dict[str, Any], seen: dict[str, StageObservation], observer: str = FIRST_OBSERVER
) -> CalibrationTable:
    """The table of all observed activations by one rule.

    Raises:
        ValueError: if the observer is unknown.
    """
    if observer not in RULES:
        raise ValueError(f"unknown observer {observer!r}, wanted one of {', '.join(RULES)}")
    stages = {name: found.ranges(observer) for name, found in seen.items()}
    peaks = {name: found.peaks for name, found in seen.items()}
    read = (*chosen.observe, *chosen.select)
    provenance = provenance | {"splits": chosen.to_json()}
    return CalibrationTable(model, provenance, chain.protocol.name, len(read), sum(photo.windows for photo in read), chosen.warnings, stages, peaks)


def refuse_calibrated(bundle: BundleDirectory, force: bool) -> None:
    """Check before the work starts that table and plan may be put into a bundle.

    Raises:
        InputError: if it is calibrated already and ``force`` is False, or cannot be written.
    """
    folder = bundle.path_of_bundle
    if not force and (old := [name for name in (TABLE, PLAN) if name in bundle.manifest.files or os.path.lexists(folder / name)]):
        was, fix = f"{folder} is calibrated already ({old[0]})", "pass --force to replace its calibration"
        raise InputError(was, wanted="a bundle that is not", fix=fix)
    for name in (TABLE, PLAN, MANIFEST):
        refuse_existing(folder / name, force=True)
        if (folder / name).is_dir():
            raise InputError(f"{folder / name} is a directory", wanted="a file, or nothing", fix="remove it")


def add_to_bundle(bundle: BundleDirectory, result: Calibrated, force: bool = False) -> None:
    """Put table and plan into the bundle, list them in its manifest, and only then remove the journal.

    Raises:
        InputError: if the bundle is calibrated already and ``force`` is False, or cannot be written.
    """
    folder = bundle.path_of_bundle
    refuse_calibrated(bundle, force)
    write_table(result.table, folder / TABLE, force=True)
    write_plan(result.plan, folder / PLAN, force=True)
    facts = {name: FileFacts((folder / name).stat().st_size, sha256_of(folder / name)) for name in (TABLE, PLAN)}
    manifest = replace(bundle.manifest, files={**bundle.manifest.files, **facts})
    with whole_file(folder / MANIFEST, force=True) as part:
        part.write_bytes(manifest_bytes(manifest))
    if result.journal is not None:
        result.journal.remove()
