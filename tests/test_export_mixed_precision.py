"""Any mixture of precisions over the regions of a stage must give a valid graph that holds what was asked for: the search may want any."""

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from fathom.calibration.artefact import model_fingerprint
from fathom.calibration.graph.chain import prepare
from fathom.calibration.graph.stage_graph import StageGraph
from fathom.calibration.precision.precision_plan import Choice, PrecisionPlan, RegionPlan
from fathom.calibration.precision.regions import find_regions
from fathom.calibration.precision.rounding import stays_fp32
from fathom.calibration.quantisation.quantize import activation_inputs
from fathom.calibration.ranges.table import CalibrationTable, TensorRange
from fathom.export.precision.calibrated import Calibration, planned_boundaries, type_by_plan
from fathom.runtime.artefact.bundle import BundleDirectory

CHOICES = [Choice("fp32"), Choice("bf16"), Choice("fp16"), Choice("int8", "max")]
TYPES = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def typed_mixture(path, folder, choose):
    """Type every stage with ``choose()`` for every region; yields (choices by node, nodes that may be INT8, nodes that stay FP32, typed graph)."""
    bundle = BundleDirectory.open(path)
    model, regions, ranges, facts = model_fingerprint(bundle.manifest), [], {}, {}
    for stage in bundle.manifest.stages:
        name, graph = stage.spec.name, StageGraph.load(bundle.path(stage.file))
        prepare(graph)
        inputs = activation_inputs(graph)
        stays = stays_fp32(graph, stage.fp32_islands)
        for region in find_regions(name, graph):
            regions.append(RegionPlan(name, region.path, region.kind, region.nodes, choose(), "a test", {}))
        ranges[name] = {node.input[p]: TensorRange(1.0, "max", 1.0) for node in graph.model.graph.node for p in inputs.get(node.name, ())}
        facts[name] = (set(inputs), stays)
    calibration = Calibration(CalibrationTable(model, {}, "", 1, 1, (), ranges), PrecisionPlan(model, {}, "", {}, tuple(regions), (), {}, (), ()))
    for stage in bundle.manifest.stages:
        name, target = stage.spec.name, folder / f"{stage.spec.name}.onnx"
        types = planned_boundaries(bundle, calibration)
        type_by_plan(bundle, stage, calibration, target, precision="int8", boundaries=types)
        onnx.checker.check_model(str(target))
        chosen = {node: region.choice.precision for region in calibration.plan.of_stage(name) for node in region.nodes}
        yield chosen, *facts[name], onnx.load(str(target), load_external_data=False)


def check_types(model, types):
    """Every operator in types that ONNX allows it, equal where it wants them equal; a convolution may be BF16 before ONNX says so."""
    for node in model.graph.node:
        schema = onnx.defs.get_schema(node.op_type, 20)
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        bound = {}
        for place, name in enumerate(node.input):
            if name not in types:
                continue
            kind = schema.inputs[min(place, len(schema.inputs) - 1)].type_str
            half = node.op_type == "Conv" and types[name] == TensorProto.BFLOAT16
            text = f"tensor({'float16' if half else TensorProto.DataType.Name(types[name]).lower()})"
            assert text in allowed.get(kind, [kind]), (node.name, node.op_type, name, text)
            assert bound.setdefault(kind, text) == text, (node.name, node.op_type, name, text)


def check(mixture):
    seen = set()
    for chosen, able, stays, model in mixture:
        makers = {name: node for node in model.graph.node for name in node.output}
        types = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
        types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        check_types(model, types)
        for node in model.graph.node:
            if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm") or node.name in stays:
                continue
            dequantised = [makers[name].op_type == "DequantizeLinear" for name in node.input[:2] if name in makers]
            wanted = "fp32" if chosen[node.name] == "bf16" and node.op_type == "ConvTranspose" else chosen[node.name]
            if wanted == "int8" and node.name in able:
                assert dequantised == [True, True], node.name
                wanted = "fp16"
            else:
                assert not any(dequantised), node.name
                wanted = "fp16" if wanted == "int8" else wanted
            assert {TYPES[types[name]] for name in node.input[:2] if name in types} <= {wanted}, node.name
            seen.add(chosen[node.name])
    return seen


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_mixture_of_a_small_network_is_valid(small_bundle, tmp_path_factory, data):
    check(typed_mixture(small_bundle, tmp_path_factory.mktemp("mixed"), lambda: data.draw(st.sampled_from(CHOICES))))


@pytest.mark.parametrize("name", ["evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny", "depthblip2-tiny", "llm-mde-tiny"])
def test_a_mixture_of_every_network_is_valid(tiny_bundle, tmp_path, name):
    import random

    draw = random.Random(name)
    assert len(check(typed_mixture(tiny_bundle(name), tmp_path, lambda: draw.choice(CHOICES)))) > 1
