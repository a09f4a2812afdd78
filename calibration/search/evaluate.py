"""Trying choices of precision on real images: the changed stages and those after them run, what comes before is remembered."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

from ...datasets.depth_metrics import at_median, depth_errors
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
from .maps import Map, apart, object_share
from .objective import Score, failed

KEEP_SESSION_NBYTES = 256 << 20  # larger FP32 stages are opened anew each time
HOLD_NBYTES = 512 << 20
GROUP_NBYTES = 2 << 30  # of the windows that are in memory together
Plan = dict[str, Choices]  # stage -> choices; a stage that is not there is FP32

SMALLEST_DEPTH = 1e-9


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
        self._sample = {photo.number: sample(photo.number) for photo in photos}
        self._shapes = {number: chain.inputs(held.rgb)[0] for number, held in self._sample.items()}
        self._reference = self._maps({}, {})
        output = chain.contract.output
        self._relative = output.kind == "relative"
        known = output.kind == "metric" or (self._relative and output.larger_is == "far")
        self._truths = {n: t for n, s in self._sample.items() if known and (t := self._truth(s, self._reference[n])) is not None}
        self._fitted = self._relative and bool(self._truths)
        self.truth = "ground truth" + ", fitted by the median" * self._fitted if self._truths else "fp32 output"
        if self._mask:
            self.truth, self._truths = "fp32 mask", {n: (m.values, m.valid) for n, m in self._reference.items()}
            if not any(0 < m.values[m.valid].mean() < 1 for m in self._reference.values()):
                raise InputError(
                    f"{' and '.join(map(repr, chain.prompts)) or 'the object'}: nowhere, or everywhere, in each of the {len(photos)} images",
                    wanted="words for something that is in the images: a mask without an edge says nothing",
                    fix="give another --prompt, or other images",
                )
        elif not self._truths:
            self._truths = {n: (m.values, m.valid & (m.values > 0)) for n, m in self._reference.items() if (m.valid & (m.values > 0)).any()}
        if not self._truths:
            raise InputError("no pixel of the images has a depth above zero", fix="give other images")
        self._base = np.array([self._errors(self._reference[n].values, *self._truths[n]) for n in self._truths])  # [photos, 2]
        self.baseline = Score(*map(float, self._base.mean(axis=0)), 0.0, 0.0, 0.0)

    def telling(self, count: int) -> tuple[Photo, ...]:
        """Photos to screen on, at most ``count``: with a depth to compare with, of masks with an edge in it; a second of a scene when each has given one."""
        able = [photo for photo in self.photos if photo.number in self._truths]
        edged = [photo for photo in able if not self._mask or 0 < self._reference[photo.number].values.mean() < 1] or self.photos[:1]
        scenes: dict[str, list[Photo]] = {}
        for photo in edged:
            scenes.setdefault(photo.scene, []).append(photo)
        return tuple(round_robin(list(scenes.values()), count))

    def _errors(self, found: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
        """abs_rel and delta1; of a mask see above."""
        if not self._mask:
            found, truth = found[valid], truth[valid]
            # a precision may push a depth to zero or below: that is a wrong depth, not the end of the search
            found = np.maximum(at_median(found, truth) if self._fitted else found, SMALLEST_DEPTH)
            errors = depth_errors(found, truth, ("abs_rel", "delta1"))
            return errors["abs_rel"], errors["delta1"]
        changed, either = float(np.mean(found[valid] != truth[valid])), float(np.mean((found[valid] > 0) | (truth[valid] > 0)))
        return changed / either if either else 0.0, 1 - changed

    def _truth(self, sample: Sample, reference: Map) -> tuple[np.ndarray, np.ndarray] | None:
        near, far = (0, math.inf) if self._relative else (self.chain.contract.output.near, self.chain.contract.output.far)
        counts = sample.valid & reference.valid & (sample.depth_m >= near) & (sample.depth_m <= far)
        return (sample.depth_m, counts) if counts.any() else None

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
            found = self._maps(plan, stages or {})
        except AccuracyError as error:
            return failed(error.was)
        errors = np.array([self._errors(found[n].values, *self._truths[n]) for n in self._truths])  # [photos, 2]
        change = errors - self._base
        doubt = bootstrap_errors(change, [self._scenes[n] for n in self._truths])
        scale = self.baseline.abs_rel or 1.0  # an FP32 output that is its own truth has no error to compare with
        moved = float(np.mean([apart(found[n], self._reference[n]) for n in found]))
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

    def _maps(self, plan: Plan, stages: dict[str, StageGraph]) -> dict[int, Map]:
        """Maps of all photos, by a plan for the chain's stages or by ``stages`` in their place."""
        output = self.chain.contract.output.tensor
        found: dict[tuple[int, int], np.ndarray] = {}
        for group in self._groups:
            for key, tensors in self._run(plan, stages, group).items():
                found[key] = tensors[output]
        windows = {photo.number: [found[photo.number, window] for window in range(photo.windows)] for photo in self.photos}
        return {n: Map(*self.chain.assemble(self._shapes[n], tensors), object_share(tensors) if self._mask else None) for n, tensors in windows.items()}

    def _run(self, plan: Plan, stages: dict[str, StageGraph], group: list[Window]) -> dict[tuple[int, int], dict[str, np.ndarray]]:
        """The tensors of some windows, stage after stage, so that one stage is in memory at a time. FP32 stages before the first one that is changed
        run only if what they make was not kept."""
        changed = [*stages] + [stage for stage, choices in plan.items() if any(choice.precision != "fp32" for choice in choices.values())]
        boundaries = self.boundaries(plan)
        items = {(photo.number, window): self._item(photo, window) for photo, window in group}
        started = False
        for spec in self.chain.specs:
            started |= spec.name in changed
            made = {tensor.name for tensor in spec.outputs} & self._wanted
            waiting = [tensors for tensors in items.values() if started or not made <= set(tensors)]
            if not waiting:
                continue
            if spec.name in changed:
                session = StageSession(stages.get(spec.name) or self.variant(spec.name, plan[spec.name], boundaries))
            else:
                session = self._plain(spec.name)
            for tensors in waiting:
                values = session.run(tensors)
                check_finite(spec.name, values)
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
