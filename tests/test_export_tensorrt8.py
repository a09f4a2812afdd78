"""Plans for TensorRT 8.5: lowered, constrained, compiled by a stand-in for its builder, looked into, run on a fake GPU, against PyTorch."""

import gc
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import fake_cuda
import fake_tensorrt
import fake_tensorrt8_builder
import numpy as np
import onnx
import pytest
import torch
from python38 import find_python38

from fathom.calibration.precision.precision_plan import Choice
from fathom.export.child.child import ChildResult, run_child
from fathom.export.commands import build_command
from fathom.export.plan import constrained_stages, prove_candidate, stage_builder
from fathom.export.plan.build import build_plan
from fathom.export.plan.build_options import BuildOptions
from fathom.export.plan.plan_file import write_plan
from fathom.export.plan.time_stages import int8_everywhere
from fathom.export.tensorrt import constrained_build
from fathom.export.tensorrt.engine_layers import NodeTypes, layer_types
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.commands import doctor, inspection
from fathom.runtime.errors import BuildFailedError, EnvironmentMismatchError, PrecisionError
from fathom.runtime.examination import examine_file
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.adapters import tactic_sources

INT8 = Choice("int8", "max")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    return building_gpu(monkeypatch, tmp_path, "8.5.2.2")


def building_gpu(monkeypatch, tmp_path, version, **machine):
    """A fake GPU with a TensorRT 8 that builds too; what would be a child process runs here."""
    machine = fake_cuda.Machine(**machine)
    fake_cuda.install(monkeypatch, machine)
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    machine.trt = fake_tensorrt8_builder.add_builder(fake_tensorrt.install(monkeypatch, machine, version=version), version)
    machine.requests = []

    def here(request, **more):
        tasks = {"tensorrt8": constrained_build.build_constrained_engine, "tensorrt-version": constrained_build.tensorrt_version, "prove8": examine_file}
        work = tasks.get(request["task"])
        if work is None:
            return run_child(request, **more)
        if request["task"] == "prove8":
            return ChildResult(work(request, lambda event, **facts: None), 0.0, 0)
        machine.requests.append(request)
        with fake_cuda_context(machine):
            return ChildResult(json.loads(json.dumps(work(json.loads(json.dumps(request)), lambda event, **facts: None))), 0.0, 0)

    for module in (stage_builder, constrained_stages, prove_candidate):
        monkeypatch.setattr(module, "run_child", here)
    return machine


