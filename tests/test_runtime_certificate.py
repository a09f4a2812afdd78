"""Plans that prove themselves: on a fake GPU whose engines are the small network's graphs, some of them wrong by 1 %."""

import dataclasses
import json

import fake_tensorrt
import numpy as np
import onnx
import pytest
from fake_plans import RELEASES
from fake_tensorrt import nothing_left

from fathom.export.bundle.bundle import write_bundle
from fathom.export.child.child import ChildResult
from fathom.export.plan import prove_candidate
from fathom.export.plan.goldens import collect_goldens
from fathom.export.plan.plan_file import file_facts, write_plan
from fathom.models.network import WeightsOrigin
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.manifest import GOLDENS, PlanManifest, PlanStage
from fathom.runtime.artefact.manifest_json import manifest_bytes, manifest_from_bytes
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.certificate.comparison import difference
from fathom.runtime.certificate.goldens import read_goldens
from fathom.runtime.certificate.known_faults import known_faults
from fathom.runtime.certificate.probes import PROBES
from fathom.runtime.commands import doctor
from fathom.runtime.errors import AccuracyError, InputError
from fathom.runtime.examination import examine_file
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.backend import TensorRTBackend

BOTH = ["tensorrt", "tensorrt-rtx"]


@pytest.fixture
def gpu(gpu):
    """The same, which counts."""
    gpu.runs = 0  # of stages
    send = gpu.send

    def counted(stream, work):
        gpu.runs += getattr(work, "__name__", "") == "_work"
        send(stream, work)

    gpu.send = counted
    return gpu


def weights_of(graph):
    """Names of the weights of a graph that are not 0; sizes are no weights."""
    model = onnx.ModelProto.FromString(graph)
    sizes = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer if item.name not in sizes}
    return [name for name, array in arrays.items() if array.dtype == np.float32 and array.size > 1 and array.any()]


def scaled(graph, factor, only=None):
    """The graph with every weight multiplied, or only one."""
    model, names = onnx.ModelProto.FromString(graph), weights_of(graph)
    for item in model.graph.initializer:
        array = onnx.numpy_helper.to_array(item)
        if item.name == only or (only is None and item.name in names):
            item.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(factor), item.name))
    return model.SerializeToString()


@pytest.fixture(scope="session")
def probed_bundle(small_network, tmp_path_factory):
    """The small network as if its weights were learned: what 1 % of each does comes along."""
    network = small_network.SmallNetwork()
    network.origin = WeightsOrigin("demo")
    path = tmp_path_factory.mktemp("probed") / "small"
    write_bundle(network, path)
    return path


@pytest.fixture
def write(small_bundle, probed_bundle, tmp_path):
    """Callable(backend, precision, batch, wrong) -> a plan for the fake GPU with PyTorch's golden tensors; ``wrong``: stage -> factor of its weights,
    or of the weight ``only``."""

    def make(backend="tensorrt", precision="fp32", batch=(1, 1, 1), wrong=None, only=None, goldens=True, probes=False, name="x.plan"):
        with BundleDirectory.open(probed_bundle if probes else small_bundle) as bundle:
            manifest, fixed = bundle.manifest, batch[0] == batch[2]
            graphs = {stage.spec.name: onnx.load(str(bundle.path(stage.file))).SerializeToString() for stage in manifest.stages}
            golden = bundle.path(manifest.goldens[0])
            bind = lambda t: TensorSpec(t.name, t.dtype, tuple(batch[0] if fixed and s == "batch" else s for s in t.shape))  # noqa: E731
            specs = tuple(StageSpec(s.name, tuple(map(bind, s.inputs)), tuple(map(bind, s.outputs))) for s in manifest.specs())
            items, raw = collect_goldens((golden,), specs, precision, "depth")
            sources = {}
            for spec, stage in zip(specs, manifest.specs(), strict=True):
                graph = scaled(graphs[spec.name], (wrong or {}).get(spec.name, 1), only)
                sources[f"engines/{spec.name}.engine"] = fake_tensorrt.engine_bytes(stage, graph, RELEASES[backend], batch, ("sm86",))
            if goldens:
                sources[GOLDENS] = raw
            if probes:
                sources[PROBES] = bundle.path(PROBES)
            plan = PlanManifest(
                manifest.network,
                manifest.contract,
                tuple(PlanStage(spec, f"engines/{spec.name}.engine", precision) for spec in specs),
                {name: file_facts(source) for name, source in sources.items()},
                {"fathom": "0"},
                backend=backend,
                backend_version=RELEASES[backend],
                targets=("sm86",) if backend == "tensorrt-rtx" else (),
                precision=precision,
                batch=batch,
                bundle_sha256=bundle.manifest_sha256,
                goldens=items if goldens else (),
            )
        write_plan(tmp_path / name, plan, sources, force=True)
        return tmp_path / name

    return make


