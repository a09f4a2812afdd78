"""What calibration sees of photos: peaks, ranges and channels, in as many passes as the memory takes, taken up where it was interrupted."""

import subprocess
import sys

import numpy as np
import pytest

from fathom.calibration.graph.chain import Chain
from fathom.calibration.observation.images import Chosen
from fathom.calibration.observation.journal import Journal
from fathom.calibration.observation.observe import observe, prepare_photos, silent
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import OutOfMemoryError
from fathom.runtime.process_memory import process_nbytes

DATA = "rooms:6:1:48x64"
pytestmark = pytest.mark.usefixtures("rooms_once")


def look(path, journal, memory=1 << 33, data=DATA, tick=lambda what, total: None):
    chain = Chain(BundleDirectory.open(path))
    state = Journal(journal, {"test": 1})
    chosen = Chosen(data)
    photos = prepare_photos(chain, chosen, state, tick)
    return observe(chain, photos, chosen, state, memory_nbytes=memory, on_progress=tick)[0]


def same(one, other):
    return one.peaks == other.peaks and all(
        (h.counts == other.histograms[n].counts).all() and h.amax == other.histograms[n].amax and h.exponent == other.histograms[n].exponent
        for n, h in one.histograms.items()
    )


def greatest_features(path, ids=None):
    """Of a plain run over some photos."""
    import onnxruntime

    chain, greatest = Chain(BundleDirectory.open(path)), 0.0
    session = onnxruntime.InferenceSession(str(path / "stages" / "encoder.onnx"))
    for sample in Chosen(DATA).source:
        if ids is None or sample.id in ids:
            greatest = max(greatest, float(np.abs(session.run(["features"], chain.inputs(sample.rgb)[1][0])[0]).max()))
    return greatest


def test_photos_that_are_looked_at_apart_are_taken_up_again_and_widen_ranges(token_bundle, tmp_path):
    path = token_bundle()
    chain, data, state = Chain(BundleDirectory.open(path)), Chosen(DATA), Journal(tmp_path / "j", {"test": 1})
    photos = prepare_photos(chain, data, state, silent)
    apart = {photos[0].number, photos[3].number}

    def looked():
        return observe(chain, photos, data, state, hold=apart)

    seen, held = looked()
    again = looked()  # nothing is run: both come from the journal
    for stage in seen:
        both = seen[stage].with_ranges_of(held[stage])
        assert same(seen[stage], again[0][stage]) and same(held[stage], again[1][stage]) and held[stage].samples == {}
        for name, histogram in both.histograms.items():
            counts = [some.histograms[name].count for some in (seen[stage], held[stage])]
            assert histogram.count == sum(counts) and counts[0] == 2 * counts[1]
            assert histogram.amax == max(some.histograms[name].amax for some in (seen[stage], held[stage]))
        for name, values in both.channels.items():
            assert (values == np.maximum(seen[stage].channels[name], held[stage].channels[name])).all()
    assert max(seen["head"].histograms["features"].amax, held["head"].histograms["features"].amax) == pytest.approx(greatest_features(path), rel=1e-5)


def test_observed_peaks_are_those_of_a_plain_run(token_bundle, tmp_path):
    path = token_bundle()
    seen, greatest = look(path, tmp_path / "j"), greatest_features(path)
    assert seen["encoder"].peaks["features"] == pytest.approx(greatest, rel=1e-5)
    assert seen["head"].histograms["features"].amax == pytest.approx(greatest, rel=1e-5)
    assert seen["encoder"].histograms["n"].count == 6 * 96 * 16
    assert seen["encoder"].channels["n"].shape == (16,)


def test_little_memory_means_more_passes_and_the_same_ranges(token_bundle, tmp_path, monkeypatch):
    path = token_bundle()
    plenty = look(path, tmp_path / "a")
    passes = []
    monkeypatch.setattr("fathom.calibration.observation.observe.process_nbytes", dict)
    from fathom.calibration.observation import observe as module

    graph = Chain(BundleDirectory.open(path)).graphs["encoder"]
    tight = graph.weights_nbytes() + 4 * 4 * 96 * 64 + 2 * 4 * 96 * 64  # the largest activation in flight, and one to look at
    passes = module._plan(graph, 1, tight, ())
    assert len(passes) > 1 and sorted(n for group in passes for n in group) == sorted(n for group in module._plan(graph, 1, 1 << 33, ()) for n in group)
    assert all(same(plenty[stage], seen) for stage, seen in look(path, tmp_path / "b", tight).items())
    with pytest.raises(OutOfMemoryError, match="larger --memory"):
        module._plan(graph, 1, 1000, ())
    assert process_nbytes()["VmRSS"] > 0