class fake_cuda_context:
    """TensorRT makes a context of its own where there is none; the fake wants one to be current."""

    def __init__(self, machine):
        from fathom.runtime.cuda.open_device import open_device

        self.device = open_device(0)

    def __enter__(self):
        self.device.__enter__()

    def __exit__(self, *error):
        self.device.__exit__(*error)
        self.device.close()


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def pytorch_depth(small_network, photo):
    image = (torch.from_numpy(photo / np.float32(255)).permute(2, 0, 1)[None] - 0.5) / 0.25
    depth = small_network.SmallNetwork()(image)
    return torch.nn.functional.interpolate(depth, size=(32, 48), mode="bilinear", align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize(("precision", "batch"), [("fp32", (1, 1, 1)), ("fp16", (1, 2, 4))])
def test_the_whole_life_of_a_plan(gpu, small_bundle, small_network, tmp_path, precision, batch):
    report = build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt", precision, batch=batch))
    manifest = report.manifest
    assert (manifest.backend, manifest.backend_version, manifest.precision, manifest.batch) == ("tensorrt", "8.5.2.2", precision, batch)
    assert not report.parity.failures and report.parity.label == ("graph-only" if precision == "fp16" else "")
    assert report.parity.output_error < (1e-5 if precision == "fp32" else 0.02)  # of the lowered graphs, and of the typed ones
    latent = manifest.stages[0].spec.outputs[0]
    assert latent.dtype == ("float16" if precision == "fp16" else "float32") and manifest.stages[1].spec.inputs[0].dtype == latent.dtype
    with Pipeline.open(tmp_path / "x.plan") as pipeline:
        for seed in range(3):
            np.testing.assert_allclose(pipeline.predict(picture(seed)).depth_m, pytorch_depth(small_network, picture(seed)), rtol=2e-3)
    gpu.trt.built.clear()
    gc.collect()
    assert gpu.leaks() == {} and gpu.trt.counts == {"engine": 0, "context": 0}
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["x.plan"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_an_engine_that_is_wrong_by_one_percent_never_gets_the_name(gpu, small_bundle, tmp_path, monkeypatch, capsys, precision, stage):
    honest = stage_builder.run_child

    def wrong(request, **more):
        found = honest(request, **more)
        if request["stage"] == stage:
            engine = Path(request["target"])
            raw = engine.read_bytes()
            end = raw.index(b"\n", fake_tensorrt.HEADER) + 1
            model = onnx.ModelProto.FromString(raw[end:])
            sizes = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
            for item in model.graph.initializer:
                array = onnx.numpy_helper.to_array(item)
                if array.dtype.kind == "f" and array.size > 1 and item.name not in sizes:
                    item.CopyFrom(onnx.numpy_helper.from_array((array * 1.01).astype(array.dtype), item.name))
            engine.write_bytes(raw[:end] + model.SerializeToString())
        return found

    monkeypatch.setattr(stage_builder, "run_child", wrong)
    words = [str(small_bundle), "--backend", "tensorrt", "--precision", precision, "-o", str(tmp_path / "x.plan")]
    assert build_command.main(words) == 4
    told = capsys.readouterr().err
    assert f"the engine of stage {stage} does not give on Fake GPU" in told and "x.rejected.plan" in told
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["x.rejected.plan"]
    monkeypatch.setattr(stage_builder, "run_child", honest)
    assert build_command.main([*words, "--layers", str(tmp_path / "layers.json")]) == 0
    assert "right on Fake GPU (sm86), TensorRT 8.5.2.2" in capsys.readouterr().err
    assert inspection.main([str(tmp_path / "x.plan"), "--layers", str(tmp_path / "layers.json"), "--json"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["layers"]["count"].values()) > 20
    with PlanFile.open(tmp_path / "x.plan") as plan:
        assert plan.manifest.targets == ("sm86",)
    assert doctor.main(["--engine", str(tmp_path / "x.plan")]) == 0
    assert "right on Fake GPU (sm86), TensorRT 8.5.2.2" in capsys.readouterr().out
    gpu.capability = (8, 9)
    with pytest.raises(EnvironmentMismatchError, match="built for sm86, and GPU 0"):
        Pipeline.open(tmp_path / "x.plan")
    assert doctor.main(["--engine", str(tmp_path / "x.plan")]) == 6


def test_a_second_build_measures_nothing_again(gpu, small_bundle, tmp_path):
    words = [str(small_bundle), "--backend", "tensorrt", "--force", "-q", "-o", str(tmp_path / "x.plan")]
    assert build_command.main(words) == 0
    first = gpu.trt.measured
    assert first > 20 and all(config.pools == {} for _, config in gpu.trt.built)
    gpu.trt.built.clear()
    assert build_command.main([*words, "--workspace", "0.5"]) == 0
    assert gpu.trt.measured == first  # from the user's cache
    assert all(config.pools == {gpu.trt.MemoryPoolType.WORKSPACE: 1 << 29} for _, config in gpu.trt.built)
    (kept,) = (tmp_path / "cache" / "timing").iterdir()
    assert kept.name == "tensorrt-8.5.2.2-sm86.cache"
    mine = tmp_path / "cache" / "mine.cache"
    mine.write_bytes(b"of another release")
    assert build_command.main([*words, "--timing-cache", str(mine)]) == 0
    assert gpu.trt.measured == 2 * first and mine.read_bytes() == kept.read_bytes()
    assert build_command.main([str(small_bundle), "--workspace", "1", "-q", "-o", str(tmp_path / "y.plan")]) == 2


def test_fp32_asks_for_nothing(gpu, small_bundle, tmp_path):
    build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt"))
    for network, config in gpu.trt.built:
        assert config.flags == set() and config.profiling_verbosity == gpu.trt.ProfilingVerbosity.DETAILED  # no TF32 either
        assert all(layer.precision is None for layer in network.layers)


def test_fp16_constrains_every_layer_and_keeps_islands_and_norms(gpu, small_bundle, tmp_path):
    report = build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt", "fp16"))
    trt, asked = gpu.trt, {}
    for network, config in trt.built:
        assert config.flags == {trt.BuilderFlag.FP16, trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS}
        for layer in network.layers:
            output = layer.get_output(0)
            free = layer.type in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE) or output.dtype not in (trt.DataType.FLOAT, trt.DataType.HALF)
            assert (layer.precision is None) == free, layer.name
            asked[layer.name] = layer.precision
            if not free and not output.is_network_output:
                assert layer.asked == dict.fromkeys(range(layer.num_outputs), layer.precision)
    half = {name for name, precision in asked.items() if precision == trt.DataType.HALF and "(Unnamed" not in name}
    full = {name for name, precision in asked.items() if precision == trt.DataType.FLOAT and "(Unnamed" not in name}
    assert any("conv_in" in name for name in half)
    assert any("logits" in name for name in full) and not any("logits" in name for name in half)  # the network's island
    norms = {name for name in asked if re.search(r"Normalization_\d+\.", name) and asked[name] is not None}
    assert len(norms) > 10 and norms <= full  # their squares overflow FP16
    assert any("Softmax" in name for name in full)
    layers = {stage.name: stage.layers for stage in report.stages}
    assert layers["encoder"]["half"] >= 5 and layers["decoder"]["float"] == 1 and layers["decoder"]["half"] == 1


def test_helper_layers_go_with_the_layer_they_serve(gpu, small_bundle, tmp_path):
    build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt", "fp16"))
    seen = 0
    for network, _ in gpu.trt.built:
        for helper, layer in zip(network.layers, network.layers[1:], strict=False):
            if helper.name.startswith("(Unnamed"):
                seen += 1
                assert helper.precision == layer.precision
    assert seen > 5


def test_a_layer_that_must_be_fp32_and_is_not_ends_with_code_5(gpu, small_bundle, tmp_path, capsys):
    names = [name for name, kind in norm_nodes(gpu, small_bundle, tmp_path) if kind == "fp32" and name.endswith(".squares")]
    gpu.trt.stubborn[names[0]] = "HALF"
    words = [str(small_bundle), "--backend", "tensorrt", "--precision", "fp16", "-o", str(tmp_path / "y.plan"), "-q"]
    assert build_command.main(words) == 5
    said = capsys.readouterr().err
    assert f"{names[0]} computes in half" in said and not (tmp_path / "y.plan").exists()


def test_what_was_held_to_fp32_and_merged_out_of_sight_is_counted(gpu, small_bundle, tmp_path):
    said = re.compile(r"(\d+) nodes held to FP32: (\d+) read back as FP32, (\d+) merged into what it does not tell of")
    for plan, silent in (("x.plan", False), ("y.plan", True)):
        nodes = [name for request in gpu.requests if request["task"] == "tensorrt8" for name in request["exact"]] if silent else []
        gpu.trt.silent = {name for name in nodes if name.endswith(".squares")}
        stages = build_plan(small_bundle, tmp_path / plan, BuildOptions("tensorrt", "fp16")).stages
        total, seen, merged = map(sum, zip(*(map(int, said.fullmatch(stage.told).groups()) for stage in stages), strict=True))
        assert total == seen + merged > 20 and merged == len(gpu.trt.silent) and silent == (merged > 0)


def norm_nodes(gpu, small_bundle, tmp_path):
    build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt", "fp16"))
    return [tuple(node) for request in gpu.requests if request["task"] == "tensorrt8" for node in request["nodes"]]


def test_a_product_that_stayed_fp32_is_not_passed_off_as_fp16(gpu, small_bundle, tmp_path):
    nodes = dict(norm_nodes(gpu, small_bundle, tmp_path))
    conv = next(name for name, kind in nodes.items() if "conv_in" in name and kind == "fp16")
    gpu.trt.stubborn[conv] = "FLOAT"
    with pytest.raises(PrecisionError, match=re.escape(conv) + " computes in float and no FP32 island asks for it"):
        build_plan(small_bundle, tmp_path / "y.plan", BuildOptions("tensorrt", "fp16"))
    gpu.trt.stubborn.clear()
    gpu.trt.silent.add(conv)  # merged into a region: counted as untold, not as what was hoped for
    report = build_plan(small_bundle, tmp_path / "y.plan", BuildOptions("tensorrt", "fp16"))
    assert next(stage.layers for stage in report.stages if stage.name == "encoder")["untold"] == 1


def int8_plan(small_bundle, tmp_path, choice=INT8):
    (scratch := tmp_path / "scratch").mkdir()
    found = int8_everywhere(bundle := BundleDirectory.open(small_bundle))
    options = BuildOptions("tensorrt", "int8" if choice.quantised else "fp16")
    found = replace(found, plan=replace(found.plan, regions=tuple(replace(region, choice=choice) for region in found.plan.regions)))
    builder = stage_builder.StageBuilder(bundle, options, scratch, lambda what, done: None, found, compare=False)
    builder.type_stages()
    built = builder.build_all()
    write_plan(tmp_path / "x.plan", *builder.plan(built))
    return built, {name for region in found.plan.regions for name in region.nodes}


def test_bf16_becomes_fp32(gpu, small_bundle, tmp_path):
    _, wide = int8_plan(small_bundle, tmp_path, Choice("bf16"))
    asked = {layer.name: layer.precision for network, _ in gpu.trt.built for layer in network.layers}
    assert len(wide) > 3 and {asked[name] for name in wide} == {gpu.trt.DataType.FLOAT} and gpu.trt.DataType.HALF in asked.values()


def test_int8_is_explicit_and_left_to_its_q_dq(gpu, small_bundle, tmp_path):
    """Ranges that nobody saw: what is looked at is the network that the compiler gets."""
    (built, _), trt = int8_plan(small_bundle, tmp_path), gpu.trt
    for (network, config), (entry, _, facts), request in zip(trt.built, built, gpu.requests[1:], strict=True):
        assert config.flags == {trt.BuilderFlag.FP16, trt.BuilderFlag.INT8, trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS}
        int8 = [name for name, kind in request["nodes"] if kind == "int8"]
        assert int8 and entry.precision == "int8" and facts.layers["int8"] == len(int8)
        for layer in network.layers:
            if layer.name in int8 or layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE):
                assert layer.precision is None
            if layer.type == trt.LayerType.DEQUANTIZE:
                assert len(layer.node.input) == 3
        weights = {tensor.name for tensor in network.model.graph.initializer if tensor.data_type == 3 and len(tensor.dims) > 1}
        assert not weights  # in FP32, behind a pair
    with PlanFile.open(tmp_path / "x.plan"), Pipeline.open(tmp_path / "x.plan") as pipeline:
        assert np.isfinite(pipeline.predict(picture()).depth_m).all()


def test_what_an_int8_product_fuses_is_not_held_to_fp16():
    """TensorRT 8.5.3 ended with "incorrectly marked as an int8 node" at convolutions whose activation or residual sum had to be FP16."""
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x"], ["c"], name="conv"),
        make("Add", ["c", "r"], ["s"], name="sum"),
        make("Relu", ["s"], ["a"], name="act"),  # read twice: whatever follows is no epilogue
        make("Sigmoid", ["a"], ["g"], name="gate"),
        make("QuantizeLinear", ["a"], ["q"], name="quantise"),
        make("Conv", ["r"], ["f"], name="fp16 conv"),
        make("Relu", ["f"], ["h"], name="its act"),
        make("Conv", ["h"], ["e"], name="before an island"),
        make("Mul", ["e", "e2"], ["m"], name="island"),
    ]
    kinds = dict.fromkeys([node.name for node in nodes], "fp16") | {"conv": "int8", "before an island": "int8", "island": "fp32"}
    assert constrained_stages._epilogues(onnx.helper.make_graph(nodes, "g", [], []), kinds) == {"sum", "act"}


