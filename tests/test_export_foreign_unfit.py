"""ONNX files of others that look right and are not: names that meet, training mode, chance, libraries, old grids, branches."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from foreign_graphs import KERNEL, PLAIN, H, W, answer, contract_json, conv_sigmoid, picture
from onnx import TensorProto, helper, numpy_helper

from fathom.calibration.graph.stage_graph import StageGraph
from fathom.export.foreign.contract_file import GraphForm, foreign_contract
from fathom.export.foreign.foreign import write_foreign_bundle
from fathom.export.plan.build import BuildOptions, build_plan
from fathom.export.precision.rounded import write_rounded_stage
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import InputError
from fathom.runtime.pipeline import Pipeline

PICTURE = picture()
node = helper.make_node


def network(file, *, takes="x", makes="y", size=("n", 3, H, W), before=(), middle=(), after=(), constants=(), opset=17, domains=()):
    """sigmoid(conv(x)): ``before`` leads to "p", ``middle`` from "c" to "m", ``after`` from "s" to the output."""
    value = helper.make_tensor_value_info
    nodes = [
        *(before or [node("Identity", [takes], ["p"])]),
        node("Conv", ["p", "kernel"], ["c"], pads=[2] * 4),
        *(middle or [node("Identity", ["c"], ["m"])]),
        node("Sigmoid", ["m"], ["s"]),
        *(after or [node("Identity", ["s"], [makes])]),
    ]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in (("kernel", KERNEL), *constants)]
    body = helper.make_graph(nodes, "g", [value(takes, TensorProto.FLOAT, size)], [value(makes, TensorProto.FLOAT, None)], weights)
    imports = [helper.make_opsetid(name, version) for name, version in (("", opset), *domains)]
    onnx.save(helper.make_model(body, opset_imports=imports, ir_version=8), file)
    return file


def contract(takes="x", makes="y"):
    return foreign_contract(contract_json(input={"tensor": takes, **PLAIN}, output={"tensor": makes}))


MEETING = {
    "an inner tensor has the input's new name": {
        "takes": "an input",
        "before": [node("Identity", ["an input"], ["an_input"]), node("Identity", ["an_input"], ["p"])],
    },
    "an inner tensor has the output's new name": {
        "makes": "y depth",
        "after": [node("Identity", ["s"], ["y_depth"]), node("Identity", ["y_depth"], ["y depth"])],
    },
    "both ends get the same name": {"takes": "a b", "makes": "a+b"},
    "a weight has the input's new name": {"takes": "a b", "before": [node("Add", ["a b", "a_b"], ["p"])], "constants": [("a_b", np.float32(0))]},
}


@pytest.mark.parametrize("which", MEETING)
def test_names_that_artefacts_change_may_be_taken_already(tmp_path, which):
    options = MEETING[which]
    write_foreign_bundle(network(tmp_path / "n.onnx", **options), contract(options.get("takes", "x"), options.get("makes", "y")), tmp_path / "b")
    np.testing.assert_allclose(answer(tmp_path / "b", PICTURE), conv_sigmoid(PICTURE), atol=1e-5)


def test_the_graph_of_a_bundle_is_a_foreign_graph_too(tmp_path):
    """Its own adapters' names are there already."""
    last = [node("Transpose", ["x"], ["p"], perm=[0, 3, 1, 2])]
    squeezed = [node("Squeeze", ["s", "one"], ["y"])]
    write_foreign_bundle(
        network(tmp_path / "n.onnx", size=("n", H, W, 3), before=last, after=squeezed, constants=[("one", np.array([1]))]), contract(), tmp_path / "a"
    )
    graph = tmp_path / "a" / "stages" / "network.onnx"
    write_foreign_bundle(graph, replace(contract(), form=GraphForm("x", "y", "bgr")), tmp_path / "b")
    np.testing.assert_allclose(answer(tmp_path / "b", PICTURE), conv_sigmoid(np.ascontiguousarray(PICTURE[:, ::-1])), atol=1e-5)


