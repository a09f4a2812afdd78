"""Networks made elsewhere: any depth ONNX with a contract, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from foreign_graphs import contract_json
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from fathom.export.bundle.bundle_files import GOLDEN
from fathom.export.foreign.contract_file import read_contract
from fathom.export.foreign.foreign import example_picture, write_foreign_bundle
from fathom.export.parity import stage_runner
from fathom.export.plan.build import BuildOptions, build_plan
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import AccuracyError, InputError
from fathom.runtime.pipeline import Pipeline

FASTDEPTH = Path(__file__).parents[2] / "shared" / "weights" / "fastdepth_7.onnx"


@pytest.fixture
def contract(tmp_path):
    def make(**changes):
        (tmp_path / "contract.json").write_text(json.dumps(contract_json(**changes)))
        return read_contract(tmp_path / "contract.json")

    return make


def graph(folder, batch="n", size=(16, 24), nodes=None, constants=None, name="net.onnx", opset=12, inputs=None):
    """y = relu(conv(x, stride 2)) + 1, written by hand: no node names, weights listed as inputs, as old exporters did."""
    rng = np.random.default_rng(0)
    kernel = (rng.standard_normal((1, 3, 16, 16)) / 30).astype(np.float32)
    constants = {"kernel": kernel, "one": np.ones(1, np.float32)} if constants is None else constants
    nodes = nodes or [
        helper.make_node("Conv", ["x", "kernel"], ["c"], strides=[2, 2], pads=[7, 7, 7, 7]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["r", "one"], ["y"]),
    ]
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 48]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 1, *size])
    weights = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    listed = [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs or [x, *listed], [y], weights), opset_imports=[helper.make_opsetid("", opset)], ir_version=3)
    onnx.save(model, folder / name)
    return folder / name


def test_a_graph_with_a_contract_becomes_a_bundle_that_computes_the_same(contract, tmp_path):
    file, said = graph(tmp_path), []
    manifest = write_foreign_bundle(file, contract(), tmp_path / "bundle", licence="CC0", on_message=said.append)
    assert manifest.network.weights["kind"] == "foreign" and manifest.network.weights["licence"] == "CC0" and manifest.network.name == "net"
    assert manifest.network.parameters == 3 * 16 * 16 + 1 and manifest.network.config == {"opset": {"ai.onnx": 12}}
    assert "opset 12" in said[0] and manifest.parity["reference"] == "ONNX Runtime's own first run"
    bundle = BundleDirectory.open(tmp_path / "bundle")
    (stage,) = bundle.manifest.stages
    assert [t.shape for t in stage.spec.inputs + stage.spec.outputs] == [("batch", 3, 32, 48), ("batch", 1, 16, 24)]
    x = np.random.default_rng(1).standard_normal((3, 3, 32, 48)).astype(np.float32)
    (wanted,) = ort.InferenceSession(str(file)).run(None, {"x": x})
    (got,) = ort.InferenceSession(str(bundle.path(stage.file))).run(None, {"x": x})
    np.testing.assert_array_equal(got, wanted)
    names = [node.name for node in onnx.load(str(bundle.path(stage.file))).graph.node]
    assert names == ["Conv_0", "Relu_1", "Add_2"]


def test_a_wrong_rewrite_of_ours_is_seen_by_the_gate(tmp_path, monkeypatch):
    """The golden tensors are what the untouched file gives, so that a pass of ours cannot define the truth."""

    def wrong(model, passes):
        for node in model.graph.node if passes else ():
            node.op_type = node.op_type.replace("Add", "Sub")

    monkeypatch.setattr(stage_runner, "rewrite", wrong)
    file, golden = graph(tmp_path), tmp_path / "golden.safetensors"
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 48)).astype(np.float32)
    (wanted,) = ort.InferenceSession(str(file)).run(None, {"x": x})
    save_file({"x": x}, golden)
    stage = {"name": "network", "file": str(file), **{side: [{"name": name, "dtype": "float32"}] for side, name in (("inputs", "x"), ("outputs", "y"))}}
    stage_runner.first_run({"stage": "network", "file": str(file), "golden": str(golden), "output": "y"}, lambda *args, **facts: None)
    np.testing.assert_allclose(load_file(golden)["y"], wanted, rtol=1e-6)
    request = {"stages": [stage], "golden": str(golden), "output": "y", "isolated": True, "engines": False, "save": "", "probes": ""}
    assert stage_runner.run_stages(request, lambda *args, **facts: None)["depth"]["abs_rel"] > 0.1


def test_the_bundle_runs_and_builds(contract, tmp_path):
    write_foreign_bundle(graph(tmp_path), contract(), tmp_path / "bundle")
    build_plan(tmp_path / "bundle", tmp_path / "x.plan", BuildOptions())
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    maps = []
    for artefact in ("bundle", "x.plan"):
        with Pipeline.open(tmp_path / artefact) as pipeline:
            maps.append(pipeline.predict(photo).depth_m)
    np.testing.assert_allclose(*maps, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_compiles_it(contract, tmp_path, precision):
    pytest.importorskip("tensorrt_rtx")
    write_foreign_bundle(graph(tmp_path), contract(), tmp_path / "bundle")
    report = build_plan(tmp_path / "bundle", tmp_path / "x.plan", BuildOptions("tensorrt-rtx", precision, ("sm86",)))
    assert report.stages[0].layers == {"half" if precision == "fp16" else "float": 1}


def test_a_fixed_batch_and_an_open_size_are_found_out(contract, tmp_path):
    manifest = write_foreign_bundle(graph(tmp_path, batch=1, size=("h", "w")), contract(), tmp_path / "bundle")
    assert manifest.stages[0].spec.outputs[0].shape == (1, 1, 16, 24)


def test_weights_beside_the_graph_are_followed(contract, tmp_path):
    file = graph(tmp_path)
    model = onnx.load(str(file))
    onnx.save(model, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.bin", size_threshold=100)
    write_foreign_bundle(file, contract(), tmp_path / "a")
    write_foreign_bundle(tmp_path / "apart.onnx", contract(), tmp_path / "b")
    for name in (GOLDEN, "stages/network.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", ""])
def test_weights_outside_the_folder_are_never_read(contract, tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 16))
    folder = tmp_path / "net"
    folder.mkdir()
    file = graph(folder)
    model = onnx.load(str(file))
    onnx.save(model, file, save_as_external_data=True, location="w.bin", size_threshold=100)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = onnx.load(str(file), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    file.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="a file beside the graph"):
        write_foreign_bundle(file, contract(), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_truncated_weights_are_refused(contract, tmp_path):
    file = graph(tmp_path)
    onnx.save(onnx.load(str(file)), file, save_as_external_data=True, location="w.bin", size_threshold=100)
    raw = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="does not hold all of the tensor"):
        write_foreign_bundle(file, contract(), tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": {"tensor": "image"}}, "one input, called 'image'"),
        ({"output": {"tensor": "depth"}}, "an output called 'depth'"),
        ({"input": {"canvas": [64, 64]}}, r"float32 \[\?, 3, 32, 48\]; wanted: \[batch, 3, 64, 64\]"),
        ({"output": {"kind": "mask", "unit": "", "larger_is": ""}}, r"floats \[batch, 2, height, width\]"),
    ],
)
def test_graph_and_contract_must_fit(contract, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        write_foreign_bundle(graph(tmp_path), contract(**changes), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_name_that_no_bundle_may_have_is_refused_before_the_work(contract, tmp_path):
    file, done = graph(tmp_path), []
    for name in ("../evil", "a/b", ".x", "a\nb", "a" * 129):
        with pytest.raises(InputError, match=r"called.*--name"):
            write_foreign_bundle(file, contract(), tmp_path / "bundle", name=name, on_progress=lambda what, part: done.append(part))
    assert set(done) <= {0.0} and not (tmp_path / "bundle").exists()


def test_two_inputs_are_refused(contract, tmp_path):
    extra = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 32, 48]) for name in ("x", "z")]
    nodes = [helper.make_node("Add", ["x", "z"], ["a"]), helper.make_node("ReduceMean", ["a"], ["y"], axes=[1], keepdims=1)]
    with pytest.raises(InputError, match="takes x, z"):
        write_foreign_bundle(graph(tmp_path, nodes=nodes, constants={}, inputs=extra, size=(32, 48)), contract(), tmp_path / "bundle")


@pytest.mark.parametrize("content", [b"", b"not an onnx file", bytes(1000), b"\x08\x07"])
def test_what_is_no_onnx_is_refused(contract, tmp_path, content):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.onnx"):
        write_foreign_bundle(tmp_path / "bad.onnx", contract(), tmp_path / "bundle")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"input": 1}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_contract_is_refused(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(InputError, match=r"c\.json"):
        read_contract(tmp_path / "c.json")


def test_a_network_that_gives_nan_or_one_number_is_refused(contract, tmp_path):
    for value, words in ((np.nan, "not finite"), (0.0, "the same number")):
        constants = {"kernel": np.full((1, 3, 16, 16), value, np.float32), "one": np.ones(1, np.float32)}
        with pytest.raises(AccuracyError, match=words):
            write_foreign_bundle(graph(tmp_path, constants=constants), contract(), tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()


def test_the_example_picture_is_smooth_seeded_and_black_off_the_window(contract):
    wide = contract(input={"canvas": [40, 64]}).contract
    picture = example_picture(wide, 2)
    np.testing.assert_array_equal(picture, example_picture(wide, 2))
    assert picture.shape == (2, 3, 40, 64) and not picture[..., 32:, :].any() and not picture[..., 48:].any()
    pixels = picture[..., :32, :48] * 0.25 + 0.5
    assert pixels.min() >= 0 and pixels.max() <= 1 and pixels.std() > 0.1 and np.abs(np.diff(pixels, axis=-1)).mean() < 0.1


@pytest.mark.skipif(not FASTDEPTH.exists(), reason="the FastDepth weights are not there")
def test_fastdepth_becomes_a_bundle_and_engines(tmp_path):
    data = contract_json(input={"tensor": "0", "window": [224, 224], "canvas": [224, 224], "mean": [0.0] * 3, "std": [1.0] * 3}, output={"tensor": "350"})
    data["protocols"][0]["steps"][0] |= {"height": 224, "width": 224}
    (tmp_path / "c.json").write_text(json.dumps(data))
    said = []
    manifest = write_foreign_bundle(FASTDEPTH, read_contract(tmp_path / "c.json"), tmp_path / "bundle", licence="MIT", on_message=said.append)
    assert "opset 7" in said[0] and manifest.network.parameters == 1_377_908
    x = load_file(tmp_path / "bundle" / GOLDEN)
    (wanted,) = ort.InferenceSession(str(FASTDEPTH)).run(None, {"0": x["0"]})
    np.testing.assert_allclose(x["350"], wanted, rtol=1e-5)
    pytest.importorskip("tensorrt_rtx")
    report = build_plan(tmp_path / "bundle", tmp_path / "x.plan", BuildOptions("tensorrt-rtx", "fp16", ("sm86",)))
    assert report.stages[0].layers == {"half": 38} and report.parity.output_error < 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": {"mean": [123.675, 116.28, 103.53]}}, r"cannot be of pixels in \[0, 1\].*graph.*pixels.*255"),
        ({"input": {"std": [58.4, 57.1, 57.4]}}, "divide by 255"),
        ({"graph": {"channels": "rgba"}}, "wanted rgb or bgr"),
        ({"graph": {"values": {"form": "logarithm"}}}, "wanted depth, inverse-depth"),
        ({"graph": {"values": {"form": "scaled-disparity", "near": 5, "far": 1}}}, "near below far"),
        ({"graph": {"values": {"form": "focal-depth"}}}, "focal_px"),
        ({"graph": {"layout": "nhwc"}}, "channels, pixels and values"),
        ({"protocols": [{"name": "p", "steps": [], "lefts": [0], "fill_lefts": [], "flip": False, "source": ""}]}, "never give the window|480x640"),
    ],
)
def test_contracts_that_cannot_be_meant_are_refused(tmp_path, changes, words):
    said = contract_json()
    for part, values in changes.items():
        said[part] = {**said.get(part, {}), **values} if isinstance(values, dict) else values
    if "protocols" in changes:
        said["protocols"][0]["steps"] = [{"op": "resize", "height": 16, "width": 16, "interpolation": "bilinear", "min_width": 0}]
    (tmp_path / "c.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=words):
        read_contract(tmp_path / "c.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_contract_saved_by_a_windows_editor_is_read(tmp_path, encoding):
    (tmp_path / "c.json").write_bytes(json.dumps(contract_json()).replace("\n", "\r\n").encode(encoding))
    assert read_contract(tmp_path / "c.json").contract.input.tensor == "x"
