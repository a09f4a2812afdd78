"""Trying choices of precision on real images: the changed stages and those after them run, what comes before is remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from ...datasets.sample import Sample
from ...runtime.errors import AccuracyError, InputError
from ..graph.chain import Chain
from ..graph.session import StageSession, check_finite
from ..graph.stage_graph import StageGraph
from ..observation.flow import Flow, Window
from ..observation.photo import Photo
from ..observation.split import round_robin
from ..observation.stage_observation import StageObservation
from ..precision.precision_plan import Choice
from ..precision.quantised_stage import Choices, best_alpha, make_quantised, ranges_for, shifts_for
from ..precision.rounding import fp16_overflows, round_through, stays_fp32
from ..quantisation.formats import FORMATS
from ..quantisation.smooth import SMOOTHING
from .bootstrap import bootstrap_errors
from .maps import Targets
from .objective import Score, failed

KEEP_SESSION_NBYTES = 256 << 20  # larger FP32 stages are opened anew each time
HOLD_NBYTES = 512 << 20
GROUP_NBYTES = 2 << 30  # of the windows that are in memory together
Plan = dict[str, Choices]  # stage -> choices; a stage that is not there is FP32


class Evaluator:
    """Scores of precision choices on some images.

    Of a mask, abs_rel is what its overlap with the FP32 mask lacks to 1 (intersection over union), delta1 the share of pixels that do not change
    sides, and ``disagreement`` the mean change of the object's probability, which moves before any pixel does.

    Args:
        chain: the FP32 network.
        seen: what ``observe`` found, by stage.
        photos: the images to judge on.
        sample: gives the image of a number, with its depth.
        flow: gives what passes between the FP32 stages, and remembers scores.
        also: see ``quantize.activation_inputs``.
        purpose: ``screen_N``, ``select`` or ``prove``: their scores are remembered apart.

    Attributes:
        truth: ``ground truth``; ``ground truth, fitted by the median`` if the maps are relative; ``fp32 output`` if the images have no depth or
            the maps grow toward the camera; ``fp32 mask``.
        baseline: score of the FP32 network.
        tried: how many choices were scored.

    Raises:
        InputError: if there is no image, no pixel has a usable depth, or the words find nothing, or nothing else, in any image.
        AccuracyError: if the FP32 network itself gives no depth.
    """

    def __init__(
        self,
        chain: Chain,
        seen: dict[str, StageObservation],
        photos: list[Photo],
        sample: Callable[[int], Sample],
        flow: Flow,
        also: tuple[str, ...] = (),
        purpose: str = "select",
    ):
        if not photos:
            raise InputError("no image is left to judge on", wanted="at least one", fix="give more images")
        self._mask = chain.contract.output.kind == "mask"
        self.chain, self.seen, self.photos, self._journal = chain, seen, photos, flow.journal
        self.stays = {spec.name: stays_fp32(chain.graphs[spec.name], chain.islands[spec.name]) for spec in chain.specs}
        self.tried, self.also, self._purpose = 0, also, purpose
        self._held: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        self._flow = flow
        self._groups = _groups(photos, flow.window_nbytes())
        self._wanted = {t.name for spec in chain.specs for t in spec.inputs} | {chain.contract.output.tensor}
        self._room = HOLD_NBYTES
        self._known_shifts: dict[tuple, np.ndarray] = {}
        self._sessions: dict[str, StageSession] = {}
        self._scenes = {photo.number: photo.scene for photo in photos}
        fp32 = dict(self._outputs({}, {}))
        self._targets = Targets(chain, sample, fp32)
        self.truth = self._targets.truth
        self._base = np.array([self._targets.compare(number, fp32[number])[0] for number in self._targets.numbers])  # [photos, 2]
        self.baseline = Score(*map(float, self._base.mean(axis=0)), 0.0, 0.0, 0.0)

    def telling(self, count: int) -> tuple[Photo, ...]:
        """Photos to screen on, at most ``count``: with a depth to compare with, of masks with an edge in it; a second of a scene when each has given one."""
        able = [photo for photo in self.photos if photo.number in self._targets.numbers]
        edged = [photo for photo in able if not self._mask or photo.number in self._targets.edged] or self.photos[:1]
        scenes: dict[str, list[Photo]] = {}
        for photo in edged:
            scenes.setdefault(photo.scene, []).append(photo)
        return tuple(round_robin(list(scenes.values()), count))

    def score(self, plan: Plan) -> Score:
        """Run a choice over all images; a failure at any stage output is a score, not an error.

        Scores are kept in the journal: a search that is taken up again does not measure anything twice.
        """
        self.tried += 1
        name = f"score_{self._purpose}_{_digest(plan)}"
        if (known := self._journal.fact(name)) is not None:
            return Score(*known)
        score = self._measure(plan)
        self._journal.note(name, [getattr(score, field) for field in Score.__dataclass_fields__])
        return score

    def smoothing(self, stage: str, nodes: tuple[str, ...], observer: str, precision: str) -> tuple[float, float]:
        """See ``best_alpha``; kept in the journal as well."""
        name = f"alpha_{_digest({stage: {nodes: Choice(precision, observer)}})}"
        if (known := self._journal.fact(name)) is None:
            known = best_alpha(self.chain.graphs[stage], nodes, observer, self.seen[stage], FORMATS[precision])
            self._journal.note(name, list(known))
        return known[0], known[1]

    def score_stages(self, plan: Plan, stages: dict[str, StageGraph]) -> Score:
        """The score of stages that compute something else than those of the chain, such as learned ones.

        Args:
            plan: what they compute in: FP16 and BF16 are simulated by it.
            stages: all of them or some, FP32 or with Q/DQ.
        """
        rounded = {}
        for stage, graph in stages.items():
            rounded[stage] = graph.copy()
            precisions = {name: choice.precision for names, choice in plan.get(stage, {}).items() for name in names}
            round_through(rounded[stage], precisions, self.stays[stage])
        return self._measure({}, rounded)

    def _measure(self, plan: Plan, stages: dict[str, StageGraph] | None = None) -> Score:
        try:
            found = [self._targets.compare(*photo) for photo in self._outputs(plan, stages or {})]
        except AccuracyError as error:
            return failed(error.was)
        errors = np.array([metrics for metrics, _ in found if metrics])  # [photos, 2]
        change = errors - self._base
        doubt = bootstrap_errors(change, [self._scenes[n] for n in self._targets.numbers])
        scale = self.baseline.abs_rel or 1.0  # an FP32 output that is its own truth has no error to compare with
        moved = float(np.mean([apart for _, apart in found]))
        abs_rel, delta1 = map(float, errors.mean(axis=0))
        known = (None, None) if doubt is None else (float(doubt[0]) / scale, float(doubt[1]))
        return Score(abs_rel, delta1, float(change[:, 0].mean()) / scale, float(change[:, 1].mean()), moved, *known)

    def boundaries(self, plan: Plan) -> dict[str, str]:
        """Tensors that pass from stage to stage as float16: both sides compute in fewer bits, and FP16 holds what was seen."""
        low = {stage for stage, choices in plan.items() if any(choice.precision == "fp16" or choice.quantised for choice in choices.values())}
        return {name: "float16" for name in self._inner() if self._touching(name) <= low and not self._overflows(name)}

    def keep_fp32(self, plan: Plan) -> tuple[str, ...]:
        """Tensors between stages that stay float32."""
        return tuple(sorted(self._inner() - set(self.boundaries(plan))))

    def _inner(self) -> set[str]:
        made = {tensor.name for spec in self.chain.specs for tensor in spec.outputs if tensor.dtype == "float32"}
        read = {tensor.name for spec in self.chain.specs for tensor in spec.inputs}
        return (made & read) - {self.chain.contract.output.tensor}

    def _touching(self, tensor: str) -> set[str]:
        return {spec.name for spec in self.chain.specs if tensor in {t.name for t in spec.inputs + spec.outputs}}

    def _overflows(self, tensor: str) -> bool:
        return any(tensor in fp16_overflows(seen.peaks) for seen in self.seen.values())

    def variant(self, stage: str, choices: Choices, boundaries: dict[str, str]) -> StageGraph:
        """The FP32 graph of a stage with the choices' rounding in it."""
        graph = self.chain.graphs[stage].copy()
        ranges = ranges_for(self.chain.graphs[stage], choices, self.seen[stage], self.also)
        shifts = shifts_for(self.chain.graphs[stage], choices, ranges, self.seen[stage], self._known_shifts)
        make_quantised(graph, choices, ranges, shifts, stored=False, also=self.also)
        precisions = {node.name: "fp16" for node in graph.model.graph.node if SMOOTHING in node.name}
        precisions |= {name: choice.precision for names, choice in choices.items() for name in names}
        round_through(graph, precisions, self.stays[stage], boundaries)
        return graph

    def _outputs(self, plan: Plan, stages: dict[str, StageGraph]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Number of every photo and the network's output for its windows, by a plan for the chain's stages or by ``stages`` in their place."""
        output = self.chain.contract.output.tensor
        windows, found = {photo.number: photo.windows for photo in self.photos}, []
        for group in self._groups:
            for (number, _), tensors in self._run(plan, stages, group).items():
                found.append(tensors[output])
                if len(found) == windows[number]:
                    yield number, found
                    found = []

    def _run(self, plan: Plan, stages: dict[str, StageGraph], group: list[Window]) -> dict[tuple[int, int], dict[str, np.ndarray]]:
        """The tensors of some windows, stage after stage, so that one stage is in memory at a time. FP32 stages before the first one that is changed
        run only if what they make was not kept."""
        changed = [*stages] + [stage for stage, choices in plan.items() if any(choice.precision != "fp32" for choice in choices.values())]
        boundaries = self.boundaries(plan)
        items = {(photo.number, window): self._item(photo, window) for photo, window in group}
        names = {photo.number: photo.id for photo, _ in group}
        started = False
        for spec in self.chain.specs:
            started |= spec.name in changed
            made = {tensor.name for tensor in spec.outputs} & self._wanted
            waiting = [(names[number], tensors) for (number, _), tensors in items.items() if started or not made <= set(tensors)]
            if not waiting:
                continue
            if spec.name in changed:
                session = StageSession(stages.get(spec.name) or self.variant(spec.name, plan[spec.name], boundaries))
            else:
                session = self._plain(spec.name)
            for photo, tensors in waiting:
                values = session.run(tensors)
                check_finite(spec.name, values, photo)
                tensors |= values
            del session
        return items

    def _item(self, photo: Photo, window: int) -> dict[str, np.ndarray]:
        """What flows between the FP32 stages for one window, as far as it was kept; held in memory while there is room."""
        name = (photo.number, window)
        if name in self._held:
            return dict(self._held[name])
        tensors = self._flow.read(photo, window)
        self._room -= sum(values.nbytes for values in tensors.values())
        if self._room >= 0:
            self._held[name] = tensors
        return dict(tensors)

    def _plain(self, stage: str) -> StageSession:
        if stage in self._sessions:
            return self._sessions[stage]
        session = StageSession(self.chain.graphs[stage])
        if self.chain.graphs[stage].weights_nbytes() <= KEEP_SESSION_NBYTES:
            self._sessions[stage] = session
        return session


def _groups(photos: list[Photo], nbytes: int) -> list[list[Window]]:
    windows = [(photo, window) for photo in photos for window in range(photo.windows)]
    size = max(1, GROUP_NBYTES // max(nbytes, 1))
    return [windows[start : start + size] for start in range(0, len(windows), size)]


def _digest(plan: Plan) -> str:
    facts = sorted((stage, nodes, choice.words) for stage, choices in plan.items() for nodes, choice in choices.items())
    return hashlib.sha256(repr(facts).encode()).hexdigest()
