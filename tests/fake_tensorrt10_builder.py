"""The building half of ``fake_tensorrt`` in the clothes of TensorRT 10: typed graphs, an inspector, and a record of what is alive when.

The inspector tells of layers with the keys and words of the real one (seen in NVIDIA/TensorRT#4397): products with their softmax between them become one
layer ``_gemm_mha_v2`` unless ``trt.fuses`` is off.
"""

import enum
import gc
import json
import types
import weakref

import fake_tensorrt
import onnx
from fake_tensorrt8_builder import KINDS, Layer, Tensor, spec_of
from onnx import TensorProto

from fathom.runtime.artefact.spec import StageSpec

TYPES = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.INT64: "INT64", TensorProto.INT32: "INT32", TensorProto.BOOL: "BOOL"}
WORDS = {"FLOAT": "Float", "HALF": "Half", "INT64": "Int64", "INT32": "Int32", "BOOL": "Bool"}
SIZES = {"Float": 4, "Half": 2, "Int64": 8, "Int32": 4, "Bool": 1}


def add_builder(trt, version):
    """Give a fake package what a build asks for.

    ``trt.made`` holds weak references to every parser, network, builder and configuration by kind; ``trt.alive`` which kinds were alive at each
    compilation and at each loading of an engine.
    """
    trt.made, trt.alive, trt.fuses, trt.lie = [], [], True, None

    def note(what):
        gc.collect()
        trt.alive.append((what, {type(one).__name__ for made in trt.made if (one := made()) is not None}))

    class Noted:
        def __init__(self, *arguments):
            trt.made.append(weakref.ref(self))

    trt.BuilderFlag, trt.OnnxParserFlag = enum.Enum("BuilderFlag", ["TF32"]), enum.Enum("OnnxParserFlag", ["NATIVE_INSTANCENORM"])
    trt.LayerType = enum.Enum("LayerType", sorted({*KINDS.values(), "ELEMENTWISE"}))
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", ["EXPLICIT_BATCH", "STRONGLY_TYPED"], start=0)
    trt.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["DETAILED"])
    trt.LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    trt.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})

    class Network(Noted):
        num_layers = property(lambda self: len(self.layers))
        num_inputs = property(lambda self: len(self.inputs))

        def get_layer(self, index):
            return self.layers[index]

        def get_input(self, index):
            return self.inputs[index]

    class OnnxParser(Noted):
        num_errors = 0

        def __init__(self, network, logger):
            super().__init__()
            self.network = network

        def set_flag(self, flag):
            assert flag == trt.OnnxParserFlag.NATIVE_INSTANCENORM

        def parse_from_file(self, path):
            model = self.network.model = onnx.load(path)
            if any(node.domain == "fathom" for node in model.graph.node):
                assert trt.registry.libraries and not model.functions, "the parser asks the registry for nodes without a body"
            values = {v.name: v.type.tensor_type for v in [*model.graph.value_info, *model.graph.input, *model.graph.output]}

            def tensor(name):
                shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in values[name].shape.dim]
                return Tensor(name, trt.DataType[TYPES[values[name].elem_type]], shape)

            made = {}
            self.network.inputs = [made.setdefault(value.name, tensor(value.name)) for value in model.graph.input]
            self.network.layers = []
            for node in model.graph.node:
                outputs = [made.setdefault(name, tensor(name)) for name in node.output if name in values]
                self.network.layers.append(Layer(node.name, trt.LayerType[KINDS.get(node.op_type, "ELEMENTWISE")], outputs, node))
            self.network.outputs = [made[value.name] for value in model.graph.output]
            return True

    class Config(Noted):
        cache = None

        def clear_flag(self, flag):
            assert flag == trt.BuilderFlag.TF32

        def create_timing_cache(self, raw):
            return types.SimpleNamespace(serialize=lambda: b"timing")

        def set_timing_cache(self, cache, ignore_mismatch):
            self.cache = cache
            return True

        def get_timing_cache(self):
            return self.cache

    class Memory(bytes):
        nbytes = property(len)

    class Builder(Noted):
        def create_network(self, flags):
            assert flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return Network()

        def create_builder_config(self):
            return Config()

        def build_serialized_network(self, network, config):
            note("compile")
            config.progress_monitor.phase_start("compiling", None, 2)
            assert config.progress_monitor.step_complete("compiling", 0)
            spec = StageSpec("s", *(tuple(spec_of(tensor, side) for tensor in side) for side in (network.inputs, network.outputs)))
            batch = network.inputs[0].shape[0]
            information = json.dumps({"Layers": trt.lie or describe(network, trt.fuses), "Bindings": []})
            return Memory(fake_tensorrt.engine_bytes(spec, network.model.SerializeToString(), version, (batch,) * 3, lies={"information": information}))

    load = trt.Runtime.deserialize_cuda_engine

    def noted_load(self, raw):
        note("load")
        return load(self, raw)

    trt.Runtime.deserialize_cuda_engine = noted_load
    trt.OnnxParser, trt.Builder = OnnxParser, Builder
    return trt


def describe(network, fuses):
    """What the inspector says of a network: a layer for every node that computes; attention is one, if the compiler fuses."""
    model = network.model
    values = {v.name: v.type.tensor_type for v in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
    makers, takers = {name: node for node in model.graph.node for name in node.output}, {}
    for node in model.graph.node:
        for name in node.input:
            takers.setdefault(name, node)

    def tensors(names):
        told = []
        for name in names:
            if name in values:
                dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in values[name].shape.dim]
                told.append({"Name": name, "Dimensions": dims, "Format/Datatype": WORDS[TYPES[values[name].elem_type]]})
        return told

    def layer(name, kind, tactic, nodes):
        inside = {output for node in nodes for output in node.output}
        sides = [name for node in nodes for name in node.input if name not in inside], list(nodes[-1].output)
        metadata = "".join(f"[ONNX Layer: {node.name}]" for node in nodes)
        inputs, outputs = map(tensors, sides)
        return {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": outputs, "TacticName": tactic, "StreamId": 0, "Metadata": metadata}

    regions = {}
    for node in model.graph.node if fuses else ():
        if node.op_type == "Softmax":
            before, after = node, node
            while before.op_type in ("Softmax", "Mul", "Cast", "Add"):
                before = makers.get(before.input[0], before)
                if before.op_type not in ("Softmax", "Mul", "Cast", "Add", "MatMul"):
                    break
            while after.op_type in ("Softmax", "Cast"):
                after = takers.get(after.output[0], node)
            if before.op_type == after.op_type == "MatMul":
                regions[node.name] = (before, node, after)
    fused = {node.name: key for key, nodes in regions.items() for node in nodes}
    told = []
    for place, node in enumerate(model.graph.node):
        if node.name in regions:
            told.append(layer(f"_gemm_mha_v2_myl0_{place}", "kgen", "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a", list(regions[node.name])))
        elif node.name not in fused and node.op_type not in ("Shape", "Constant"):
            told.append(layer(f"{node.name}_myl0_{place}", "gemm" if node.op_type in ("MatMul", "Gemm") else "kgen", "sm80_xmma_gemm_f16f16", [node]))
    return told