def test_channels_last_are_seen_where_no_size_tells(tmp_path):
    before = [node("Sub", ["x", "zero"], ["z"]), node("Transpose", ["z"], ["p"], perm=[0, 3, 1, 2])]
    write_foreign_bundle(
        network(tmp_path / "n.onnx", size=("a", "b", "c", "d"), before=before, constants=[("zero", np.float32(0))]), contract(), tmp_path / "b"
    )
    np.testing.assert_allclose(answer(tmp_path / "b", PICTURE), conv_sigmoid(PICTURE), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"middle": [node("RandomNormalLike", ["c"], ["r"]), node("Add", ["c", "r"], ["m"])]}, "draws random numbers .RandomNormalLike"),
        (
            {"middle": [node("Dropout", ["c", "half", "yes"], ["m"])], "constants": [("half", np.float32(0.5)), ("yes", np.array(True))]},
            r"training mode \(Dropout\).*model\.eval",
        ),
        (
            {
                "middle": [node("BatchNormalization", ["c", "one", "nil", "nil", "one"], ["m", "u", "v"], training_mode=1)],
                "constants": [("one", np.ones(1, np.float32)), ("nil", np.zeros(1, np.float32))],
            },
            r"training mode \(BatchNormalization\)",
        ),
        (
            {"middle": [node("DeformConv2d", ["c"], ["m"], domain="mmdeploy")], "domains": [("mmdeploy", 1)]},
            "mmdeploy:DeformConv2d, operators of another library",
        ),
    ],
    ids=["noise", "dropout", "batch norm", "a library's operator"],
)
def test_what_cannot_give_the_same_metres_each_time_is_refused(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        write_foreign_bundle(network(tmp_path / "n.onnx", **options), contract(), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def half_branches(file):
    """sigmoid(conv(x)) * 2 by FP16 weights and casts, with an If whose branches hold FP16 numbers of their own; ``y`` is FP16."""
    half, value = TensorProto.FLOAT16, helper.make_tensor_value_info
    quarter = numpy_helper.from_array(np.float16([0.25]), "quarter")
    inner = [node("Constant", [], ["eight"], value=numpy_helper.from_array(np.float16([8]), "v")), node("Mul", ["s", "quarter"], ["a"])]
    then = helper.make_graph([*inner, node("Mul", ["a", "eight"], ["t"])], "t", [], [value("t", half, None)], [quarter])
    zeros = node("ConstantOfShape", ["shape"], ["e"], value=numpy_helper.from_array(np.float16([3]), "v"))
    other = helper.make_graph([zeros], "e", [], [value("e", half, None)])
    nodes = [
        node("Conv", ["x", "kernel"], ["c"], pads=[2] * 4),
        node("Cast", ["c"], ["wide"], to=TensorProto.FLOAT),
        node("Sigmoid", ["wide"], ["sw"]),
        node("Cast", ["sw"], ["s"], to=half),
        node("If", ["yes"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = [("kernel", KERNEL.astype(np.float16)), ("yes", np.array(True)), ("shape", np.array([1, 1, H, W]))]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights]
    body = helper.make_graph(nodes, "g", [value("x", half, ("n", 3, H, W))], [value("y", half, None)], constants)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def kinds_of(graph):
    """Types of every tensor that a graph names one of, those of its branches included."""
    found = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)} | {t.data_type for t in graph.initializer}
    for one in graph.node:
        for attribute in one.attribute:
            found |= {attribute.t.data_type} if attribute.type == onnx.AttributeProto.TENSOR else set()
            found |= {attribute.i} if attribute.name == "to" else set()
            found |= kinds_of(attribute.g) if attribute.type == onnx.AttributeProto.GRAPH else set()
    return found


@pytest.mark.parametrize("beside", [False, True])
def test_a_graph_of_fp16_becomes_the_fp32_that_its_bundle_says(tmp_path, beside):
    file, said = half_branches(tmp_path / "n.onnx"), []
    if beside:
        onnx.save(onnx.load(file), file, save_as_external_data=True, location="w.bin", size_threshold=16)
    manifest = write_foreign_bundle(file, contract(), tmp_path / "b", on_message=said.append)
    assert manifest.stages[0].precision == "fp32" and any("--precision fp16" in words for words in said)
    graph = onnx.load(str(tmp_path / "b" / "stages" / "network.onnx")).graph
    assert not kinds_of(graph) & {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    rounded = torch.from_numpy(KERNEL.astype(np.float16).astype(np.float32))  # the file's own weights, computed with in FP32
    wanted = torch.sigmoid(torch.nn.functional.conv2d(torch.from_numpy(PICTURE), rounded, padding=2)).numpy() * 2
    np.testing.assert_allclose(answer(tmp_path / "b", PICTURE), wanted, rtol=1e-6, atol=1e-6)
    build_plan(tmp_path / "b", tmp_path / "x.plan", BuildOptions(precision="fp16"))


def test_remarks_are_of_what_the_depth_depends_on_branches_included(tmp_path):
    value = helper.make_tensor_value_info
    then = helper.make_graph([node("NonZero", ["s"], ["places"]), node("Identity", ["s"], ["t"])], "t", [], [value("t", TensorProto.FLOAT, None)])
    other = helper.make_graph([node("Identity", ["s"], ["e"])], "e", [], [value("e", TensorProto.FLOAT, None)])
    after = [node("If", ["yes"], ["y"], then_branch=then, else_branch=other), node("Unique", ["s"], ["unread"])]
    file, said = network(tmp_path / "n.onnx", after=after, constants=[("yes", np.array(True))]), []
    model = onnx.load(file)
    model.functions.append(helper.make_function("mine", "Same", ["a"], ["b"], [node("Identity", ["a"], ["b"])], [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[0].CopyFrom(node("Same", ["x"], ["p"], domain="mine"))
    model.graph.output.append(value("unread", TensorProto.FLOAT, None))
    onnx.save(model, file)
    write_foreign_bundle(file, contract(), tmp_path / "b", on_message=said.append)
    refused = [words for words in said if "TensorRT will not compile" in words]
    assert len(refused) == 1 and "NonZero" in refused[0] and not any("quantised" in words for words in said)


def test_what_only_unnamed_outputs_read_is_not_looked_at(tmp_path):
    model = onnx.load(network(tmp_path / "n.onnx"))
    model.graph.node.append(node("RandomNormalLike", ["c"], ["r"]))
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "n.onnx")
    write_foreign_bundle(tmp_path / "n.onnx", contract(), tmp_path / "b")


def enlarged(opset, op, mode, scale):
    nodes = {
        "Upsample 7": node("Upsample", ["x"], ["y"], mode=mode, scales=[1.0, 1.0, *scale]),
        "Upsample 9": node("Upsample", ["x", "scales"], ["y"], mode=mode),
        "Resize 10": node("Resize", ["x", "scales"], ["y"], mode=mode),
    }
    value = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(np.array([1, 1, *scale], np.float32), "scales")] if opset > 8 else []
    body = helper.make_graph([nodes[op]], "g", [value("x", TensorProto.FLOAT, [1, 3, 12, 16])], [value("y", TensorProto.FLOAT, None)], weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("opset", "op"), [(7, "Upsample 7"), (8, "Upsample 7"), (9, "Upsample 9"), (10, "Resize 10")])
@pytest.mark.parametrize("scale", [(2.0, 2.0), (1.75, 2.5)])
def test_old_graphs_keep_the_grid_on_which_they_enlarge(opset, op, mode, scale):
    """Up to opset 10, pixel i lies at i / scale of the smaller picture; later operators count from the pixels' middles unless told."""
    model = enlarged(opset, op, mode, scale)
    small = np.random.default_rng(0).standard_normal((1, 3, 12, 16)).astype(np.float32)
    graph = StageGraph(model, None)
    graph.modernise()
    (got,) = ort.InferenceSession(graph.model.SerializeToString()).run(None, {"x": small})
    rows, columns = (np.arange(int(size * s)) / s for size, s in zip(small.shape[2:], scale, strict=True))
    if mode == "nearest":
        wanted = small[:, :, rows.astype(int)][..., columns.astype(int)]
    else:
        up = np.stack([np.interp(rows, np.arange(12), column) for column in np.moveaxis(small, 2, -1).reshape(-1, 12)]).reshape(1, 3, 16, -1)
        wanted = np.stack([np.interp(columns, np.arange(16), row) for row in np.moveaxis(up, 2, -1).reshape(-1, 16)]).reshape(1, 3, len(rows), -1)
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_branches_and_loops_stay_fp32_in_a_simulated_fp16_plan(tmp_path):
    """The rest is rounded, and branches read what was rounded."""
    value = helper.make_tensor_value_info
    then = helper.make_graph([node("Identity", ["c"], ["t"])], "t", [], [value("t", TensorProto.FLOAT, None)])
    other = helper.make_graph([node("Neg", ["c"], ["e"])], "e", [], [value("e", TensorProto.FLOAT, None)])
    middle = [node("Size", ["x"], ["many"]), node("Greater", ["many", "few"], ["yes"]), node("If", ["yes"], ["m"], then_branch=then, else_branch=other)]
    write_foreign_bundle(network(tmp_path / "n.onnx", middle=middle, constants=[("few", np.array(5))]), contract(), tmp_path / "b")
    with BundleDirectory.open(tmp_path / "b") as bundle:
        (stage,) = bundle.manifest.stages
        assert write_rounded_stage(bundle.path(stage.file), tmp_path / "r.onnx", stage, (), {}) > 2
    (got,) = ort.InferenceSession(str(tmp_path / "r.onnx")).run(None, {"x": PICTURE})
    p, kernel = (torch.from_numpy(a).half().float() for a in (PICTURE, KERNEL))
    conv = torch.nn.functional.conv2d(p, kernel, padding=2).half().float()
    np.testing.assert_allclose(got, torch.sigmoid(conv).half().float().numpy(), atol=6e-4)
    np.testing.assert_array_equal(got, got.astype(np.float16))


@pytest.mark.parametrize("how", ["sparse", "a function of an older opset", "a path as Windows writes it"])
def test_weights_and_functions_in_seldom_forms(tmp_path, how):
    model = onnx.load(network(tmp_path / "n.onnx"))
    if how == "sparse":
        model.graph.initializer.remove(next(one for one in model.graph.initializer if one.name == "kernel"))
        indices = numpy_helper.from_array(np.argwhere(np.ones_like(KERNEL)), "kernel_at")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(numpy_helper.from_array(KERNEL.reshape(-1), "kernel"), indices, KERNEL.shape))
    elif how == "a function of an older opset":
        model.functions.append(helper.make_function("mine", "Curve", ["a"], ["b"], [node("Sigmoid", ["a"], ["b"])], [helper.make_opsetid("", 13)]))
        model.opset_import.append(helper.make_opsetid("mine", 1))
        curve = next(one for one in model.graph.node if one.op_type == "Sigmoid")
        curve.op_type, curve.domain = "Curve", "mine"
    onnx.save(model, tmp_path / "n.onnx", save_as_external_data=how.startswith("a path"), location="w.bin", size_threshold=8)
    if how.startswith("a path"):
        (tmp_path / "data").mkdir()
        (tmp_path / "w.bin").rename(tmp_path / "data" / "w.bin")
        model = onnx.load(tmp_path / "n.onnx", load_external_data=False)
        for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"):
            entry.value = "data\\w.bin"
        (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    write_foreign_bundle(tmp_path / "n.onnx", contract(), tmp_path / "b")
    np.testing.assert_allclose(answer(tmp_path / "b", PICTURE), conv_sigmoid(PICTURE), atol=1e-5)
    build_plan(tmp_path / "b", tmp_path / "x.plan", BuildOptions(precision="fp16"))


def test_sums_of_integers_keep_their_numbers_in_fp16(tmp_path):
    """Dynamic quantisation as ONNX Runtime's tools write it: sums up to 255 * 127 * 75 times a factor near 1e-6."""
    largest = float(np.abs(KERNEL).max()) / 127
    whole = np.round(KERNEL / largest).astype(np.int8)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "q_scale", "q_zero"]),
        node("Mul", ["q_scale", "k_scale"], ["both"]),
        node("ConvInteger", ["q", "k", "q_zero", "k_zero"], ["sum"], pads=[2] * 4),
        node("Cast", ["sum"], ["many"], to=TensorProto.FLOAT),
        node("Mul", ["many", "both"], ["c"]),
        node("Sigmoid", ["c"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(a, n) for a, n in ((whole, "k"), (np.float32(largest), "k_scale"), (np.int8(0), "k_zero"))]
    ends = [value("x", TensorProto.FLOAT, [1, 3, H, W])], [value("y", TensorProto.FLOAT, None)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", *ends, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    said = []
    write_foreign_bundle(tmp_path / "n.onnx", contract(), tmp_path / "b", on_message=said.append)
    assert any("quantised already, in 2 nodes" in words for words in said)
    build_plan(tmp_path / "b", tmp_path / "x.plan", BuildOptions(precision="fp16"))
    photo = (PICTURE[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    with Pipeline.open(tmp_path / "x.plan") as pipeline:
        got = pipeline.predict(photo).depth_m
    np.testing.assert_allclose(got, conv_sigmoid((photo.transpose(2, 0, 1)[None] / 255).astype(np.float32))[0, 0], atol=1e-2)


def outside(model, **facts):
    kernel = model.graph.initializer[0]
    kernel.ClearField("raw_data")
    kernel.data_location = TensorProto.EXTERNAL
    for key, value in facts.items():
        kernel.external_data.add(key=key, value=value)


def called_with_too_much(model):
    model.functions.append(helper.make_function("mine", "Same", ["a"], ["b"], [node("Identity", ["a"], ["b"])], [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[0].CopyFrom(node("Same", ["x", "x"], ["p"], domain="mine"))


def sparse(model):
    values, places = (numpy_helper.from_array(np.array(a), "v") for a in (np.float32([1]), np.array([0])))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [-3]))


def two_ratios(model):
    model.graph.initializer.extend(numpy_helper.from_array(np.array(a), name) for name, a in (("two", np.float32([0, 1])), ("on", [True])))
    model.graph.node[2].CopyFrom(node("Dropout", ["c", "two", "on"], ["m"]))


BROKEN = {
    "bytes of a weight are missing": lambda model: setattr(model.graph.initializer[0], "raw_data", b"123"),
    "a weight has a shape of another size": lambda model: model.graph.initializer[0].dims.append(3),
    "a weight has no type that is known": lambda model: setattr(model.graph.initializer[0], "data_type", 99),
    "a weight outside has a length in words": lambda model: outside(model, location="w.bin", length="long"),
    "a weight outside has an odd name": lambda model: outside(model, location="a\0b"),
    "a weight outside has a longer name than a file": lambda model: outside(model, location="a" * 300),
    "a weight outside has less than no size": lambda model: (outside(model, location="w.bin"), model.graph.initializer[0].dims.append(-1)),
    "a sparse weight has less than no size": sparse,
    "the input has no type that is known": lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 99),
    "a constant says nothing": lambda model: model.graph.node.insert(0, node("Constant", [], ["k"])),
    "a constant goes nowhere": lambda model: model.graph.node.insert(0, node("Constant", [], [], value_float=1.0)),
    "a function takes less than it is given": called_with_too_much,
    "a Dropout with two ratios": two_ratios,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_graph_is_an_input_error_in_words(tmp_path, how):
    file = network(tmp_path / "n.onnx", after=[node("Add", ["s", "k"], ["y"])] if "constant" in how else ())
    model = onnx.load(file)
    BROKEN[how](model)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(InputError):
        write_foreign_bundle(file, contract(), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["n.onnx"]
