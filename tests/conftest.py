"""Small artefacts that several tests run: a network of one convolution, as a bundle and as a plan."""

import dataclasses
import fcntl
import gc
import hashlib
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision_on_cpu

from fathom.export.commands.command_line import FEW_COLLECTIONS

torchvision_on_cpu.prepare()
os.environ["HF_HUB_OFFLINE"] = "1"  # no test downloads what was published
gc.set_threshold(*FEW_COLLECTIONS)  # looking for cycles took a tenth of the tests' time
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs deaf to Ctrl-C, and children inherit that


def _graphs():
    """Two stages: features = relu(conv(image)), depth = their mean over the channels + 1; weights lie outside the first graph."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(7)
    kernel = (rng.normal(size=(8, 3, 5, 5)) / 9).astype(np.float32)  # 2400 bytes: large enough to lie outside
    inner = numpy_helper.from_array(kernel, "kernel")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 48, 64])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 8, 24, 32])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, ["batch", 1, 24, 32])
    conv = helper.make_node("Conv", ["image", "kernel"], ["raw"], pads=[2] * 4, strides=[2, 2])
    first = helper.make_graph([conv, helper.make_node("Relu", ["raw"], ["features"])], "encoder", [image], [features], [inner])
    one = numpy_helper.from_array(np.float32(1), "one")
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [helper.make_node("ReduceMean", ["features", "axes"], ["mean"]), helper.make_node("Add", ["mean", "one"], ["depth"])]
    second = helper.make_graph(nodes, "head", [features], [depth], [one, axes])
    models = [helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9) for graph in (first, second)]
    return models, kernel


def expected_depth(kernel, tensor):
    """What the tiny network computes, by hand: [n, 3, 48, 64] -> [n, 1, 24, 32]."""
    padded = np.pad(tensor.astype(np.float64), ((0, 0), (0, 0), (2, 2), (2, 2)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(2, 3))[:, :, ::2, ::2]
    return np.maximum(np.einsum("nchwij,ocij->nohw", patches, kernel), 0).mean(axis=1, keepdims=True) + 1


def _contract(kind):
    from fathom.runtime.artefact.contract import Contract, ImageInput, OutputContract, Protocol, Resize

    output = {
        "metric": OutputContract("depth", "metric", "m", 0.1, 10.0, "far", "bilinear"),
        "relative": OutputContract("depth", "relative", "", 0.0, 10.0, "near", "bilinear"),
    }[kind]
    resize = Resize(48, 64, "bilinear")
    protocols = (
        Protocol("single-image", (resize,), (0,), (), False, "a test"),
        Protocol("windows", (Resize(48, 96, "bilinear"),), (0, 16), (32,), True, "a test"),
    )
    return Contract(ImageInput("image", (48, 64), (48, 64), (0.5,) * 3, (0.5,) * 3), output, protocols)


@pytest.fixture(scope="session")
def make_artefacts(tmp_path_factory):
    """Callable(kind="metric", weights="trained", batch=(1, 2, 4), location="weights", poison=None) -> bundle, plan, kernel."""
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data

    from fathom.export.plan.plan_file import file_facts, write_plan
    from fathom.runtime.artefact.manifest import BundleManifest, BundleStage, Initializer, NetworkFacts, PlanManifest, PlanStage
    from fathom.runtime.artefact.manifest_json import manifest_bytes
    from fathom.runtime.artefact.spec import StageSpec, TensorSpec

    def make(kind="metric", weights="trained", batch=(1, 2, 4), location="weights", poison=None):
        folder = tmp_path_factory.mktemp("artefacts")
        models, kernel = _graphs()
        if poison is not None:
            kernel = kernel.copy()
            kernel.flat[0] = poison
            models[0].graph.initializer[0].raw_data = kernel.tobytes()
        image, features = (TensorSpec(name, "float32", ("batch", *shape)) for name, shape in (("image", (3, 48, 64)), ("features", (8, 24, 32))))
        specs = (StageSpec("encoder", (image,), (features,)), StageSpec("head", (features,), (TensorSpec("depth", "float32", ("batch", 1, 24, 32)),)))
        network = NetworkFacts("tiny", "test", {}, kernel.size, {"kind": weights, "file": "", "sha256": "", "licence": "", "warnings": []})
        bundle = folder / "tiny"
        (bundle / "stages").mkdir(parents=True)
        for spec, model in zip(specs, models, strict=True):
            copy = onnx.ModelProto.FromString(model.SerializeToString())
            onnx.save(
                copy, bundle / f"stages/{spec.name}.onnx", save_as_external_data=spec.name == "encoder", location=f"{spec.name}.onnx.data", size_threshold=1024
            )
        files = {f"stages/{name}": file_facts(bundle / "stages" / name) for name in ("encoder.onnx", "encoder.onnx.data", "head.onnx")}
        stages = tuple(BundleStage(spec, f"stages/{spec.name}.onnx", "fp32") for spec in specs)
        manifest = BundleManifest(network, _contract(kind), stages, files, {"fathom": "0"})
        (bundle / "bundle.json").write_bytes(manifest_bytes(manifest))

        encoder = onnx.ModelProto.FromString(models[0].SerializeToString())
        convert_model_to_external_data(encoder, location=location, size_threshold=1024)
        (tensor,) = encoder.graph.initializer
        del tensor.external_data[:]
        for key, value in (("location", location), ("offset", "0"), ("length", str(kernel.nbytes))):
            tensor.external_data.add(key=key, value=value)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        sources = {
            "engines/encoder.onnx": encoder.SerializeToString(),
            "engines/encoder.data": kernel.tobytes(),
            "engines/head.onnx": models[1].SerializeToString(),
        }
        item = Initializer(TensorSpec("kernel", "float32", kernel.shape), 0)
        engines = (
            PlanStage(specs[0], "engines/encoder.onnx", "fp32", "engines/encoder.data", (item,)),
            PlanStage(specs[1], "engines/head.onnx", "fp32"),
        )
        facts = {name: file_facts(source) for name, source in sources.items()}
        sha = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
        plan_manifest = PlanManifest(network, _contract(kind), engines, facts, {"fathom": "0"}, "onnxruntime", "1", ("cpu",), "fp32", batch, sha)
        write_plan(folder / "tiny.plan", plan_manifest, sources)
        gpu_sources = {"engines/encoder.plan": b"not for this machine", "engines/head.plan": b"nor this"}
        gpu_engines = tuple(PlanStage(spec, f"engines/{spec.name}.plan", "fp16") for spec in specs)
        gpu_facts = {name: file_facts(source) for name, source in gpu_sources.items()}
        gpu = dataclasses.replace(plan_manifest, stages=gpu_engines, files=gpu_facts, backend="tensorrt-rtx", targets=("sm86",), precision="fp16")
        write_plan(folder / "gpu.plan", gpu, gpu_sources)
        return SimpleNamespace(
            folder=folder, bundle=bundle, plan=folder / "tiny.plan", gpu_plan=folder / "gpu.plan", kernel=kernel, specs=specs, expected=expected_depth
        )

    return make


@pytest.fixture(scope="session")
def tiny(make_artefacts):
    """Metric artefacts, not to be changed."""
    return make_artefacts()


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """The CUDA kernels, compiled for this processor; None without a compiler."""
    import kernel_host

    return kernel_host.HostKernels(kernel_host.build(tmp_path_factory.mktemp("kernels"))) if kernel_host.compiler() else None


@pytest.fixture
def gpu(monkeypatch, host, tmp_path):
    """A machine with one fake GPU and both fake packages; ``gpu.trt`` by backend."""
    import fake_cuda
    import fake_tensorrt

    machine = fake_cuda.Machine(host=host)
    fake_cuda.install(monkeypatch, machine)
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    machine.trt = {"tensorrt": fake_tensorrt.install(monkeypatch, machine), "tensorrt-rtx": fake_tensorrt.install(monkeypatch, machine, rtx=True)}
    return machine


@pytest.fixture(scope="session")
def small_network():
    """The module with ``SmallNetwork``: a torch network of two stages with one of everything that is hard to export."""
    import small_network

    return small_network


@pytest.fixture(scope="session")
def published_files():
    """The module that writes files in the published forms."""
    import published_files

    return published_files


@pytest.fixture(scope="session")
def small_bundle(small_network, tmp_path_factory):
    """An exported bundle of ``SmallNetwork``, not to be changed."""
    from fathom.export.bundle.bundle import write_bundle

    path = tmp_path_factory.mktemp("export") / "small"
    write_bundle(small_network.SmallNetwork(), path)
    return path


@pytest.fixture(scope="session")
def operator_bundle(tmp_path_factory):
    """An exported bundle of ``OperatorNetwork``, not to be changed."""
    import operator_network

    from fathom.export.bundle.bundle import write_bundle

    path = tmp_path_factory.mktemp("operators") / "bundle"
    write_bundle(operator_network.OperatorNetwork(), path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """Callable(name) -> an FP32 bundle of a small network of the catalog with random weights, exported once and not to be changed.

    Test processes that run side by side share the bundles: whoever needs one first exports it, the others wait.
    """
    made = {}
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    folder.mkdir(exist_ok=True)

    def bundle(name):
        if name not in made:
            pytest.importorskip("open_clip" if "depthclip" in name else "torch")
            from fathom.export.commands import export_command
            from fathom.models.catalog import NETWORKS

            path = folder / name
            scene = ["--scene", "kitchen"] if "scene" in NETWORKS[name].options else []
            with open(folder / f"{name}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    assert export_command.main(["--model", name, "--random-init", *scene, "-o", str(path), "--quiet"]) == 0
            made[name] = path
        return made[name]

    return bundle


@pytest.fixture(scope="session")
def calibration_bundles():
    """The module with what the calibration tests run: small networks with planted faults, and FastDepth, as bundles."""
    import calibration_bundles

    return calibration_bundles


_rooms = {}  # that ``rooms_once`` has seen rendered


@pytest.fixture(scope="module")
def rooms_once():
    """Rooms are rendered once, however often a module reads them; nobody may write into them."""
    from fathom.datasets.rooms.rooms import Rooms

    render = Rooms.__getitem__

    def remembered(rooms, number):
        key = (rooms.seed, number, rooms.size, rooms.holes, rooms.lived_in)
        if number >= len(rooms):
            raise IndexError(number)
        if key not in _rooms:
            _rooms[key] = sample = render(rooms, number)
            for values in (sample.rgb, sample.depth_m, sample.valid):
                values.flags.writeable = False
        return _rooms[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rooms, "__getitem__", remembered)
        yield


@pytest.fixture(scope="session")
def token_bundle(calibration_bundles, tmp_path_factory):
    """Callable(models=None, **faults) -> a new bundle of two stages, ``encoder`` over tokens and ``head``, with the faults planted in it."""

    def make(models=None, **faults):
        folder = tmp_path_factory.mktemp("calibration") / "bundle"
        return calibration_bundles.write_bundle(folder, models or calibration_bundles.token_models(**faults), calibration_bundles.small_contract())

    return make


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory):
    """Callable(bundle, **settings) -> the result of calibrating it on six small rooms, with a loose budget unless another is set."""
    from fathom.calibration.calibrate import Settings, calibrate
    from fathom.calibration.observation.images import Chosen
    from fathom.calibration.search.objective import Budget
    from fathom.runtime.artefact.bundle import BundleDirectory

    def run(path, **settings):
        journal = tmp_path_factory.mktemp("journal") / "j"
        return calibrate(BundleDirectory.open(path), Chosen("rooms:6:1:48x64"), Settings(**{"budget": Budget(0.05, 0.05, 0.05), **settings}), journal)

    return run
