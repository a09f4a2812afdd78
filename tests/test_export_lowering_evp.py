"""Full-size EVP as TensorRT 8.5 reads it, against the graphs it comes from. Minutes, and 8 GiB of disk."""

import numpy as np
import onnx
import onnxruntime
import pytest

from fathom.export.commands import export_command
from fathom.export.lowering.lowering import lower_stage
from fathom.export.onnxruntime.rewrites import GATE_PASSES, rewrite
from fathom.runtime.artefact.bundle import BundleDirectory


def outputs_of(graph, feed, passes=()):
    """What ONNX Runtime makes of a graph whose weights lie beside it, in as little memory as it can."""
    model, options = onnx.load(str(graph), load_external_data=False), onnxruntime.SessionOptions()
    rewrite(model, passes)
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    for key, value in (("session.model_external_initializers_file_folder_path", str(graph.parent)), ("session.disable_prepacking", "1")):
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.slow
def test_every_stage_of_evp_can_be_lowered_and_computes_the_same(tmp_path, record_property):
    from safetensors.numpy import load_file

    assert export_command.main(["--model", "evp", "--random-init", "-o", str(tmp_path / "evp"), "--quiet"]) == 0
    with BundleDirectory.open(tmp_path / "evp", verify=False) as bundle:
        golden = load_file(bundle.path(bundle.manifest.goldens[0]))
        for stage in bundle.manifest.stages:
            folder = tmp_path / stage.spec.name
            folder.mkdir()
            lowered = lower_stage(bundle.path(stage.file), folder, stage.spec, "8.5")
            feed = {tensor.name: golden[tensor.name] for tensor in stage.spec.inputs}
            wanted = outputs_of(bundle.path(stage.file), feed, GATE_PASSES)
            got = outputs_of(lowered.graph, feed)
            worst = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, wanted, strict=True))
            record_property(stage.spec.name, worst)
            print(f"{stage.spec.name}: {worst:.2e}, {lowered.rewrites}")
            assert worst <= 1e-5, stage.spec.name
            for file in folder.iterdir():
                file.unlink()
