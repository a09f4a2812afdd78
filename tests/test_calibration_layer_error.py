"""What INT8 does to a layer's output: rows against PyTorch, observers by that error, biases that make up for its mean."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fathom.calibration.graph.session import StageSession
from fathom.calibration.graph.stage_graph import StageGraph
from fathom.calibration.observation.folds import folds_of
from fathom.calibration.observation.photo import Photo
from fathom.calibration.observation.sample_layers import Place, places, sample_layers
from fathom.calibration.observation.stage_observation import StageObservation
from fathom.calibration.precision.precision_plan import Choice, RegionPlan
from fathom.calibration.precision.quantised_stage import make_quantised, ranges_for, shifts_for, write_quantised_stage
from fathom.calibration.quantisation.correct import bias_place
from fathom.calibration.quantisation.layer_rows import by_channel, geometry_of, greatest_rows, layer_output, sample_rows, weight_matrix
from fathom.calibration.ranges.observers import LAYER_OUTPUT
from fathom.calibration.ranges.table import CalibrationTable


@pytest.fixture
def random():
    return np.random.default_rng(5)


def one_layer(op, weight, shape, **attributes):
    """A stage of one layer that reads ``x``; a bias behind a MatMul."""
    constants = [numpy_helper.from_array(weight, "w")]
    nodes = [helper.make_node(op, ["x", "w"], ["y"], name="a/Layer_0", **attributes)]
    if op == "MatMul":
        constants.append(numpy_helper.from_array(np.zeros(weight.shape[1], np.float32), "b"))
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="a/Layer_0"), helper.make_node("Add", ["m", "b"], ["y"], name="a/Add_0")]
    inputs, outputs = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [inputs], [outputs], constants)
    return StageGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), __import__("pathlib").Path("."))


@pytest.mark.parametrize(
    ("op", "weight", "shape", "attributes"),
    [
        ("Conv", (6, 4, 3, 3), (2, 4, 9, 11), {"pads": [1, 1, 1, 1]}),
        ("Conv", (6, 4, 3, 5), (1, 4, 12, 13), {"pads": [0, 2, 1, 1], "strides": [2, 1], "dilations": [1, 2]}),
        ("Conv", (6, 2, 3, 3), (1, 4, 8, 8), {"group": 2, "pads": [1, 1, 1, 1]}),
        ("ConvTranspose", (4, 3, 2, 2), (1, 4, 5, 6), {"strides": [2, 2]}),
        ("MatMul", (8, 5), (2, 7, 8), {}),
        ("Gemm", (5, 8), (9, 8), {"transB": 1}),
    ],
)
def test_rows_times_the_weight_are_the_layers_output(random, op, weight, shape, attributes):
    w, x = random.normal(size=weight).astype(np.float32), random.normal(size=shape).astype(np.float32)
    graph = one_layer(op, w, shape, **attributes)
    node = graph.model.graph.node[0]
    geometry = geometry_of(graph, node)
    rows = sample_rows(geometry, x, 60, random)
    found = layer_output(rows, weight_matrix(graph, node, w, geometry)).reshape(len(rows), -1)
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)
    if op == "Conv":
        top, left, bottom, right = attributes["pads"]
        padded = torch.nn.functional.pad(tx, (left, right, top, bottom))
        rest = {
            "stride": tuple(attributes.get("strides", (1, 1))),
            "dilation": tuple(attributes.get("dilations", (1, 1))),
            "groups": attributes.get("group", 1),
        }
        wanted = torch.nn.functional.conv2d(padded, tw, **rest).permute(0, 2, 3, 1).reshape(-1, weight[0])
    elif op == "ConvTranspose":  # kernel and stride are equal: every input pixel makes a block of its own
        out = torch.nn.functional.conv_transpose2d(tx, tw, stride=2)  # [1, O, 2h, 2w]
        wanted = out.reshape(1, 3, 5, 2, 6, 2).permute(0, 2, 4, 1, 3, 5).reshape(30, -1)
    else:
        wanted = (tx @ (tw if op == "MatMul" else tw.T)).reshape(-1, 5)
    apart = np.abs(found[:, None, :] - wanted.numpy()[None]).max(axis=2)  # [rows, positions]
    assert apart.min(axis=1).max() < 1e-4 and len(set(apart.argmin(axis=1))) > min(15, len(wanted) // 3)
    spike = x.copy()
    spike[tuple(size // 2 for size in x.shape)] = -40
    assert greatest_rows(geometry, spike, 1).min() == -40
    if op == "ConvTranspose":  # with a constant error per tap, every output pixel is off by exactly one of them
        assert np.allclose(by_channel(np.full((1, 12), 0.5), geometry), [0.5] * 3)


def observed(graph, *scenes):
    """What an observation of a picture of ``x`` in every scene holds."""
    seen = StageObservation()
    for fold, x in enumerate(scenes):
        seen.look(fold, "x", x)
        seen.channels["x"] = np.maximum(seen.channels.get("x", 0.0), np.abs(x).max(axis=tuple(range(x.ndim - 1))))
        sample_layers(seen.samples, seen.origins, graph, ["x"], {"x": x}, (fold, 0), Place(fold, 0, 1, len(scenes)))
    seen.suit(graph)
    return seen


def spiked(random, spike, channel=0, every=50):
    """Normal numbers [2000, 16] with a rare large one in one channel."""
    x = random.normal(size=(2000, 16)).astype(np.float32)
    x[::every, channel] = spike
    return x


def test_the_observer_follows_what_matters_to_the_output(random):
    """Rare large values in one channel, in every scene: narrow where nothing reads that channel, wide where the output hangs on it."""
    weight = random.normal(size=(16, 8)).astype(np.float32)
    scenes = [spiked(random, 60) for _ in range(3)]
    ranges = {}
    for matters in (0.0, 10.0):
        weight[0] = matters
        ranges[matters] = observed(one_layer("MatMul", weight.copy(), (2000, 16)), *scenes).ranges(LAYER_OUTPUT)["x"].amax
    assert ranges[0.0] < 10 and ranges[10.0] == pytest.approx(60, rel=0.01)


def test_a_range_that_clips_must_suit_scenes_it_was_not_read_from(random):
    """The first scene's large values lie where no weight reads them, and clipping them is a gain; the other scene's are what the output hangs on."""
    weight = random.normal(size=(16, 8)).astype(np.float32)
    weight[0], weight[1] = 0, 10
    graph = one_layer("MatMul", weight, (2000, 16))
    idle, busy = spiked(random, 60), spiked(random, 60, channel=1)

    def rounded(x, amax):  # the error that rounding the input makes in the output, by hand
        return float(np.square((np.clip(np.rint(x / amax * 127), -127, 127) * amax / 127 - x) @ weight).sum())

    assert rounded(idle, 6) < rounded(idle, 60) / 4 and rounded(busy, 6) > 4 * rounded(busy, 60)
    for scenes, clips in (((idle, spiked(random, 60)), True), ((idle, busy), False), ((idle, spiked(random, 60), busy), False)):
        found = observed(graph, *scenes).ranges(LAYER_OUTPUT)["x"]
        assert found.amax < 10 if clips else found.amax == found.greatest
    alone = observed(graph, idle)
    assert alone.ranges(LAYER_OUTPUT)["x"].amax == pytest.approx(60, rel=0.01)  # one scene says nothing about others


def test_a_narrow_range_needs_rows_of_every_fold(random):
    """What was never looked at speaks for nothing: the same scenes clip, as long as a sample of both is there."""
    weight = random.normal(size=(16, 8)).astype(np.float32)
    weight[0] = 0
    graph = one_layer("MatMul", weight, (2000, 16))
    seen = observed(graph, spiked(random, 60), spiked(random, 60))
    assert seen.ranges(LAYER_OUTPUT)["x"].amax < 10
    for key, folds in seen.origins.items():
        seen.samples[key], seen.origins[key] = seen.samples[key][folds == 0], folds[folds == 0]
    seen.suit(graph)
    assert seen.ranges(LAYER_OUTPUT)["x"].amax == pytest.approx(60, rel=0.01)


@pytest.mark.parametrize("windows", [100, 400, 1300])
def test_a_sample_is_spread_over_all_windows_and_every_fold_is_in_it(windows):
    """512 rows of a layer, 128 with the greatest magnitudes; every window holds nothing but its own number; one scene is a single photo."""
    graph, samples, origins = one_layer("MatMul", np.ones((16, 8), np.float32), (20, 16)), {}, {}
    folds = {number: 3 if number == 7 else number * 3 // windows for number in range(windows)}
    for window, place in places([(number, 0) for number in range(windows)], folds).items():
        sample_layers(samples, origins, graph, ["x"], {"x": np.full((20, 16), window[0], np.float32)}, window, place)
    for key, most in (("x|rows", 512), ("x|rows|greatest", 128)):
        taken = samples[key][:, 0].astype(int)
        assert most - 8 <= len(taken) <= most and set(origins[key]) == {0, 1, 2, 3}
        assert [folds[number] for number in taken] == origins[key].tolist()
        gaps = np.diff([-1, *np.unique(taken), windows])
        assert gaps.max() <= 2 * max(1, windows / most) + 1  # no stretch of the windows is left out


def test_folds_hold_whole_scenes_and_about_as_many_photos():
    photos = [Photo(number, str(number), "", 1, f"scene {number % 11}") for number in range(40)]
    folds = folds_of(photos)
    assert sorted(folds) == list(range(40)) and len(set(folds.values())) == 4
    assert all(folds[p.number] == folds[q.number] for p in photos for q in photos if p.scene == q.scene)
    sizes = [list(folds.values()).count(fold) for fold in range(4)]
    assert max(sizes) - min(sizes) <= 4
    assert len(set(folds_of(photos[::11]).values())) == 4  # one scene: every photo counts


@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_a_corrected_bias_takes_the_mean_error_away(random, op):
    """A skewed input, cut off at its 99.9th percentile, shifts every output; the bias makes up for it."""
    shape = (1, 4000, 6) if op == "MatMul" else (1, 6, 64, 64)
    x = np.exp(1.5 * random.normal(size=shape)).astype(np.float32)
    weight = np.abs(random.normal(size=(6, 5) if op == "MatMul" else (5, 6, 1, 1))).astype(np.float32)
    graph = one_layer(op, weight, shape)
    seen = observed(graph, x)
    before = StageSession(graph).run({"x": x})["y"]
    axes = (0, 1) if op == "MatMul" else (0, 2, 3)
    means = {}
    for corrected in (False, True):
        choices = {("a/Layer_0", "a/Add_0"): Choice("int8", "percentile-99.9", 0.0, corrected)}
        ranges = ranges_for(graph, choices, seen)
        shifts = shifts_for(graph, choices, ranges, seen)
        tried = graph.copy()
        make_quantised(tried, choices, ranges, shifts, stored=False)
        means[corrected] = np.abs((StageSession(tried).run({"x": x})["y"] - before).mean(axis=axes))
        assert set(shifts) == ({"a/Layer_0"} if corrected else set())
    assert means[True].mean() < 0.6 * means[False].mean()


def test_a_product_without_a_bias_has_no_place_for_a_correction(random):
    graph = one_layer("MatMul", random.normal(size=(6, 5)).astype(np.float32), (3, 6))
    del graph.model.graph.node[1]
    graph.model.graph.output[0].name = "m"
    graph.index()
    assert bias_place(graph, graph.model.graph.node[0]) is None


def test_what_is_written_is_what_was_tried(calibration_bundles, tmp_path, random):
    """Smoothing, a divided convolution input and corrected biases, stored in a file and simulated: the same numbers."""
    graph = calibration_bundles.load_graph(tmp_path / "g", calibration_bundles.token_models()[0])
    image = {"image": random.normal(size=(1, 3, 32, 48)).astype(np.float32)}
    watched = graph.copy()
    names = ["image", "n", "r0"]
    watched.model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names[1:])
    values = StageSession(watched, optimise=False).run(image) | image
    seen = StageObservation()
    for name in names:
        seen.look(0, name, values[name])
        seen.channels[name] = np.abs(values[name]).max(axis=(0, 2, 3) if values[name].ndim == 4 else (0, 1))
    sample_layers(seen.samples, seen.origins, graph, names, values, (0, 0), Place(0, 0, 1, 1))
    seen.suit(graph)
    choice = Choice("int8", LAYER_OUTPUT, 0.6, True)
    choices = {tuple(node.name for node in graph.model.graph.node): choice}
    ranges = ranges_for(graph, choices, seen)
    shifts = shifts_for(graph, choices, ranges, seen)
    assert len(shifts) == 3 and any(":smooth:" in name for name in ranges) and ranges["n"].channels
    tried = graph.copy()
    make_quantised(tried, choices, ranges, shifts, stored=False)
    (region,) = (RegionPlan("encoder", "(all)", "block", nodes, choice, "", {}) for nodes in choices)
    told = {name: tuple(map(float, values)) for name, values in shifts.items()}
    target = tmp_path / "int8.onnx"
    table = CalibrationTable("0" * 64, {}, "", 1, 1, (), {"encoder": ranges}, shifts={"encoder": told})
    write_quantised_stage(tmp_path / "g" / "encoder.onnx", target, (region,), table, "encoder")
    wanted, found = (StageSession(stage).run(image)["features"] for stage in (tried, StageGraph.load(target)))
    plain = StageSession(graph).run(image)["features"]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(plain).max() + 1e-6
    assert 0 < np.abs(found - plain).max() < 0.1 * np.abs(plain).max()
