"""What flows through every stage of the FP32 chain on real images: streaming, bounded in memory, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from ...runtime.errors import InputError, OutOfMemoryError
from ...runtime.process_memory import process_nbytes
from ..graph.chain import Chain
from ..graph.session import StageSession, check_finite
from ..graph.stage_graph import StageGraph
from ..quantisation.quantize import activation_inputs
from .flow import Flow
from .folds import folds_of
from .journal import Journal
from .photo import Photo, photo_sha256
from .sample_layers import Place, places, sample_layers
from .stage_observation import StageObservation

if TYPE_CHECKING:
    from ...datasets.source import Source

SAVE_EVERY_S = 30.0
HELD, FINISHED = "held|", "finished"  # in the journal, before what was seen of the photos that are looked at apart; and how far it went
DEFAULT_MEMORY_NBYTES = 8 << 30
FLOAT = TensorProto.FLOAT
OnProgress = Callable[[str, int], None]  # what is counted, and how many of it there are


def silent(what: str, total: int) -> None:
    """Tells nobody."""


def prepare_photos(chain: Chain, source: Source, journal: Journal, on_progress: OnProgress) -> list[Photo]:
    """Look at every image once: its name, its pixels' hash, how many windows it becomes; see ``left_out`` for those that cannot be used.

    Raises:
        InputError: if none can be used.
    """
    photos: list[Photo] = [Photo(*facts) for facts in journal.fact("photos") or []]
    unfit = left_out(journal)
    for number in range(len(photos) + len(unfit), len(source)):
        try:
            sample = source[number]
            _, feeds = chain.inputs(sample.rgb, number)
        except InputError as error:
            unfit.append(error.was)
            journal.note("left out", unfit)
            on_progress("images", len(source))
            continue
        photo = Photo(number, sample.id, photo_sha256(sample), len(feeds), sample.scene)
        photos.append(photo)
        journal.note("photos", [(p.number, p.id, p.sha256, p.windows, p.scene) for p in photos])
        on_progress("images", len(source))
    if not photos:
        raise InputError(f"none of the {len(source)} images can be used; the first: {unfit[0]}" if unfit else "the data holds no image")
    return photos


def left_out(journal: Journal) -> list[str]:
    """Why images were left out: they could not be read, or the protocol does not apply to them."""
    return list(journal.fact("left out") or [])


def observe(
    chain: Chain,
    photos: list[Photo],
    source: Source,
    journal: Journal,
    *,
    hold: set[int] = frozenset(),
    memory_nbytes: int = DEFAULT_MEMORY_NBYTES,
    also: tuple[str, ...] = (),
    on_progress: OnProgress = silent,
) -> tuple[dict[str, StageObservation], dict[str, StageObservation]]:
    """Run stage after stage over the images and look at what flows.

    The images go through in groups whose tensors fit in the journal (see ``flow``): one stage is in memory at a time, and what it puts out waits in the
    journal for the next one. A stage whose activations do not fit ``memory_nbytes`` is run several times, each time looking at some of them.

    Args:
        photos: those to look at, and those of ``hold``.
        source: gives the image of a number.
        hold: numbers of photos that are looked at apart, without samples of what layers read, and whose tensors stay in the journal while
            there is room.
        also: see ``quantize.activation_inputs``.
        on_progress: called after every window of every pass.

    Returns:
        by stage, what was seen on all other photos, and what was seen on those of ``hold``.

    Raises:
        AccuracyError: naming the first stage and tensor that is NaN, infinite or constant.
        OutOfMemoryError: if a stage cannot run within the memory.
    """
    flow = Flow(chain, source, journal)
    groups = flow.groups(photos, hold)
    looked_at = [photo for photo in photos if photo.number not in hold]
    place_of = places(((photo.number, window) for photo in looked_at for window in range(photo.windows)), folds_of(looked_at))
    plans = passes(chain, journal, memory_nbytes, also)
    kept = [journal.get(_state(place)) for place in range(len(chain.specs))]
    looks = {spec.name: Looks.from_arrays(arrays) for spec, arrays in zip(chain.specs, kept, strict=True)}
    total = sum(len(group) for group in groups) * sum(map(len, plans))

    def advance() -> None:
        on_progress("pictures through the stages", total)

    for number, group in enumerate(groups):
        for place, spec in enumerate(chain.specs):
            _observe_stage(chain, place, (number, group), plans[place], looks[spec.name], flow, place_of, advance)
        for photo, window in group:
            if photo.number not in hold or not flow.holds(photo, window):
                flow.drop(photo, window)
    return {stage: each.seen for stage, each in looks.items()}, {stage: each.held for stage, each in looks.items()}


@dataclass
class Looks:
    """What was seen of one stage.

    Args:
        seen: on the photos that are looked at.
        held: on those that are looked at apart.
        finished: groups, passes of the next one, windows of the next pass.
    """

    seen: StageObservation
    held: StageObservation
    finished: tuple[int, ...] = (0, 0, 0)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For the journal, all in one file: nothing is ahead of the rest when the run is taken up again, wherever it was killed."""
        return self.seen.to_arrays() | {f"{HELD}{key}": values for key, values in self.held.to_arrays().items()} | {FINISHED: np.array(self.finished)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Looks:
        """From the journal."""
        held = {key.removeprefix(HELD): values for key, values in arrays.items() if key.startswith(HELD)}
        seen = {key: values for key, values in arrays.items() if not key.startswith(HELD)}
        return cls(StageObservation.from_arrays(seen), StageObservation.from_arrays(held), tuple(map(int, arrays.get(FINISHED, (0, 0, 0)))))


def _state(place: int) -> str:
    return f"stage_{place:03d}"


def passes(chain: Chain, journal: Journal, memory_nbytes: int, also: tuple[str, ...] = ()) -> list[list[list[str]]]:
    """By stage, the activations that each of its passes over all images looks at. What was begun with goes on: the memory that is free is another each time."""
    if (known := journal.fact("passes")) is None:
        known = [_plan(chain.graphs[spec.name], chain.batch, memory_nbytes, also) for spec in chain.specs]
        journal.note("passes", known)
    return known


def _observe_stage(
    chain: Chain,
    place: int,
    numbered: tuple[int, list[tuple[Photo, int]]],
    plan: list[list[str]],
    looks: Looks,
    flow: Flow,
    place_of: dict[tuple[int, int], Place],
    advance: Callable[[], None],
) -> None:
    """One group of windows through one stage, in as many passes as ``plan`` has, going on where it was interrupted. Windows without a place are apart."""
    spec, graph, journal, state = chain.specs[place], chain.graphs[chain.specs[place].name], flow.journal, _state(place)
    number, items = numbered
    finished = looks.finished
    for turn, names in enumerate(plan):
        if (number, turn) < finished[:2]:
            continue
        done = finished[2] if (number, turn) == finished[:2] else 0
        session, peaks = _watching(graph, names, with_peaks=turn == 0)
        saved = time.monotonic()
        for position in range(done, len(items)):
            photo, window = items[position]
            tensors = _tensors(chain, place, flow, photo, window)
            values = session.run(tensors)
            outputs = {tensor.name: values[tensor.name] for tensor in spec.outputs}
            check_finite(spec.name, outputs, photo.id)
            mine, both = place_of.get((photo.number, window)), {**tensors, **values}
            _look(looks.held if mine is None else looks.seen, mine.fold if mine else 0, names, both, peaks, graph)
            if mine is not None:
                sample_layers(looks.seen.samples, looks.seen.origins, graph, names, both, (photo.number, window), mine)
            if turn == 0:
                flow.write(photo, window, {**tensors, **outputs}, place, mine is None)
            if time.monotonic() - saved > SAVE_EVERY_S:
                looks.finished = number, turn, position + 1
                journal.put(state, looks.to_arrays())
                saved = time.monotonic()
            advance()
        del session
        looks.finished = number, turn + 1, 0
        journal.put(state, looks.to_arrays())


def _tensors(chain: Chain, place: int, flow: Flow, photo: Photo, window: int) -> dict[str, np.ndarray]:
    """What a stage reads of a window, made anew from the picture if a damaged journal has lost it."""
    tensors = flow.read(photo, window)
    if {tensor.name for tensor in chain.specs[place].inputs} <= set(tensors):
        return tensors
    tensors = flow.inputs(photo, window)
    for spec in chain.specs[:place]:
        tensors |= StageSession(chain.graphs[spec.name]).run(tensors)
    return tensors


def _look(seen: StageObservation, fold: int, names: list[str], values: dict[str, np.ndarray], peaks: dict[str, str], graph: StageGraph) -> None:
    for name in names:
        tensor = values[name]
        seen.look(fold, name, tensor)
        readers = {reader.op_type for reader, _ in graph.readers[name]}
        if readers & {"MatMul", "Gemm"} and tensor.ndim >= 2:
            others = tuple(range(tensor.ndim - 1))
        elif "Conv" in readers and tensor.ndim == 4:
            others = (0, 2, 3)
        else:
            continue
        low, high = tensor.min(axis=others), tensor.max(axis=others)
        seen.channels[name] = np.maximum(seen.channels.get(name, 0.0), np.maximum(-low, high))
        if "Conv" not in readers or others == (0, 2, 3):  # read by both kinds, it would have two axes of channels
            seen.lows[name] = np.minimum(seen.lows.get(name, np.inf), low)
            seen.highs[name] = np.maximum(seen.highs.get(name, -np.inf), high)
    for name, output in peaks.items():
        if np.isfinite(peak := float(values[output])):  # a mask of -inf is no magnitude
            seen.peaks[name] = max(seen.peaks.get(name, 0.0), peak)


def _plan(graph: StageGraph, batch: int, memory_nbytes: int, also: tuple[str, ...]) -> list[list[str]]:
    """Which activations are looked at in which pass."""
    wanted = activation_inputs(graph, also)
    names = sorted({node.input[p] for node in graph.model.graph.node if node.name in wanted for p in wanted[node.name]})
    kinds, shapes = graph.types_and_shapes(batch)
    sizes = {name: 4 * int(np.prod(shapes[name], dtype=np.int64)) if shapes.get(name) else 0 for name in names if kinds.get(name) == FLOAT}
    largest = max([4 * int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items() if shape and name not in graph.constants], default=0)
    room = memory_nbytes - process_nbytes().get("VmRSS", 0) - graph.weights_nbytes() - 4 * largest
    if room < max(sizes.values(), default=0):
        was = f"stage {graph.model.graph.name}: {graph.weights_nbytes() >> 20} MiB of weights and activations of {largest >> 20} MiB do not fit"
        raise OutOfMemoryError(was, wanted=f"at most {memory_nbytes >> 20} MiB", fix="pass a larger --memory")
    groups: list[list[str]] = [[]]
    used = 0
    for name, nbytes in sizes.items():
        if groups[-1] and used + 2 * nbytes > room:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += 2 * nbytes  # the tensor and the magnitudes made from it
    return groups


def _watching(graph: StageGraph, names: list[str], with_peaks: bool) -> tuple[StageSession, dict[str, str]]:
    """A session that also puts out the tensors ``names`` and, as scalars, the peaks; returns tensor -> output of its peak.

    Each peak is taken right behind the node that makes its tensor, and nodes run in that order: otherwise every activation of the stage would
    wait in memory for the peaks at the end.
    """
    watched = graph.copy()
    kinds, _ = watched.types_and_shapes()
    outputs = set(watched.outputs)
    peaks: dict[str, str] = {}
    if with_peaks:
        nodes = []
        for node in [None, *watched.model.graph.node]:
            nodes += [node] if node else []
            for name in node.output if node else watched.inputs:
                if kinds.get(name) == FLOAT:
                    number, peaks[name] = len(peaks), f"peak:{len(peaks)}"
                    nodes.append(helper.make_node("Abs", [name], [f"peak:{number}:abs"], name=f"peak_abs_{number}"))
                    nodes.append(helper.make_node("ReduceMax", [f"peak:{number}:abs"], [peaks[name]], name=f"peak_{number}", keepdims=0))
                    watched.model.graph.output.append(helper.make_tensor_value_info(peaks[name], FLOAT, []))
        del watched.model.graph.node[:]
        watched.model.graph.node.extend(nodes)
    for name in names:
        if name not in outputs and name in watched.maker:
            watched.model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))
    watched.index()
    return StageSession(watched, optimise=False, as_written=True), peaks
