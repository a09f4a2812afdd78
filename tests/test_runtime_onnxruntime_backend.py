"""Stages on ONNX Runtime, against the same sums done by hand."""

import dataclasses
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.calibration.graph.session import StageSession
from fathom.calibration.graph.stage_graph import StageGraph
from fathom.export.plan.plan_file import file_facts, write_plan
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.manifest import PlanStage
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.backend import open_backend
from fathom.runtime.errors import EnvironmentMismatchError, FathomError, InputError, UsageError
from fathom.runtime.onnxruntime.backend import SHRINK, OnnxRuntimeBackend


@pytest.fixture(params=["plan", "bundle"])
def opened(request, tiny):
    with PlanFile.open(tiny.plan) if request.param == "plan" else BundleDirectory.open(tiny.bundle) as artefact:
        backend = open_backend(artefact, threads=1)
        yield tiny, backend
        backend.close()


def image(n=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3, 48, 64)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 3])
def test_chained_stages_equal_the_sums_by_hand(opened, n):
    tiny, backend = opened
    result = backend.run({"image": image(n)})
    assert set(result) == {"depth"}
    np.testing.assert_allclose(result["depth"], tiny.expected(tiny.kernel, image(n)), rtol=1e-5)


def test_tensors_on_the_way_can_be_kept(opened):
    _, backend = opened
    result = backend.run({"image": image()}, frozenset({"features", "depth"}))
    np.testing.assert_allclose(result["features"].mean(axis=1, keepdims=True) + 1, result["depth"], rtol=1e-5)
    assert set(backend.run({"image": image()}, frozenset({"features"}))) == {"features"}


def test_one_stage_alone_makes_what_it_makes_in_the_chain(opened):
    _, backend = opened
    kept = backend.run({"image": image()}, frozenset({"features", "depth"}))
    np.testing.assert_array_equal(backend.run_stage("encoder", {"image": image()})["features"], kept["features"])
    np.testing.assert_array_equal(backend.run_stage("head", {"features": kept["features"]})["depth"], kept["depth"])
    with pytest.raises(ValueError, match="no stage 'tail'"):
        backend.run_stage("tail", {})
    with pytest.raises(ValueError, match="wanted exactly"):
        backend.run_stage("head", {"image": image()})


def test_stages_are_timed_one_by_one(opened):
    _, backend = opened
    start = time.perf_counter()
    times_ms = backend.stage_times_ms({"image": image(8)}, 5)
    passed_ms = 1e3 * (time.perf_counter() - start)
    assert list(times_ms) == ["encoder", "head"] and all(len(taken) == 5 and min(taken) > 0 for taken in times_ms.values())
    assert sum(map(sum, times_ms.values())) <= passed_ms
    assert min(times_ms["encoder"]) > min(times_ms["head"])  # a convolution against a mean