def test_a_stage_without_int8_asks_for_no_calibrator(gpu, small_bundle, tmp_path, monkeypatch):
    """With the INT8 flag and no Q/DQ TensorRT 8.5 ends with "no scaling factors detected": a stage that an INT8 plan leaves in FP16 must not have it."""
    request = constrained_stages.ConstrainedStages.request
    monkeypatch.setattr(constrained_stages.ConstrainedStages, "request", lambda *arguments: {**request(*arguments), "precision": "int8"})
    build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt", "fp16"))
    assert all(gpu.trt.BuilderFlag.INT8 not in config.flags and gpu.trt.BuilderFlag.FP16 in config.flags for _, config in gpu.trt.built)


def test_where_int8_refuses_what_is_held_to_fp16_only_fp32_is_held_and_obeyed(gpu, small_bundle, tmp_path):
    trt = gpu.trt
    trt.fail["build"] = "2: Assertion failed. All of the candidates were removed, which points to the node being incorrectly marked as an int8 node."
    int8_plan(small_bundle, tmp_path)
    (first, config), (again, _), (other, later) = trt.built
    assert first is again and trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS not in config.flags
    assert {trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS, trt.BuilderFlag.INT8} <= config.flags
    held = [layer for layer in first.layers if layer.precision is not None]
    assert len(held) > 10 and all(set(layer.asked.values()) <= {trt.DataType.FLOAT} and layer.precision == trt.DataType.FLOAT for layer in held)
    assert not any(trt.DataType.HALF in layer.asked.values() for layer in first.layers)
    assert any(layer.precision == trt.DataType.HALF for layer in other.layers) and trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS in later.flags