def certified(pipeline):
    (words,) = [remark for remark in pipeline.remarks if "certif" in remark]
    return words


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_weight_off_by_one_percent_is_caught_and_its_stage_named(gpu, write, backend, precision):
    with Pipeline.open(write(backend, precision)) as pipeline:
        assert "certified now" in certified(pipeline)
    for stage in ("encoder", "decoder"):
        for factor in (1.01, 0.99):
            with pytest.raises(AccuracyError, match=f"the engine of stage {stage} does not give on Fake GPU") as caught:
                Pipeline.open(write(backend, precision, wrong={stage: factor}))
            assert caught.value.exit_code == 4
    with pytest.raises(AccuracyError, match="the engine of stage encoder"):  # the first of two
        Pipeline.open(write(backend, precision, wrong={"encoder": 1.01, "decoder": 1.01}))
    del caught
    nothing_left(gpu)


def test_in_fp32_any_single_weight_off_by_one_percent_is_caught(gpu, write, small_bundle):
    tried = 0
    for stage in ("encoder", "decoder"):
        for weight in weights_of(onnx.load(small_bundle / f"stages/{stage}.onnx").SerializeToString()):
            with pytest.raises(AccuracyError, match=f"the engine of stage {stage} "):
                Pipeline.open(write(wrong={stage: 1.01}, only=weight))
            tried += 1
    assert tried > 12


@pytest.mark.parametrize("backend", BOTH)
def test_in_fp16_a_single_weight_off_by_one_percent_is_caught_and_named_where_its_stage_moves(gpu, write, small_bundle, backend):
    """The fake's FP16 plan has FP16 goldens and tolerances, and FP32 engines: whatever moves a stage by a rounding is found."""
    with Pipeline.open(write(backend, "fp16", probes=True)) as pipeline:
        assert "none of " in certified(pipeline) and "weights seems changed" in certified(pipeline)
    caught, named = 0, 0
    for stage in ("encoder", "decoder"):
        weights = weights_of(onnx.load(small_bundle / f"stages/{stage}.onnx").SerializeToString())
        for weight in weights:
            try:
                Pipeline.open(write(backend, "fp16", wrong={stage: 1.01}, only=weight, probes=True)).close()
            except AccuracyError as error:
                assert f"the engine of stage {stage} " in error.was
                caught, named = caught + 1, named + (f"what {weight} times 1.0" in error.was)
    assert caught >= 12 and named >= 6, (caught, named)


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("batch", [(1, 1, 1), (2, 2, 2), (2, 3, 4)])
def test_the_second_start_runs_nothing_more(gpu, write, backend, batch):
    path = write(backend, batch=batch)
    photo = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    counts, depths, words = [], [], []
    for goldens in (True, True, False):
        if not goldens:
            path = write(backend, batch=batch, goldens=False)
        gpu.runs = 0
        with Pipeline.open(path) as pipeline:
            counts.append(gpu.runs)
            words.append(certified(pipeline))
            depths.append(pipeline.predict(photo).depth_m)
    first, second, without = counts
    assert first == second + 2 and second == without  # one forward pass of two stages, once
    assert "certified now" in words[0] and "certified on this machine before" in words[1] and "cannot certify itself" in words[2]
    np.testing.assert_array_equal(depths[0], depths[1])