LONG_STAGE = """
import resource, numpy as np, onnx
from onnx import TensorProto, helper
from pathlib import Path
from fathom.calibration.observation.observe import _watching
from fathom.calibration.graph.stage_graph import StageGraph

names = ["x", *(f"t{k}" for k in range(24))]
nodes = [helper.make_node("Sin", [one], [other]) for one, other in zip(names, names[1:])]
nodes.append(helper.make_node("ReduceMean", [names[-1]], ["y"], keepdims=0))
image, mean = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 1024, 1024]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
model = helper.make_model(helper.make_graph(nodes, "long", [image], [mean]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
session, peaks = _watching(StageGraph(model, Path(".")), [], with_peaks=True)
x = np.full((4, 1024, 1024), 2, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
values = session.run({"x": x})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, float(values[peaks["x"]]), float(values[peaks["t0"]]))
"""


def test_a_look_at_the_peaks_keeps_no_activation_waiting():
    done = subprocess.run([sys.executable, "-c", LONG_STAGE], capture_output=True, text=True, check=True)
    peak_mib, of_x, of_t0 = map(float, done.stdout.split())
    assert of_x == 2 and of_t0 == pytest.approx(np.sin(2), rel=1e-6)
    assert peak_mib < 8 * 16  # 24 activations of 16 MiB each


def test_an_interrupted_observation_goes_on_and_ends_the_same(token_bundle, tmp_path, monkeypatch):
    path = token_bundle()
    whole = look(path, tmp_path / "a")
    monkeypatch.setattr("fathom.calibration.observation.observe.SAVE_EVERY_S", -1)
    for stop in (3, 9, 15):
        count = 0

        def tick(what, total, stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            look(path, tmp_path / f"j{stop}", tick=tick)
        assert all(same(whole[stage], seen) for stage, seen in look(path, tmp_path / f"j{stop}").items())


@pytest.mark.parametrize("saved", [2, 5, 8])
def test_a_kill_right_after_a_write_counts_no_photo_twice(token_bundle, tmp_path, monkeypatch, saved):
    path, put, count = token_bundle(), Journal.put, 0
    whole = look(path, tmp_path / "a")
    monkeypatch.setattr("fathom.calibration.observation.observe.SAVE_EVERY_S", -1)

    def killed(self, name, arrays, **how):
        nonlocal count
        put(self, name, arrays, **how)
        count += name.startswith("stage_")
        if count == saved:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            look(path, tmp_path / "j")
    assert all(same(whole[stage], seen) for stage, seen in look(path, tmp_path / "j").items())


@pytest.mark.parametrize("torn", ["stage_000", "stage_001", "item_000003_000", "*"])
def test_what_a_damaged_journal_has_lost_is_looked_at_again(token_bundle, tmp_path, monkeypatch, torn):
    """The power went away in the second stage, and some files are cut off, empty or zeros."""
    path, count = token_bundle(), 0
    whole = look(path, tmp_path / "a")
    monkeypatch.setattr("fathom.calibration.observation.observe.SAVE_EVERY_S", -1)

    def tick(what, total):
        nonlocal count
        count += what.startswith("pictures")
        if count == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(path, tmp_path / "j", tick=tick)
    damaged = sorted((tmp_path / "j").glob(f"{torn}.npz"))
    assert damaged
    for number, file in enumerate(damaged):
        raw = file.read_bytes()
        file.write_bytes((raw[: len(raw) // 2], b"", bytes(len(raw)), raw[:-200] + bytes(200))[number % 4])
    assert all(same(whole[stage], seen) for stage, seen in look(path, tmp_path / "j").items())


def test_an_observation_goes_on_in_the_passes_it_was_begun_with(token_bundle, tmp_path, monkeypatch):
    """The memory that is free is another after an interruption: no tensor may be looked at twice for that, or not at all."""
    from fathom.calibration.observation import observe as module

    path, plan = token_bundle(), module._plan
    whole, count = look(path, tmp_path / "a"), 0

    def tick(what, total):
        nonlocal count
        count += what.startswith("pictures")
        if count == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_plan", lambda *facts: [[name] for names in plan(*facts) for name in names])
        with pytest.raises(KeyboardInterrupt):
            look(path, tmp_path / "b", tick=tick)
    assert all(same(whole[stage], seen) for stage, seen in look(path, tmp_path / "b").items())


def test_the_choice_once_made_its_ranges_hold_what_selected_too(token_bundle, calibrated):
    """Few photos are a narrow view: those that selected widen the ranges that are proven and kept, those of the proof never do."""
    path = token_bundle()
    table = calibrated(path).table
    splits = table.data["splits"]
    read = {part: greatest_features(path, set(splits[part])) for part in ("observe", "select", "prove")}
    assert table.stages["head"]["features"].greatest == pytest.approx(max(read["observe"], read["select"]), rel=1e-5)
    assert table.peaks["encoder"]["features"] == pytest.approx(max(read["observe"], read["select"]), rel=1e-5)
    assert table.images == len(splits["observe"]) + len(splits["select"])