def test_what_the_parser_and_the_compiler_say_is_told_with_the_node(gpu, small_bundle, tmp_path, monkeypatch):
    real = fake_tensorrt8_builder.operator_table
    table = real("8.5")
    monkeypatch.setattr(
        fake_tensorrt8_builder, "operator_table", lambda release: type(table)(release, 17, {k: v for k, v in table.operators.items() if k != "Conv"}, {})
    )
    with pytest.raises(
        BuildFailedError, match=r"stage encoder: tensorrt 8\.5\.2\.2 cannot read the graph: node .*conv_in.*No importer registered for op: Conv"
    ):
        build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt"))
    monkeypatch.setattr(fake_tensorrt8_builder, "operator_table", real)
    gpu.trt.fail["build"] = "Could not find any implementation for node"
    with pytest.raises(BuildFailedError, match="could not compile the network: Could not find any implementation"):
        build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize("cublas, cudnn, mask", [(True, True, 0b11111), (True, False, 0b11011), (False, True, 0b11100), (False, False, 0b11000)])
def test_kernels_of_cudnn_and_cublas_are_asked_for_only_where_they_are_and_tensorrts_own_always(gpu, small_bundle, tmp_path, monkeypatch, cublas, cudnn, mask):
    monkeypatch.setattr(tactic_sources, "_is_cublas", lambda name: cublas if name.endswith("11") else True)  # 8.5 has no use for cuBLAS 12
    monkeypatch.setattr(tactic_sources, "_is_cudnn", lambda name: cudnn)
    build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt"))
    assert {config.sources for _, config in gpu.trt.built} == {mask}


