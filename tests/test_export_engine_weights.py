"""Weights looked for in engines: files put together by hand, and what TensorRT-RTX really wrote."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fathom.export.tensorrt import build as tensorrt_build
from fathom.export.tensorrt.engine_weights import stored_weights
from fathom.runtime.errors import PrecisionError

SHAPES = {
    "conv": (24, 32, 3, 3),
    "up": (32, 20, 2, 2),
    "point": (48, 40, 1, 1),
    "linear": (40, 64),
    "gemm": (64, 40),
    "first": (32, 3, 3, 3),  # three channels: padded, cannot be looked for
}


def graph_file(folder, weights, kind):
    """A graph (never run) that reads each weight in its operator; INT8 ones through a DequantizeLinear."""
    nodes, initializers = [], []
    ops = {"up": "ConvTranspose", "linear": "MatMul", "gemm": "Gemm"}
    for name, values in weights.items():
        initializers.append(numpy_helper.from_array(values, name))
        source = name
        if kind == np.int8:
            nodes.append(helper.make_node("DequantizeLinear", [name, "scale"], [f"{name}:wide"], name=f"{name}/DequantizeLinear"))
            source = f"{name}:wide"
        nodes.append(helper.make_node(ops.get(name, "Conv"), ["x", source], [f"{name}:y"], name=f"{name}/Op"))
    initializers.append(numpy_helper.from_array(np.float32(1), "scale"))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "conv:y")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], initializers)), folder / "g.onnx")
    return folder / "g.onnx"


def as_stored(name, values):
    """Channels innermost; a matrix product as it is, a 1x1 convolution as the product it is."""
    return {4: lambda: values.transpose(0, 2, 3, 1), 2: lambda: values}[values.ndim]() if name != "point" else values[:, :, 0, 0].T


def weights_of(kind, seed):
    rng = np.random.default_rng(seed)
    draw = {np.int8: lambda s: rng.integers(-127, 128, s).astype(np.int8), np.float16: lambda s: rng.normal(size=s).astype(np.float16)}[kind]
    return {name: draw(shape) for name, shape in SHAPES.items()}


def engine_file(folder, parts, rng):
    raw = b""
    for part in parts:
        raw += rng.bytes(4 * int(rng.integers(1, 300))) + part + bytes(-len(part) % 4)
    (folder / "engine").write_bytes(raw + rng.bytes(int(rng.integers(0, 9))))
    return folder / "engine"


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([np.int8, np.float16]), st.integers(0, 1000), st.sets(st.sampled_from(sorted(set(SHAPES) - {"first"}))))
def test_what_is_there_is_found_and_what_is_not_is_named(tmp_path_factory, kind, seed, absent):
    folder, rng, weights = tmp_path_factory.mktemp("engine"), np.random.default_rng(seed), weights_of(kind, seed)
    graph = graph_file(folder, weights, kind)
    parts = [np.ascontiguousarray(as_stored(name, values)).tobytes() for name, values in weights.items() if name not in absent]
    wider = np.float16 if kind == np.int8 else np.float32  # the absent ones were stored in more bits
    parts += [np.ascontiguousarray(as_stored(name, weights[name])).astype(wider).tobytes() for name in sorted(absent)]
    (found,) = stored_weights(engine_file(folder, parts, rng), graph).values()
    assert (found.stored, found.looked_for, set(found.missing)) == (5 - len(absent), 5, absent)


def test_weights_without_a_face_are_not_looked_for(tmp_path):
    weights = {"conv": np.zeros((24, 32, 3, 3), np.int8), "linear": np.full((40, 64), 7, np.int8)}
    graph = graph_file(tmp_path, weights, np.int8)
    (tmp_path / "engine").write_bytes(bytes(10_000))
    assert stored_weights(tmp_path / "engine", graph) == {}


def test_int8_weights_that_are_not_int8_in_the_engine_end_the_build(tmp_path):
    weights = weights_of(np.int8, 3)
    graph = graph_file(tmp_path, weights, np.int8)
    parts = [np.ascontiguousarray(as_stored(n, v)).astype(np.float16 if n == "gemm" else np.int8).tobytes() for n, v in weights.items()]
    request = {"stage": "unet", "source": str(graph), "target": str(engine_file(tmp_path, parts, np.random.default_rng(0)))}
    with pytest.raises(PrecisionError, match="stage unet: 1 of 5 INT8 weights are not in the engine as INT8, gemm first"):
        tensorrt_build._check_stored(request)
