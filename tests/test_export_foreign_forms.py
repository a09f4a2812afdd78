"""Foreign networks in every form in which depth networks are published."""

import numpy as np
import onnx
import pytest
from foreign_graphs import KERNEL, PLAIN, H, W, answer, contract_json, conv_sigmoid, picture
from onnx import TensorProto, helper, numpy_helper

from fathom.export.foreign.contract_file import foreign_contract
from fathom.export.foreign.foreign import write_foreign_bundle
from fathom.export.plan.build import BuildOptions, build_plan
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import InputError
from fathom.runtime.pipeline import Pipeline


def form(
    folder, *, kind=TensorProto.FLOAT, size=("n", 3, H, W), before=(), after=(), out=("n", 1, H, W), outputs=(), opset=17, constants=(), name="x", made="y"
):
    """conv_sigmoid in the form of somebody's export: ``before`` leads to "p", ``after`` leads from "s" to the output ``made``."""
    weights = [numpy_helper.from_array(KERNEL, "kernel"), *(numpy_helper.from_array(value, key) for key, value in constants)]
    nodes = [
        *(before or [helper.make_node("Identity", [name], ["p"])]),
        helper.make_node("Conv", ["p", "kernel"], ["c"], pads=[2] * 4),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        *(after or [helper.make_node("Identity", ["s"], [made])]),
    ]
    depth = helper.make_tensor_value_info(made, TensorProto.FLOAT, out)
    inputs = [helper.make_tensor_value_info(name, kind, size)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, [*outputs, depth], weights), opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


PLAIN_CONTRACT = foreign_contract(contract_json(input=PLAIN))
node = helper.make_node


FORMS = {
    "[N,H,W]": ({"after": [node("Squeeze", ["s", "axis"], ["y"])], "out": ["n", H, W], "constants": [("axis", np.array([1]))]}, 1),
    "[H,W]": ({"after": [node("Squeeze", ["s", "axes"], ["y"])], "out": [H, W], "size": (1, 3, H, W), "constants": [("axes", np.array([0, 1]))]}, 1),
    "NHWC": ({"before": [node("Transpose", ["x"], ["p"], perm=[0, 3, 1, 2])], "size": ("n", H, W, 3)}, 1),
    "NHWC out": ({"after": [node("Transpose", ["s"], ["y"], perm=[0, 2, 3, 1])], "out": ["n", H, W, 1]}, 1),
    "free size": ({"size": ("n", 3, "h", "w"), "out": ["n", 1, "h", "w"]}, 1),
    "no shape at all": ({"out": None}, 1),
    "two outputs": ({"outputs": [helper.make_tensor_value_info("c", TensorProto.FLOAT, ["n", 1, H, W])]}, 1),
    "bytes": (
        {
            "kind": TensorProto.UINT8,
            "before": [node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), node("Div", ["f", "full"], ["p"])],
            "constants": [("full", np.float32(255))],
        },
        1,
    ),
    "half": (
        {"kind": TensorProto.FLOAT16, "before": [node("Cast", ["x"], ["p"], to=TensorProto.FLOAT)]},
        1,
    ),
    "[3,H,W]": (
        {"before": [node("Unsqueeze", ["x", "first"], ["p"])], "size": (3, H, W), "out": [1, 1, H, W], "constants": [("first", np.array([0]))]},
        1,
    ),
    "one view of many": (
        {
            "before": [node("Squeeze", ["x", "axis"], ["p"])],
            "size": ("n", 1, 3, H, W),
            "after": [node("Unsqueeze", ["s", "axis"], ["y"])],
            "out": ["n", 1, 1, H, W],
            "constants": [("axis", np.array([1]))],
        },
        1,
    ),
}


@pytest.mark.parametrize("which", FORMS)
def test_published_forms_give_what_the_network_gives(tmp_path, which):
    options, count = FORMS[which]
    write_foreign_bundle(form(tmp_path, **options), PLAIN_CONTRACT, tmp_path / "bundle")
    shown = np.round(picture(count) * 255) / np.float32(255)  # what bytes can show too
    np.testing.assert_allclose(answer(tmp_path / "bundle", shown), conv_sigmoid(shown), atol=1e-5)
    with Pipeline.open(tmp_path / "bundle") as pipeline:
        assert pipeline.predict(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).depth_m.shape == (40, 60)


def test_inputs_that_only_other_outputs_read_go_with_them(tmp_path):
    model = onnx.load(form(tmp_path, outputs=[helper.make_tensor_value_info("k2", TensorProto.FLOAT, [3, 3])]))
    model.graph.node.append(node("MatMul", ["k", "k"], ["k2"]))
    model.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 3]) for name in ("k", "unread"))
    onnx.save(model, tmp_path / "net.onnx")
    write_foreign_bundle(tmp_path / "net.onnx", PLAIN_CONTRACT, tmp_path / "bundle")
    np.testing.assert_allclose(answer(tmp_path / "bundle", picture()), conv_sigmoid(picture()), atol=1e-5)


