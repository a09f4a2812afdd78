"""FP16 simulated for ONNX Runtime: the roundings of an FP16 engine, worked out by hand in NumPy."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.calibration.precision.precision_plan import Choice, RegionPlan
from fathom.export.plan.build import BuildOptions, build_plan
from fathom.export.precision.rounded import write_rounded_stage
from fathom.runtime.artefact.manifest import BundleStage
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.commands.inspection import describe
from fathom.runtime.pipeline import Pipeline


def half(values):
    return values.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """y = softmax(x W) V, whose softmax stays FP32 in every typed stage."""
    draw = np.random.default_rng(4)
    w, v = (draw.standard_normal((8, 8)).astype(np.float32) for _ in "wv")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first/MatMul_0"),
        helper.make_node("Softmax", ["a"], ["s"], name="first/Softmax_0"),
        helper.make_node("MatMul", ["s", "v"], ["y"], name="second/MatMul_0"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")])
    file = tmp_path_factory.mktemp("rounded") / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    x, y = (TensorSpec(name, "float32", ("batch", 8)) for name in "xy")
    return file, BundleStage(StageSpec("g", (x,), (y,)), "g.onnx", "fp32"), w, v


def _run(file, x):
    return ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_tensors_are_rounded_where_fp16_stores_them(products, tmp_path):
    file, stage, w, v = products
    x = np.random.default_rng(5).standard_normal((64, 8)).astype(np.float32)
    assert write_rounded_stage(file, tmp_path / "r.onnx", stage, (), {"x": "float16", "y": "float32"}) >= 6
    a = half(half(x) @ half(w))
    e = np.exp(a - a.max(-1, keepdims=True))
    wanted = half(half(e / e.sum(-1, keepdims=True)) @ half(v))
    found = _run(tmp_path / "r.onnx", x)
    assert np.abs(found - wanted).max() <= 2e-3  # one step of FP16 where a sum falls on the other side of a rounding
    assert np.mean(found == wanted) > 0.98 and (half(found) == found).all()


def test_regions_that_a_plan_keeps_are_not_rounded(products, tmp_path):
    file, stage, w, v = products
    x = np.random.default_rng(6).standard_normal((64, 8)).astype(np.float32)
    kept = tuple(
        RegionPlan("g", path, "block", nodes, Choice(precision), "", {})
        for path, nodes, precision in (("first", ("first/MatMul_0", "first/Softmax_0"), "fp32"), ("second", ("second/MatMul_0",), "fp16"))
    )
    write_rounded_stage(file, tmp_path / "r.onnx", stage, kept, {"x": "float32", "y": "float32"})
    a = x @ w
    e = np.exp(a - a.max(-1, keepdims=True))
    assert np.mean(_run(tmp_path / "r.onnx", x) == half(half(e / e.sum(-1, keepdims=True)) @ half(v))) > 0.98


def test_a_plan_of_it_says_what_it_is(small_bundle, small_network, tmp_path):
    said, maps = [], {}
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    for precision in ("fp32", "fp16"):
        report = build_plan(small_bundle, tmp_path / f"{precision}.plan", BuildOptions("onnxruntime", precision), on_message=said.append)
        with Pipeline.open(tmp_path / f"{precision}.plan") as pipeline:
            maps[precision] = pipeline.predict(photo).values
    assert report.parity.label == "graph-only" and report.manifest.precision == "fp16"
    assert any("simulated" in text for text in said) and "FP16 is simulated" in describe(report.manifest)
    moved = np.abs(maps["fp16"] - maps["fp32"]) / maps["fp32"]
    assert 0 < moved.mean() < 5e-3