def test_without_cublas_a_fused_region_has_no_kernels_and_the_mend_is_told(gpu, small_bundle, tmp_path, monkeypatch):
    """As TensorRT 8.5.3 said it on an H200 of every ViT and BERT block until cuBLAS 11 was there."""
    for there, mend in ((False, "pip install nvidia-cublas-cu11"), (True, None)):
        monkeypatch.setattr(tactic_sources, "_is_cublas", lambda name, there=there: there)
        gpu.trt.fail["build"] = "10: Could not find any implementation for node {ForeignNode[blocks.0.mlp.gelu/Mul_0:in1...]}."
        with pytest.raises(BuildFailedError, match="could not compile the network: 10: Could not") as caught:
            build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt"))
        assert mend is None or mend in caught.value.fix
        assert mend or not caught.value.fix


def test_measurements_that_are_refused_are_not_the_reason_of_a_failure(gpu, small_bundle, tmp_path):
    cache = tmp_path / "measured.cache"
    cache.write_bytes(b"timings of another card")
    build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt", timing_cache=str(cache)))
    assert cache.read_bytes().startswith(b"timing ")  # replaced by what this build measured


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--precision", "fp8"], "TensorRT 8.5.2.2 does not know FP8"),
        (["--precision", "int4"], "TensorRT 8.5.2.2 does not know INT4"),
    ],
)
def test_what_came_after_this_tier_is_refused_with_a_way_out(gpu, small_bundle, tmp_path, capsys, words, told):
    """Before it is asked for a calibration."""
    assert build_command.main([str(small_bundle), "--backend", "tensorrt", *words, "-o", str(tmp_path / "x.plan"), "-q"]) == 2
    said = capsys.readouterr().err
    assert told in said and ("fix: " in said) and gpu.trt.built == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_version_of_no_tier_builds_nothing(gpu, small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.trt, "__version__", "8.4.1")
    with pytest.raises(EnvironmentMismatchError, match=r"TensorRT 8\.4\.1 is installed; wanted: 8\.5 or 8\.6"):
        build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt"))


def test_newer_versions_take_typed_graphs_as_before(gpu, monkeypatch):
    for version, release in (("8.5.3.1", "8.5"), ("8.6.1", "8.6"), ("10.3.0", ""), ("11.4.1", "")):
        monkeypatch.setattr(gpu.trt, "__version__", version)
        assert constrained_stages.constrained_release(constrained_stages.installed_tensorrt()[0]) == release