def test_another_driver_gpu_release_or_plan_certifies_anew(gpu, write, monkeypatch):
    path = write()
    start = lambda: certified(Pipeline.open(path)).split()[1]  # noqa: E731
    assert [start(), start()] == ["now,", "on"]
    for name, value in (("driver", 13010), ("name", "Other GPU"), ("capability", (8, 9))):
        before = getattr(gpu, name)
        setattr(gpu, name, value)
        assert [start(), start()] == ["now,", "on"], name
        setattr(gpu, name, before)
        assert start() == "on"
    monkeypatch.setattr("fathom.runtime.tensorrt.session.driver_release", lambda: "580.1")
    assert [start(), start()] == ["now,", "on"]
    gpu.trt["tensorrt"].__version__ = "10.13.3.10"  # the same release, built again
    assert [start(), start()] == ["now,", "on"]
    path = write(precision="fp16")
    assert [start(), start()] == ["now,", "on"]


def test_a_certificate_that_was_changed_counts_for_nothing(gpu, write, tmp_path):
    path = write()
    Pipeline.open(path).close()
    (file,) = (tmp_path / "cache" / "certificates").iterdir()
    whole = file.read_text()
    for text in ("", "[]", whole[:-20], json.dumps({**json.loads(whole), "plan_sha256": "0" * 64}), "x" * 100_000):
        file.write_text(text)
        with Pipeline.open(path) as pipeline:
            assert "certified now" in certified(pipeline)
    with Pipeline.open(path) as pipeline:
        assert "before" in certified(pipeline)
    (tmp_path / "cache").chmod(0o777)  # anybody could have written it
    with Pipeline.open(path) as pipeline:
        assert "certified now" in certified(pipeline) and "could not be kept" in certified(pipeline)


def test_a_wrong_engine_is_refused_at_every_start(gpu, write, tmp_path):
    path = write(wrong={"decoder": 1.01})
    for _ in range(2):
        with pytest.raises(AccuracyError, match="stage decoder"):
            Pipeline.open(path)
    assert list((tmp_path / "cache" / "certificates").glob("*") if (tmp_path / "cache" / "certificates").exists() else []) == []


@pytest.mark.parametrize("backend", BOTH)
def test_a_built_plan_gets_its_name_only_if_it_proves_itself(gpu, write, tmp_path, monkeypatch, backend):
    monkeypatch.setattr(prove_candidate, "run_child", lambda request, **more: ChildResult(examine_file(request, lambda event, **facts: None), 0.0, 0))
    said, name = [], tmp_path / "x.plan"
    candidate = write(backend, name="candidate.plan")
    prove_candidate.prove_candidate(candidate, name, False, said.append)
    assert candidate.exists() and "right on Fake GPU (sm86)" in said[0] and "the same bits" in said[0]
    with Pipeline.open(candidate) as pipeline:
        assert "before" in certified(pipeline)
    candidate = write(backend, name="candidate.plan", wrong={"encoder": 1.01})
    with pytest.raises(AccuracyError, match=r"stage encoder.*x\.rejected\.plan for study"):
        prove_candidate.prove_candidate(candidate, name, False, said.append)
    assert not candidate.exists() and not name.exists() and (tmp_path / "x.rejected.plan").exists()
    gpu.devices = 0
    prove_candidate.prove_candidate(write(backend, name="candidate.plan"), name, False, said.append)
    assert "not run on this machine" in said[-1] and "need an NVIDIA GPU" in said[-1]


