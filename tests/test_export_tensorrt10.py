"""Plans for TensorRT 10: typed graphs compiled by a stand-in for its builder, what the finished engines tell, on which GPU, and what is alive when."""

import json

import fake_cuda
import fake_tensorrt
import fake_tensorrt10_builder
import numpy as np
import pytest
import torch

from fathom.export.child import child
from fathom.export.child.child import ChildResult, run_child
from fathom.export.commands import build_command
from fathom.export.plan import constrained_stages, prove_candidate, stage_builder
from fathom.export.plan.build_options import BuildOptions
from fathom.export.tensorrt import build, constrained_build
from fathom.runtime.artefact.engine_layers import EngineLayer, read_layers, read_layers_file
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.commands import inspection
from fathom.runtime.errors import UsageError
from fathom.runtime.examination import examine_file
from fathom.runtime.pipeline import Pipeline

VERSION = "10.13.3.9"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Two fake GPUs with a TensorRT 10 that builds too; what would be a child process runs here."""
    machine = fake_cuda.Machine(devices=2)
    fake_cuda.install(monkeypatch, machine)
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    machine.trt = fake_tensorrt10_builder.add_builder(fake_tensorrt.install(monkeypatch, machine), VERSION)
    machine.asked = []  # (task, device) of every child

    def here(request, device=0, **more):
        machine.asked.append((request["task"], device))
        tasks = {"tensorrt": build.build_engine, "tensorrt-version": constrained_build.tensorrt_version, "prove": examine_file}
        work = tasks.get(request["task"])
        if work is None:
            return run_child(request, **more)
        send = lambda event, **facts: None  # noqa: E731
        if request["task"] != "tensorrt":
            return ChildResult(work(request, send), 0.0, 0)
        from fathom.runtime.cuda.open_device import open_device

        with open_device(device) as current:
            values = json.loads(json.dumps(work(json.loads(json.dumps(request)), send)))
        current.close()
        return ChildResult(values, 0.0, 0)

    for module in (stage_builder, constrained_stages, prove_candidate):
        monkeypatch.setattr(module, "run_child", here)
    return machine


def words(bundle, tmp_path, *more, precision="fp32"):
    return [str(bundle), "--backend", "tensorrt", "--precision", precision, "--force", "-o", str(tmp_path / "x.plan"), *more]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_whole_life_of_a_plan(gpu, small_bundle, small_network, tmp_path, capsys, precision):
    assert build_command.main(words(small_bundle, tmp_path, precision=precision)) == 0
    told = capsys.readouterr().err
    assert "right on Fake GPU (sm86), TensorRT 10.13.3.9" in told and "attention fused in 1 layer" in told
    assert ("with half" in told) == (precision == "fp16")
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    image = (torch.from_numpy(picture / np.float32(255)).permute(2, 0, 1)[None] - 0.5) / 0.25
    wanted = torch.nn.functional.interpolate(small_network.SmallNetwork()(image), size=(32, 48), mode="bilinear", align_corners=False)[0, 0]
    with Pipeline.open(tmp_path / "x.plan") as pipeline:
        np.testing.assert_allclose(pipeline.predict(picture).depth_m, wanted.numpy(), rtol=2e-2 if precision == "fp16" else 1e-3)


def test_a_builder_that_cannot_start_is_told(gpu, small_bundle, tmp_path, monkeypatch, capsys):
    """What the bindings do where there is no driver."""

    def no_driver(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(gpu.trt, "Builder", no_driver)
    assert build_command.main(words(small_bundle, tmp_path, "-q")) == 6
    assert f"TensorRT {VERSION} cannot start building here" in capsys.readouterr().err


def test_parser_and_network_are_gone_before_the_engine_is_loaded(gpu, small_bundle, tmp_path):
    assert build_command.main(words(small_bundle, tmp_path, "-q")) == 0
    loads = [alive for what, alive in gpu.trt.alive if what == "load"]
    compiles = [alive for what, alive in gpu.trt.alive if what == "compile"]
    assert compiles == [{"Builder", "Network", "OnnxParser", "Config"}] * 2  # one stage at a time: the parser holds the weights while they are compiled
    assert len(loads) >= 4 and loads == [set()] * len(loads)


def test_the_gpu_that_was_named_is_the_only_one_that_the_compiler_finds(gpu, small_bundle, tmp_path, monkeypatch, capsys):
    assert build_command.main(words(small_bundle, tmp_path, "-q", "--device", "1")) == 0
    assert ("tensorrt", 1) in gpu.asked and ("prove", 1) in gpu.asked and ("tensorrt", 0) not in gpu.asked
    assert build_command.main(words(small_bundle, tmp_path, "--device", "2")) == 6
    assert "CUDA_ERROR_INVALID_DEVICE" in capsys.readouterr().err or "no GPU 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build_command.main(words(small_bundle, tmp_path, "--device", "cuda"))
    for listed, number, found in ((None, 1, "1"), ("2,0", 1, "0"), ("GPU-a, GPU-b", 1, "GPU-b"), ("3", 1, "1"), ("2,0", 0, None), (None, 0, None)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if listed:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert child.only_device(number).get("CUDA_VISIBLE_DEVICES") == found
    for refused in ({"device": 1}, {"layers": "x.json"}):
        with pytest.raises(UsageError, match="--device and --layers go with tensorrt"):
            BuildOptions(**refused)


def test_layers_are_kept_beside_the_plan_and_inspected(gpu, small_bundle, tmp_path, capsys):
    file, plan = tmp_path / "layers.json", tmp_path / "x.plan"
    assert build_command.main(words(small_bundle, tmp_path, "-q", "--layers", str(file))) == 0
    capsys.readouterr()
    assert inspection.main([str(plan), "--layers", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["layers"]
    assert told["attention"]["encoder"] == "attention fused in 1 layer" and told["attention"]["decoder"] == "softmax outside of such in 1 layer"
    # attention over 16 x 24 places, 2 heads of width 8, in FP32: query, key, value in, the sum out
    assert len(told["largest"]) == 10 and sum(told["count"].values()) > 10
    with PlanFile.open(plan) as opened:
        (fused,) = [layer for layer in read_layers_file(file, opened.manifest)["encoder"] if layer.attention == "fused"]
    assert (fused.nbytes, fused.reads, fused.kind) == (4 * 384 * 16 * 4, ("float",), "kgen")
    assert [layer["nbytes"] for layer in told["largest"]] == sorted((layer["nbytes"] for layer in told["largest"]), reverse=True)
    assert inspection.main([str(plan), "--layers", str(file)]) == 0
    text = capsys.readouterr().out
    assert "encoder: attention fused in 1 layer" in text and "MB moved" in text
    assert build_command.main(words(small_bundle, tmp_path, "-q", "--batch", "2")) == 0
    assert inspection.main([str(plan), "--layers", str(file)]) == 3  # another plan by now
    assert "tells of another engine of stage encoder" in capsys.readouterr().err
    assert inspection.main([str(small_bundle), "--layers", str(file)]) == 2
    gpu.trt.fuses = False
    assert build_command.main(words(small_bundle, tmp_path, "-q", "--layers", str(file))) == 0
    capsys.readouterr()
    assert inspection.main([str(plan), "--layers", str(file)]) == 0
    assert "encoder: softmax outside of such in 1 layer" in capsys.readouterr().out


def test_an_engine_in_other_types_is_not_honoured(gpu, small_bundle, tmp_path, capsys):
    tensor = {"Name": "x", "Dimensions": [1, 4], "Format/Datatype": "Float"}
    gpu.trt.lie = [{"Name": "everything", "LayerType": "kgen", "Inputs": [tensor], "Outputs": [tensor], "TacticName": "t"}]
    assert build_command.main(words(small_bundle, tmp_path, precision="fp16")) == 5
    assert "stage encoder: no layer of the engine reads or writes half" in capsys.readouterr().err
    tensor["Format/Datatype"] = "Half"
    assert build_command.main(words(small_bundle, tmp_path)) == 5
    gpu.trt.lie = ["names", "only"]
    assert build_command.main(words(small_bundle, tmp_path)) == 0  # an engine that tells nothing is not wrong for it
    assert "names of its layers and nothing else" in capsys.readouterr().err


def test_an_engine_that_cannot_be_loaded_beside_its_compiler_is_no_failure_unless_it_was_to_tell(gpu, small_bundle, tmp_path, capsys):
    gpu.trt.fail["deserialize"] = "out of memory"
    assert build_command.main(words(small_bundle, tmp_path, "-q")) == 0
    gpu.trt.fail["deserialize"] = "out of memory"
    assert build_command.main(words(small_bundle, tmp_path, "--layers", str(tmp_path / "layers.json"))) == 8
    assert not (tmp_path / "layers.json").exists() and "cannot be loaded" in capsys.readouterr().err


def test_layers_as_real_releases_tell_of_them():
    """Keys and words of TensorRT 10 (NVIDIA/TensorRT#4397), 9 (#3665), and of 8 with weights and regions."""

    def tensor(dims, words):
        return {"Name": "t", "Location": "Device", "Dimensions": dims, "Format/Datatype": words}

    gemm = {
        "Name": "/encoder/layers_2/mha/attn/mha_prob/key/MatMul_myl0_16",
        "LayerType": "gemm",
        "Inputs": [tensor([1, 40, 256], "Half")],
        "Outputs": [tensor([3, 40, 256], "Half")],
        "TacticName": "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16",
        "Metadata": "[ONNX Layer: /encoder/layers.2/mha/attn/mha_prob/key/MatMul]",
    }
    mha = {"Name": "_gemm_mha_v2_myl0_17", "LayerType": "kgen", "Inputs": [], "Outputs": [tensor([4, 40, 64], "Half")]}
    mha |= {"TacticName": "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a"}
    older = {"Name": "__mye8037_gemm_mha_v2", "LayerType": "kgen", "Inputs": [], "Outputs": [], "TacticName": ""}
    conv = {"Name": "conv", "LayerType": "Convolution", "Inputs": [tensor([1, 3, 8, 8], "Channel major FP16 format where channel % 8 == 0")], "Outputs": []}
    conv |= {"Weights": {"Type": "Int8", "Count": 9408}, "Bias": {"Type": "Float", "Count": 64}}
    region = {"Name": "{ForeignNode[a/MatMul_0...b/Softmax_0]}", "LayerType": "Myelin", "Inputs": [tensor([-1, 8], "Row major linear FP32")], "Outputs": []}
    alone = {"Name": "a/Softmax_0", "LayerType": "SoftMax", "Inputs": [tensor([2, 2], "BFloat16")], "Outputs": []}
    found = read_layers(json.dumps({"Layers": [gemm, mha, older, conv, region, alone]}))
    assert found[0] == EngineLayer(gemm["Name"], "gemm", ("half",), ("half",), 2 * (40 * 256 + 3 * 40 * 256), gemm["TacticName"], "")
    assert [layer.attention for layer in found] == ["", "fused", "fused", "", "untold", "softmax"]
    assert found[3].nbytes == 2 * 3 * 8 * 8 + 9408 + 4 * 64 and found[4].nbytes == 8 * 4 and found[5].reads == ("bfloat16",)
    for silent in ("", "{}", json.dumps({"Layers": ["a"]})):
        with pytest.raises(ValueError, match="layers"):
            read_layers(silent)
    with pytest.raises(ValueError, match="nothing else"):
        read_layers(json.dumps({"Layers": ["a"]}))
