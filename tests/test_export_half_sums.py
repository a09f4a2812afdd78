"""Sums of FP16 products in FP32, also where ONNX Runtime's CPU has FP16 kernels."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from fathom.export.onnxruntime import half_sums
from fathom.export.onnxruntime.half_sums import sum_in_fp32
from fathom.export.parity.stage_runner import run_stages

STEP = 2.0**-11  # what one rounding to FP16 takes at most, of a number


def graph_of_sums():
    """Every kind of node that adds up, over 2304 numbers or more, each with an output of its own; and a Relu, which does not."""
    rng = np.random.default_rng(0)
    half = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float16)  # noqa: E731
    x, rows = half(1, 256, 6, 6), half(2, 4096)
    weights = {"kernel": half(8, 256, 3, 3), "bias": half(8), "matrix": half(4096, 8), "scale": half(4096), "axes": np.array([2, 3], np.int64)}
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "kernel", "bias"], ["conv"], name="conv", pads=[1] * 4),
        make("MatMul", ["rows", "matrix"], ["product"], name="product"),
        make("Gemm", ["rows", "matrix", "bias"], ["gemm"], name="gemm"),
        make("ReduceMean", ["x", "axes"], ["mean"], name="mean"),
        make("LayerNormalization", ["rows", "scale"], ["norm", "", "spread"], name="norm"),
        make("Relu", ["x"], ["relu"], name="relu"),
    ]
    exact = {name: array.astype(np.float64) for name, array in {"x": x, "rows": rows, **weights}.items()}
    padded = np.pad(exact["x"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    product, centred = exact["rows"] @ exact["matrix"], exact["rows"] - exact["rows"].mean(-1, keepdims=True)
    wanted = {
        "conv": np.einsum("bchwij,ocij->bohw", windows, exact["kernel"]) + exact["bias"][:, None, None],
        "product": product,
        "gemm": product + exact["bias"],
        "mean": exact["x"].mean((2, 3), keepdims=True),
        "norm": centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * exact["scale"],
        "relu": np.maximum(exact["x"], 0),
    }
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT16, v.shape) for n, v in (("x", x), ("rows", rows))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, array.shape) for name, array in wanted.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return model, {"x": x, "rows": rows}, wanted


def test_every_sum_is_taken_in_fp32_and_rounded_once(monkeypatch):
    monkeypatch.setattr(half_sums, "SUMS_IN_FP16", True)
    model, feeds, wanted = graph_of_sums()
    assert sum_in_fp32(model) == 5
    onnx.checker.check_model(model, full_check=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    for node in model.graph.node:
        if node.op_type not in ("Cast", "Relu"):
            assert {kinds[name] for name in node.output if name} == {TensorProto.FLOAT}, node.name
    assert "spread" not in {name for node in model.graph.node if node.op_type == "Cast" for name in node.output}  # FP32 by ONNX's own rule
    assert [node.input[0] for node in model.graph.node if node.op_type == "Cast"].count("matrix") == 1  # two products share it
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, got in zip(wanted, session.run([*wanted], feeds), strict=True):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(np.float64), wanted[name], rtol=STEP * 1.01, atol=2e-5, err_msg=name)
    assert sum_in_fp32(model) == 0


def test_graphs_in_fp32_are_left_alone(monkeypatch):
    monkeypatch.setattr(half_sums, "SUMS_IN_FP16", True)
    value = helper.make_tensor_value_info
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "a"], ["b"])], "g", [value("a", 1, [2, 2])], [value("b", 1, [2, 2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    before = model.SerializeToString(deterministic=True)
    assert sum_in_fp32(model) == 0 and model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("forced", [False, True])
def test_the_gate_judges_types_and_not_a_processors_sums(tmp_path, monkeypatch, forced):
    """As this machine does it, and as an ARM does: within the one rounding of each output, where FP16 sums would be off by tens of it."""
    if forced:
        monkeypatch.setattr(half_sums, "SUMS_IN_FP16", True)
    model, feeds, wanted = graph_of_sums()
    onnx.save(model, tmp_path / "sums.onnx")
    save_file({**feeds, **{name: np.float32(array) for name, array in wanted.items()}}, tmp_path / "golden.safetensors")
    tensors = lambda names: [{"name": name, "dtype": "float16"} for name in names]  # noqa: E731
    stage = {"name": "sums", "file": str(tmp_path / "sums.onnx"), "inputs": tensors(feeds), "outputs": tensors(wanted)}
    request = {"stages": [stage], "golden": str(tmp_path / "golden.safetensors"), "output": "conv", "save": "", "probes": ""}
    rows = run_stages({**request, "isolated": False, "engines": False}, lambda *_, **__: None)["rows"]
    assert {row["tensor"] for row in rows} == wanted.keys()
    for row in rows:
        assert row["relative"] < STEP * 1.02, row