def test_the_doctor_proves_a_plan_and_names_the_first_wrong_stage(gpu, write, capsys):
    assert doctor.main(["--engine", str(write())]) == 0
    assert "right on Fake GPU" in capsys.readouterr().out
    assert doctor.main(["--json", "--engine", str(write("tensorrt-rtx", "fp16"))]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["depth"]["abs_rel"] < 1e-3 and found["equal_starts"] and {row["mode"] for row in found["rows"]} == {"isolated", "chained"}
    assert doctor.main(["--engine", str(write(wrong={"decoder": 1.01}))]) == 4
    assert "stage decoder" in capsys.readouterr().err
    assert doctor.main(["--engine", str(write(goldens=False))]) == 3
    assert "no golden tensors" in capsys.readouterr().err


def test_two_starts_that_differ_are_refused(gpu, write, monkeypatch, capsys):
    path, starts = write(precision="fp16"), []
    honest = TensorRTBackend.run

    def moody(self, inputs, keep=frozenset()):
        starts.append(1)
        return {name: value * np.float32(1.003 if name == "depth" and len(starts) == 2 else 1) for name, value in honest(self, inputs, keep).items()}

    monkeypatch.setattr(TensorRTBackend, "run", moody)
    assert doctor.main(["--engine", str(path)]) == 4
    assert "two starts in a row differ by abs_rel 3.0e-03" in capsys.readouterr().err


def test_goldens_are_stored_in_no_more_than_suffices(gpu, write, small_bundle):
    from safetensors.numpy import load_file

    with BundleDirectory.open(small_bundle) as bundle:
        wanted = load_file(str(bundle.path(bundle.manifest.goldens[0])))
    for precision, latent in (("fp32", np.float32), ("fp16", np.float16)):
        with PlanFile.open(write(precision=precision)) as plan:
            found = read_goldens(plan)
        assert {name: array.dtype for name, array in found.items()} == {"image": np.float32, "latent": latent, "depth": np.float32}
        for name, array in found.items():
            np.testing.assert_allclose(array, wanted[name], rtol=1e-3 if array.dtype == np.float16 else 0, atol=1e-6)


def test_goldens_that_do_not_fit_the_stages_are_refused(gpu, write):
    with PlanFile.open(write()) as plan:
        manifest = plan.manifest
    assert manifest_from_bytes(manifest_bytes(manifest), PlanManifest, "x") == manifest
    item = manifest.goldens[0]
    for changed in (
        (),
        manifest.goldens[1:],
        (dataclasses.replace(item, offset=1 << 30), *manifest.goldens[1:]),
        (dataclasses.replace(item, tensor=dataclasses.replace(item.tensor, shape=(1, 1, 64, 95))), *manifest.goldens[1:]),
    ):
        raw = json.loads(manifest_bytes(manifest))
        raw["goldens"] = [{**i.tensor.to_json(), "offset": i.offset} for i in changed]
        if changed:
            with pytest.raises(InputError, match="golden"):
                manifest_from_bytes(json.dumps(raw).encode(), PlanManifest, "x")
        else:
            assert manifest_from_bytes(json.dumps(raw).encode(), PlanManifest, "x").goldens == ()


def test_differences_by_hand():
    wanted = np.array([[3.0, 4.0]])
    found = difference(np.array([[3.03, 4.04], [3.03, 4.04]]), wanted)
    assert found.rms == pytest.approx(0.01) and found.gain == pytest.approx(0.01)
    turned = difference(np.array([[3.0 - 0.04, 4.0 + 0.03]]), wanted)  # at a right angle: no change of scale
    assert turned.rms == pytest.approx(0.01) and turned.gain == pytest.approx(0, abs=1e-12)
    assert difference(np.array([[3.0, np.nan]]), wanted).problem and difference(np.array([[1, 2]]), np.array([[1, 3]])).problem
    assert difference(np.zeros((1, 3)), wanted).problem.startswith("shape")


@pytest.mark.parametrize(
    ("version", "target", "precision", "threads"),
    [
        ("10.3.0.30", "sm87", "fp16", {4419, 4723, 4558}),
        ("10.3.0", "sm86", "fp32", {4419}),
        ("10.7.0", "sm86", "fp32", {4334}),
        ("10.13.3.9", "sm120", "fp16", {4837}),
        ("10.13.3.9", "sm120", "fp32", set()),
        ("11.3.0", "sm89", "fp16", {4854}),
        ("8.6.1", "sm86", "fp16", set()),
        ("", "", "fp16", set()),
    ],
)
def test_what_others_reported_is_told_before_building(version, target, precision, threads):
    found = known_faults("tensorrt", version, (target,) if target else (), precision)
    assert {int(fault.thread.rsplit("/", 1)[1]) for fault in found} == threads
    assert all(fault.thread in fault.words for fault in found)
