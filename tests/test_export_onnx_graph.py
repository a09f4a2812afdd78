"""One stage as ONNX: right numbers at any batch, names that lead back to modules, the same bytes every time."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnxscript import optimizer
from torch import nn

from fathom.export.graph import onnx_graph
from fathom.export.graph.onnx_graph import OPSET, export_graph
from fathom.export.graph.optimise import optimise
from fathom.models.network import Stage
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.errors import BuildFailedError, OutOfMemoryError


def _stage(module, shape_in, shape_out, name="part"):
    tensors = (TensorSpec("x", "float32", ("batch", *shape_in)),), (TensorSpec("y", "float32", ("batch", *shape_out)),)
    return Stage(StageSpec(name, *tensors), module.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def exported(small_network, tmp_path_factory):
    folder, network = tmp_path_factory.mktemp("graph"), small_network.SmallNetwork()
    return network, {stage.spec.name: export_graph(stage, folder) for stage in network.stages()}


@pytest.mark.parametrize("batch", [1, 3])
def test_every_stage_gives_what_pytorch_gives_at_any_batch(exported, batch):
    network, graphs = exported
    for stage in network.stages():
        x = torch.randn(batch, *stage.spec.inputs[0].shape[1:])
        session = ort.InferenceSession(str(graphs[stage.spec.name].file))
        (got,) = session.run([stage.spec.outputs[0].name], {stage.spec.inputs[0].name: x.numpy()})
        np.testing.assert_allclose(got, stage.module(x).numpy(), atol=5e-5)


def test_names_lead_back_to_modules_and_parameters(exported):
    network, graphs = exported
    model = onnx.load(str(graphs["encoder"].file), load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"conv_in/Conv_0", "attn.qkv/MatMul_0", "attn.norm/LayerNormalization_0", "attn/Softmax_0", "shared/Conv_0", "shared/Conv_1"} <= set(names)
    initialisers = {tensor.name for tensor in model.graph.initializer}
    assert set(dict(network.encoder.named_parameters())) == {name for name in initialisers if "/" not in name}
    assert [value.name for value in model.graph.input] == ["image"] and [value.name for value in model.graph.output] == ["latent"]


def test_attention_and_norms_are_what_compilers_recognise(exported):
    _, graphs = exported
    model = onnx.load(str(graphs["encoder"].file), load_external_data=False)
    ops = [node.op_type for node in model.graph.node]
    assert graphs["encoder"].norms == {"InstanceNormalization": 1, "LayerNormalization": 1}
    assert not {"Shape", "Slice", "Concat", "Gather", "Expand"} & set(ops), "a free batch must not spell out shapes"
    decoder = onnx.load(str(graphs["decoder"].file), load_external_data=False)
    assert "BatchNormalization" not in [node.op_type for node in decoder.graph.node]  # it is within the convolution
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}


def test_graphs_are_those_of_the_librarys_own_optimiser(small_network):
    """Which takes quadratic time for a rewrite that nothing here needs."""
    for stage in small_network.SmallNetwork().stages():
        traced = ir.serde.serialize_model(onnx_graph._trace(stage))
        ours, theirs = (ir.serde.deserialize_model(traced) for _ in range(2))
        optimise(ours)
        optimizer.optimize_ir(theirs)
        made = [ir.serde.serialize_model(model).SerializeToString(deterministic=True) for model in (ours, theirs)]
        assert made[0] == made[1] and len(ours.graph) < len(ir.serde.deserialize_model(traced).graph)


def test_weights_lie_beside_the_graph_once_and_equal_the_parameters(exported):
    network, graphs = exported
    file = graphs["encoder"].file
    model = onnx.load(str(file))
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(found["shared.weight"], network.encoder.shared.weight.numpy())
    np.testing.assert_array_equal(found["attn.qkv.weight"], network.encoder.attn.qkv.weight.numpy().T)
    large = sum(p.numel() * 4 for p in network.encoder.parameters() if p.numel() * 4 >= 1024)
    size = file.with_name(file.name + ".data").stat().st_size
    assert large <= size == graphs["encoder"].weights_nbytes <= large + 3 * 4096  # gaps only


def test_no_machine_path_or_stack_trace_is_left(exported):
    _, graphs = exported
    for graph in graphs.values():
        raw = graph.file.read_bytes()
        for sign in (b"site-packages", b".py", b"stack_trace", b"class_hierarchy", b"/home", b"small_network"):
            assert sign not in raw, sign


def test_the_same_weights_give_the_same_bytes(small_network, exported, tmp_path):
    _, graphs = exported
    for stage in small_network.SmallNetwork().stages():
        again = export_graph(stage, tmp_path).file
        for name in (again.name, again.name + ".data"):
            assert (tmp_path / name).read_bytes() == graphs[stage.spec.name].file.with_name(name).read_bytes()


def test_equal_tensors_are_stored_once(tmp_path):
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.b.weight.data.copy_(self.a.weight)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    assert export_graph(_stage(Twins(), (64,), (64,)), tmp_path).weights_nbytes == 64 * 64 * 4


class Antialias(nn.Module):
    def forward(self, x):
        return nn.functional.interpolate(x, size=(4, 4), mode="bilinear", antialias=True)


class Wide(nn.Module):
    def forward(self, x):
        return (x.double() * 2).float()


class HomeMadeNorm(nn.Module):
    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)


class WithHomeMadeNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = HomeMadeNorm()

    def forward(self, x):
        return self.norm(x * 2)


class DataDependent(nn.Module):
    def forward(self, x):
        return x * 2 if float(x.sum()) > 0 else x


@pytest.mark.parametrize(
    ("module", "words"),
    [(Antialias(), "Resize"), (Wide(), "float64"), (WithHomeMadeNorm(), "the norm norm"), (DataDependent(), "torch.onnx.export failed")],
    ids=["antialias", "float64", "decomposed norm", "data-dependent"],
)
def test_what_cannot_be_compiled_later_is_refused_now(module, words, tmp_path):
    shape = (3, 8, 8)
    out = (3, 4, 4) if isinstance(module, Antialias) else shape
    with pytest.raises(BuildFailedError, match=words) as caught:
        export_graph(_stage(module, shape, out), tmp_path)
    assert "stage part" in str(caught.value)


class Enormous(nn.Module):
    def forward(self, x):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 99999999999 bytes")


def test_memory_that_runs_out_while_tracing_is_no_fault_of_the_network(tmp_path):
    with pytest.raises(OutOfMemoryError, match="stage part: no memory is left"):
        export_graph(_stage(Enormous(), (3, 8, 8), (3, 8, 8)), tmp_path)


def test_a_wrong_spec_is_refused(tmp_path):
    with pytest.raises(BuildFailedError, match=r"wanted: y float32 \[batch, 5\]"):
        export_graph(_stage(nn.Linear(4, 6), (4,), (5,)), tmp_path)


def test_training_mode_and_other_free_dimensions_are_wrong_arguments(tmp_path):
    stage = _stage(nn.Linear(4, 4), (4,), (4,))
    stage.module.train()
    with pytest.raises(ValueError, match="training mode"):
        export_graph(stage, tmp_path)
    stage.module.eval()
    free = TensorSpec("x", "float32", ("batch", "length", 4))
    with pytest.raises(ValueError, match="batch"):
        export_graph(Stage(StageSpec("part", (free,), stage.spec.outputs), stage.module), tmp_path)