def test_int8_products_are_added_up_exactly_on_every_processor(tiny, tmp_path):
    """Processors without VNNI add pairs of them in 16 bits by default, where 255 x 127 twice has no room."""
    draw = np.random.default_rng(0)
    weight, x = draw.choice([-127, 127], (64, 32)).astype(np.int8), draw.choice([-127, 127], (1, 3, 48, 64)).astype(np.float32)
    constants = {"w": weight, "one": np.float32(1), "zero": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "one", "zero"], ["stored"]),
        helper.make_node("DequantizeLinear", ["stored", "one", "zero"], ["read"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero"], ["weight"]),
        helper.make_node("MatMul", ["read", "weight"], ["depth"]),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in (("image", [1, 3, 48, 64]), ("depth", [1, 3, 48, 32]))]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    engine = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with PlanFile.open(tiny.plan) as plan:
        spec = StageSpec("head", (TensorSpec("image", "float32", (1, 3, 48, 64)),), (TensorSpec("depth", "float32", (1, 3, 48, 32)),))
        facts = {"stages": (PlanStage(spec, "engines/head.onnx", "int8"),), "files": {"engines/head.onnx": file_facts(engine)}, "precision": "int8"}
        manifest = dataclasses.replace(plan.manifest, **facts, batch=(1, 1, 1))
    write_plan(tmp_path / "int8.plan", manifest, {"engines/head.onnx": engine})
    with PlanFile.open(tmp_path / "int8.plan") as plan:
        backend = open_backend(plan, threads=1)
        np.testing.assert_array_equal(backend.run({"image": x})["depth"], x @ weight.astype(np.float32))
        backend.close()


CHILD = """
import sys
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.backend import open_backend
import numpy as np, onnxruntime
def status(key): return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))
with PlanFile.open(sys.argv[1], verify=False) as plan:
    before = status("VmRSS")
    backend = open_backend(plan, threads=1)
    print(status("VmHWM") - before, status("RssFile"))
    backend.run({"image": np.ones((1, 3, 48, 64), np.float32)})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux counts it")
def test_weights_are_in_memory_once(make_artefacts):
    import dataclasses

    from onnx import TensorProto, helper

    from fathom.export.plan.plan_file import file_facts, write_plan
    from fathom.runtime.artefact.manifest import Initializer
    from fathom.runtime.artefact.spec import TensorSpec

    made, size, count = make_artefacts(), 3072, 4
    mib = size * size * 4 / 2**20  # 36, four times
    with PlanFile.open(made.plan) as plan:
        sources, manifest = {name: bytes(plan.view(name)) for name in plan.manifest.files}, plan.manifest
    names = [f"w{number}" for number in range(count)]
    nodes = [helper.make_node("ReduceMean", ["features"], ["mean"], keepdims=0), helper.make_node("Expand", ["mean", "row"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{number}", name], [f"h{number + 1}"]) for number, name in enumerate(names)]
    nodes += [helper.make_node("ReduceMean", [f"h{count}"], ["end"], keepdims=0), helper.make_node("Expand", ["end", "shape"], ["depth"])]
    weights = []
    for number, name in enumerate(names):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[size, size], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "weights"), ("offset", str(number * size * size * 4)), ("length", str(size * size * 4))):
            tensor.external_data.add(key=key, value=value)
        weights.append(tensor)
    shapes = [helper.make_tensor(name, TensorProto.INT64, [len(dims)], dims) for name, dims in (("row", (1, size)), ("shape", (1, 1, 24, 32)))]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims]) for name, dims in (("features", (8, 24, 32)), ("depth", (1, 24, 32)))]
    graph = helper.make_graph(nodes, "head", tensors[:1], tensors[1:], [*weights, *shapes])
    sources["engines/head.onnx"] = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9).SerializeToString()
    sources["engines/head.data"] = np.full((count, size, size), 1 / size, np.float32).tobytes()
    items = tuple(Initializer(TensorSpec(name, "float32", (size, size)), number * size * size * 4) for number, name in enumerate(names))
    stages = (manifest.stages[0], dataclasses.replace(manifest.stages[1], weights="engines/head.data", initializers=items))
    facts = {name: file_facts(source) for name, source in sources.items()}
    write_plan(made.folder / "large.plan", dataclasses.replace(manifest, stages=stages, files=facts), sources)
    result = subprocess.run([sys.executable, "-c", CHILD, made.folder / "large.plan"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    taken_mib, mapped_mib = (int(word) / 2**20 for word in result.stdout.split())
    assert taken_mib < 1.3 * count * mib  # the copies that ONNX Runtime packs, and little of the file
    assert mapped_mib < 0.9 * count * mib


def test_slow_stages_give_their_memory_back_and_quick_ones_keep_it(opened, monkeypatch):
    _, backend = opened
    said, run_stage = [], backend._run_stage

    def watched(stage, session, names, feed, later, options, symbols):
        try:
            said.append((stage.name, options.get_run_config_entry(SHRINK)))
        except RuntimeError:  # it was never set
            said.append((stage.name, ""))
        if stage.name == "encoder":
            time.sleep(0.03)
        return run_stage(stage, session, names, feed, later, options, symbols)

    monkeypatch.setattr(backend, "_run_stage", watched)
    monkeypatch.setattr("fathom.runtime.onnxruntime.backend.SLOW_S", 0.03)
    backend.run({"image": image()})
    for _ in range(9):  # the head's first run may be slow too; one of the next is quick, on any machine
        said.clear()
        backend.run({"image": image()})
        if said[1] == ("head", ""):
            break
    assert said == [("encoder", "cpu:0"), ("head", "")]


def test_an_array_that_is_not_contiguous_gives_the_same(opened):
    _, backend = opened
    straight = image()
    crooked = np.asfortranarray(straight)
    assert not crooked.flags.c_contiguous
    np.testing.assert_allclose(backend.run({"image": crooked})["depth"], backend.run({"image": straight})["depth"], rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"image": image().astype(np.float64)}, "float64, wanted float32"),
        ({"image": image()[:, :, :40]}, r"shape \(2, 3, 40, 64\)"),
        ({"picture": image()}, "wanted exactly"),
        ({}, "wanted exactly"),
    ],
)
def test_wrong_inputs_are_refused_by_name(opened, inputs, words):
    _, backend = opened
    with pytest.raises(ValueError, match=words):
        backend.run(inputs)
    with pytest.raises(ValueError, match="no stage makes"):
        backend.run({"image": image()}, frozenset({"nothing"}))


def test_closing_twice_is_fine_and_running_closed_is_not(opened):
    _, backend = opened
    backend.close()
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.run({"image": image()})


def test_weights_may_go_by_the_name_of_their_file(make_artefacts):
    made = make_artefacts(location="encoder.data")
    with PlanFile.open(made.plan) as plan:
        backend = open_backend(plan)
        np.testing.assert_allclose(backend.run({"image": image()})["depth"], made.expected(made.kernel, image()), rtol=1e-5)
        backend.close()


def test_older_onnxruntime_gets_weights_one_by_one(tiny, monkeypatch):
    import onnxruntime

    class Older(onnxruntime.SessionOptions):
        def __getattribute__(self, name):
            if name == "add_external_initializers_from_files_in_memory":
                raise AttributeError(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Older)
    with PlanFile.open(tiny.plan) as plan:
        backend = OnnxRuntimeBackend(plan)
        np.testing.assert_allclose(backend.run({"image": image()})["depth"], tiny.expected(tiny.kernel, image()), rtol=1e-5)
        backend.close()


def test_gpu_engines_are_refused_with_honest_words(tiny):
    with PlanFile.open(tiny.gpu_plan) as plan, pytest.raises(EnvironmentMismatchError, match=r"tensorrt-rtx engines \(for sm86\).*need an NVIDIA GPU"):
        open_backend(plan)


def test_devices_and_threads(tiny):
    import onnxruntime

    with PlanFile.open(tiny.plan) as plan:
        with pytest.raises(UsageError, match="no device 'tpu'"):
            open_backend(plan, device="tpu")
        with pytest.raises(UsageError, match="0 threads"):
            open_backend(plan, threads=0)
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            with pytest.raises(EnvironmentMismatchError, match="no CUDA provider"):
                open_backend(plan, device="cuda")


def test_a_missing_onnxruntime_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with PlanFile.open(tiny.plan) as plan, pytest.raises(EnvironmentMismatchError, match="pip install onnxruntime"):
        open_backend(plan)


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(make_artefacts):
    import dataclasses

    from fathom.export.plan.plan_file import file_facts, write_plan

    made = make_artefacts()
    with PlanFile.open(made.plan) as plan:
        sources = {name: bytes(plan.view(name)) for name in plan.manifest.files}
        manifest = plan.manifest
    for wrong, words in (
        (sources["engines/encoder.onnx"], "the graph of stage head takes features as nothing, and 1 more differ"),
        (b"\x08\x01garbage", "stage head"),
    ):
        changed = sources | {"engines/head.onnx": wrong}
        stages = (manifest.stages[0], dataclasses.replace(manifest.stages[1], weights="engines/encoder.data"))
        facts = {name: file_facts(source) for name, source in changed.items()}
        write_plan(made.folder / "wrong.plan", dataclasses.replace(manifest, stages=stages, files=facts), changed, force=True)
        with PlanFile.open(made.folder / "wrong.plan") as plan, pytest.raises(InputError, match=words):
            open_backend(plan)


def test_interrupting_ends_a_run_and_refuses_others(opened):
    _, backend = opened
    backend.interrupt()
    with pytest.raises(FathomError, match="stage encoder"):
        backend.run({"image": image()})


def test_a_long_run_can_be_interrupted(opened):
    _, backend = opened
    failed = []

    def loop():
        try:
            while True:
                backend.run({"image": image(16)})
        except FathomError as error:
            failed.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    time.sleep(0.1)
    backend.interrupt()
    thread.join(10)
    assert failed and not thread.is_alive()


@pytest.mark.parametrize(("asked", "taken"), [("1", 1), ("3", 3), ("2,1", 2), (" 2 ", 2), ("", 0), ("all", 0), ("-1", 0)])
def test_own_sessions_take_the_threads_that_the_environment_asks_for(tiny, monkeypatch, asked, taken):
    """A list is one number for each level of nested loops (OpenMP 5.2, 21.1.2); 0 is ONNX Runtime's word for all cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    session = StageSession(StageGraph.load(tiny.bundle / "stages" / "encoder.onnx"))
    assert session._session.get_session_options().intra_op_num_threads == taken