def test_tensorrt_may_be_at_home_in_another_python(monkeypatch, tmp_path, capsys, small_bundle):
    """JetPack 5 has TensorRT for its Python 3.8 and for no other: that one compiles, and everything else stays here."""
    other = find_python38() or sys.executable
    package, python = tmp_path / "tensorrt.py", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={tmp_path} {other} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("FATHOM_TENSORRT_PYTHON", str(python))
    package.write_text("__version__ = '8.5.2.2'\n")
    assert constrained_stages.constrained_release(constrained_stages.installed_tensorrt()[0]) == "8.5"
    package.write_text("__version__ = '8.2.1'\n")
    assert build_command.main([str(small_bundle), "--backend", "tensorrt", "-o", str(tmp_path / "x.plan"), "-q"]) == 6
    assert "TensorRT 8.2.1 is installed; wanted: 8.5 or 8.6 (JetPack 5)" in capsys.readouterr().err


def test_a_builder_that_cannot_start_is_told(gpu, small_bundle, tmp_path, monkeypatch):
    """The bindings of 8.5.3.1 raise a TypeError about a null pointer where there is no driver."""

    def no_driver(logger):
        logger.log(gpu.trt.ILogger.WARNING, "CUDA initialization failure with error: 35.  Please check your CUDA installation")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(gpu.trt, "Builder", no_driver)
    with pytest.raises(EnvironmentMismatchError, match=r"TensorRT 8\.5\.2\.2 cannot start building.*CUDA initialization failure with error: 35.*NVIDIA GPU"):
        build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt"))


def test_the_engine_says_which_layer_got_what():
    """Names and formats as TensorRT 8 writes them."""

    def tensor(name, words):
        return {"Name": name, "Location": "Device", "Dimensions": [1], "Format/Datatype": words}

    layers = [
        {
            "Name": "a/Conv_0 + a/Relu_0",
            "Inputs": [tensor("x", "Row major linear FP32")],
            "Outputs": [tensor("y", "Channel major FP16 format where channel % 8 == 0")],
        },
        {
            "Name": "PWN(PWN(b/Sigmoid_0), b/Mul_0)",
            "Inputs": [tensor("y", "Row major linear FP16 format")],
            "Outputs": [tensor("z", "Row major linear FP16 format")],
        },
        {
            "Name": "c/Conv_0 || d/Conv_0",
            "Inputs": [tensor("z", "Thirty-two wide channel vectorized row major Int8 format")],
            "Outputs": [tensor("w", "Row major linear FP32")],
        },
        {"Name": "{ForeignNode[e/MatMul_0...e/MatMul_1]}", "Inputs": [tensor("w", "Row major linear FP32")], "Outputs": []},
        {"Name": "Reformatting CopyNode for Input Tensor 0 to a/Conv_0 + a/Relu_0", "Inputs": [tensor("x", "Row major linear FP32")], "Outputs": []},
        {"Name": "f/Mul_0_17", "Inputs": [tensor("edge", "Row major linear FP16 format")], "Outputs": [tensor("v", "Row major linear FP32")]},
    ]
    nodes = ["a/Conv_0", "a/Relu_0", "b/Sigmoid_0", "b/Mul_0", "c/Conv_0", "d/Conv_0", "e/MatMul_0", "e/MatMul_1", "f/Mul_0"]
    got = layer_types(json.dumps({"Layers": layers, "Bindings": ["x"]}), nodes, {"edge"})
    assert got["a/Conv_0"] == got["a/Relu_0"] == NodeTypes({"float"}, {"float", "half"})
    assert got["b/Sigmoid_0"] == got["b/Mul_0"] == NodeTypes({"half"}, {"half"})
    assert got["c/Conv_0"] == got["d/Conv_0"] == NodeTypes({"int8"}, {"int8", "float"})
    assert got["f/Mul_0"] == NodeTypes({"half"}, {"float"}) and not {"e/MatMul_0", "e/MatMul_1"} & got.keys()
    with pytest.raises(PrecisionError, match="names of its layers and nothing else"):
        layer_types(json.dumps({"Layers": ["a/Conv_0"]}), nodes, set())
    with pytest.raises(PrecisionError, match="does not tell"):
        layer_types("", nodes, set())