def test_what_onnx_runtime_forgives_is_forgiven(tmp_path):
    """Nodes before those they read from, and the standard operators' domain under its long name."""
    model = onnx.load(form(tmp_path))
    nodes = [onnx.NodeProto.FromString(one.SerializeToString()) for one in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for one in (*model.graph.node, *model.opset_import):
        one.domain = "ai.onnx"
    onnx.save(model, tmp_path / "net.onnx")
    write_foreign_bundle(tmp_path / "net.onnx", PLAIN_CONTRACT, tmp_path / "bundle")
    np.testing.assert_allclose(answer(tmp_path / "bundle", picture()), conv_sigmoid(picture()), atol=1e-5)


@pytest.mark.parametrize(
    ("after", "size", "words"),
    [
        (node("Transpose", ["s"], ["y"], perm=[0, 1, 3, 2]), (1, 1, W, H), "48x32, and the window 32x48"),
        (node("Flatten", ["s"], ["y"]), (1, H * W), "1x1536, and the window 32x48"),
        (node("ReduceMean", ["s"], ["y"], axes=[2]), (1, 1, 1, W), "1x48, and the window 32x48"),
    ],
    ids=["transposed", "one row", "one row of columns"],
)
def test_a_map_of_other_proportions_is_no_map_of_the_window(tmp_path, after, size, words):
    with pytest.raises(InputError, match=words):
        write_foreign_bundle(form(tmp_path, after=[after], out=size, size=(1, 3, H, W)), PLAIN_CONTRACT, tmp_path / "bundle")


@pytest.mark.parametrize("which", ["[N,H,W]", "free size", "bytes"])
def test_published_forms_compile(tmp_path, which):
    pytest.importorskip("tensorrt_rtx")
    write_foreign_bundle(form(tmp_path, **FORMS[which][0]), PLAIN_CONTRACT, tmp_path / "bundle")
    report = build_plan(tmp_path / "bundle", tmp_path / "x.plan", BuildOptions("tensorrt-rtx", "fp16", ("sm86",)))
    assert report.stages[0].layers == {"half": 1}


def test_bgr_pixels_to_255_and_disparity_are_said_in_the_contract(tmp_path, monkeypatch):
    shown = picture()
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    for values, truth in (
        ({"form": "inverse-depth", "scale": 2.0}, lambda s: 2 / s),
        ({"form": "scaled-disparity", "near": 0.1, "far": 100.0, "scale": 5.4}, lambda s: 5.4 / (0.01 + 9.99 * s)),
        ("depth", lambda s: s),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        said = contract_json(input={"mean": mean.tolist(), "std": std.tolist()})
        said["graph"] = {"channels": "bgr", "pixels": 255, "values": values}
        write_foreign_bundle(form(folder), foreign_contract(said), folder / "bundle")
        np.testing.assert_allclose(answer(folder / "bundle", shown), truth(conv_sigmoid(np.ascontiguousarray(shown[:, ::-1]))), rtol=2e-5)
        with BundleDirectory.open(folder / "bundle") as bundle:
            np.testing.assert_allclose(bundle.manifest.contract.input.mean, mean / 255)  # and nothing of the file's own form is left
            assert "graph" not in bundle.manifest.contract.to_json()


def test_any_name_that_onnx_allows_is_taken(tmp_path):
    said = contract_json(input={**PLAIN, "tensor": "input image (1)"}, output={"tensor": "tiefe/ü"})
    write_foreign_bundle(form(tmp_path, name="input image (1)", made="tiefe/ü"), foreign_contract(said), tmp_path / "bundle")
    np.testing.assert_allclose(answer(tmp_path / "bundle", picture()), conv_sigmoid(picture()), atol=1e-5)


def branches(folder):
    """y = If(mean(s) > 2, s, s * weight), the weight read in the branch only; and a loop that adds a weight ten times."""
    weight = numpy_helper.from_array(np.full((1, 1, H, W), 0.25, np.float32), "weight")
    then = helper.make_graph([node("Identity", ["s"], ["t"])], "t", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)])
    other = helper.make_graph([node("Mul", ["s", "weight"], ["e"])], "e", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)])
    step = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Add", ["sum", "tenth"], ["more"])],
        "body",
        [
            helper.make_tensor_value_info("k", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("more", TensorProto.FLOAT, None)],
    )
    after = [
        node("ReduceMean", ["s"], ["mean"], keepdims=0),
        node("Greater", ["mean", "two"], ["yes"]),
        node("If", ["yes"], ["picked"], then_branch=then, else_branch=other),
        node("Loop", ["ten", "", "picked"], ["y"], body=step),
    ]
    constants = [("two", np.float32(2)), ("ten", np.array(10)), ("tenth", np.float32(0.1))]
    file = form(folder, after=after, constants=constants)
    model = onnx.load(str(file))
    model.graph.initializer.append(weight)
    onnx.save(model, file)
    return file


@pytest.mark.parametrize("where", ["inside", "beside the graph", "in a Constant node beside the graph", "in a local function"])
def test_weights_are_found_wherever_they_are_read(tmp_path, where):
    file = branches(tmp_path)
    model = onnx.load(str(file))
    if where == "in a local function":
        model.functions.append(helper.make_function("mine", "Same", ["a"], ["b"], [node("Identity", ["a"], ["b"])], [helper.make_opsetid("", 17)]))
        model.opset_import.append(helper.make_opsetid("mine", 1))
        model.graph.node.insert(0, node("Same", ["x"], ["x2"], domain="mine"))
        model.graph.node[1].input[0] = "x2"
        onnx.save(model, file)
    elif where == "beside the graph":
        onnx.save(model, file, save_as_external_data=True, location="w.bin", size_threshold=16)
    elif where != "inside":
        (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "weight"]
        model.graph.node.insert(0, node("Constant", [], ["weight"], value=weight))
        del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("weight")]
        onnx.save(model, file, save_as_external_data=True, location="w.bin", size_threshold=16, convert_attribute=True)
    write_foreign_bundle(file, PLAIN_CONTRACT, tmp_path / "bundle")
    wanted = conv_sigmoid(picture()) * 0.25 + 1
    np.testing.assert_allclose(answer(tmp_path / "bundle", picture()), wanted, rtol=1e-5)
    build_plan(tmp_path / "bundle", tmp_path / "x.plan", BuildOptions())  # the engine's own passes keep them too
