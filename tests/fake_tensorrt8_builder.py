"""The building half of ``fake_tensorrt`` in the clothes of TensorRT 8.5: a parser that reads what its table lists, weak typing, an inspector.

Layers come as the real parser makes them: constants, helpers without a name, and one layer a node, with the node's name. A layer gets the precision
that was asked for, FP32 where nothing was, and what ``trt.stubborn`` (name -> ``FP32``, ``FP16``) says in spite of it.
"""

import enum
import json

import fake_tensorrt
import onnx
from onnx import TensorProto, helper

from fathom.export.lowering.operator_checks import operator_table
from fathom.export.lowering.plugin_checks import PLUGINS
from fathom.runtime.artefact.spec import StageSpec, TensorSpec

LAYERS = [
    "CONVOLUTION",
    "DECONVOLUTION",
    "MATRIX_MULTIPLY",
    "EINSUM",
    "CONSTANT",
    "SHAPE",
    "QUANTIZE",
    "DEQUANTIZE",
    "ASSERTION",
    "SHUFFLE",
    "IDENTITY",
    "ELEMENTWISE",
    "PLUGIN_V2",
]
KINDS = {
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "Einsum": "EINSUM",
    "Shape": "SHAPE",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Cast": "IDENTITY",
}
TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.INT64: "INT32",
    TensorProto.INT32: "INT32",
    TensorProto.BOOL: "BOOL",
    TensorProto.INT8: "INT8",
}
WORDS = {
    "FLOAT": "Row major linear FP32",
    "HALF": "Channel major FP16 format where channel % 8 == 0",
    "INT8": "Thirty-two wide channel vectorized row major Int8 format",
}


class Tensor:
    def __init__(self, name, dtype, shape, output=False):
        self.name, self.dtype, self.shape, self.is_network_output, self.is_shape_tensor = name, dtype, tuple(shape), output, False


class Layer:
    def __init__(self, name, kind, outputs, node=None):
        self.name, self.type, self.node, self._outputs, self.num_outputs = name, kind, node, outputs, len(outputs)
        self.precision, self.asked = None, {}

    def get_output(self, place):
        return self._outputs[place]

    def set_output_type(self, place, dtype):
        self.asked[place] = dtype

    precision_is_set = property(lambda self: self.precision is not None)

    def reset_precision(self):
        self.precision = None

    def output_type_is_set(self, place):
        return place in self.asked

    def reset_output_type(self, place):
        del self.asked[place]


def add_builder(trt, version="8.5.2.2"):
    """Give a fake package (``fake_tensorrt.module``) everything that a build asks for; ``trt.built`` keeps the networks."""
    trt.built, trt.stubborn, trt.silent = [], {}, set()
    trt.BuilderFlag = enum.Enum("BuilderFlag", ["FP16", "INT8", "TF32", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"])
    trt.TacticSource = enum.IntEnum("TacticSource", ["CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"], start=0)
    trt.LayerType = enum.Enum("LayerType", LAYERS)
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"], start=0)
    trt.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED", "NONE"])
    trt.LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])

    class Network:
        def __init__(self):
            self.layers, self.inputs, self.outputs = [], [], []

        num_layers = property(lambda self: len(self.layers))
        num_inputs = property(lambda self: len(self.inputs))
        num_outputs = property(lambda self: len(self.outputs))

        def get_layer(self, index):
            return self.layers[index]

        def get_input(self, index):
            return self.inputs[index]

        def get_output(self, index):
            return self.outputs[index]

    class OnnxParser:
        def __init__(self, network, logger):
            self.network, self.errors = network, []

        num_errors = property(lambda self: len(self.errors))

        def get_error(self, index):
            return self.errors[index]

        def parse_from_file(self, path):
            model = onnx.load(path)
            assert model.opset_import[0].version <= 17, "opset"
            table = operator_table(version[:3])
            values = {v.name: v.type.tensor_type for v in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
            ends = {value.name for value in model.graph.output}
            network = self.network
            network.model = model

            def tensor(name):
                known = values[name]
                shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in known.shape.dim]
                return Tensor(name, trt.DataType[TYPES[known.elem_type]], shape, name in ends)

            network.inputs = [tensor(value.name) for value in model.graph.input]
            for init in model.graph.initializer:
                shape = tuple(init.dims)
                network.layers.append(Layer(init.name, trt.LayerType.CONSTANT, [Tensor(init.name, trt.DataType.FLOAT, shape)]))
            for place, node in enumerate(model.graph.node):
                if plugin := node.op_type not in table.operators:  # the domain of a node is not looked at
                    if not trt.registry.libraries or node.op_type not in PLUGINS:
                        self.errors.append(ParserError(place, f"No importer registered for op: {node.op_type}"))
                        return False
                    assert {a.name: a.type for a in node.attribute}.items() <= PLUGINS[node.op_type].fields.items()
                outputs = [tensor(name) for name in node.output]
                for one in outputs:
                    one.is_shape_tensor = node.op_type == "Shape"
                if node.op_type in ("Add", "Mul", "Sub", "Div"):
                    helper_name = f"(Unnamed Layer* {len(network.layers)}) [Shuffle]"
                    network.layers.append(Layer(helper_name, trt.LayerType.SHUFFLE, [Tensor(f"{helper_name}_output", outputs[0].dtype, (1,))]))
                kind = "PLUGIN_V2" if plugin else KINDS.get(node.op_type, "ELEMENTWISE")
                network.layers.append(Layer(node.name, trt.LayerType[kind], outputs, node))
            made = {one.name: one for layer in network.layers for one in layer._outputs}
            network.outputs = [made[value.name] for value in model.graph.output]
            return True

    class ParserError:
        def __init__(self, place, words):
            self.place, self.words = place, words

        def node(self):
            return self.place

        def desc(self):
            return self.words

        def code(self):
            return "UNSUPPORTED_NODE"

    class TimingCache:
        def __init__(self, raw):
            self.known = set(raw.decode().split()[1:])

        def serialize(self):
            return " ".join(["timing", *sorted(self.known)]).encode()

    trt.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM"])
    trt.measured = 0  # layers that were not in the timing cache

    class Config:
        def __init__(self):
            self.flags, self.profiles, self.sources = {trt.BuilderFlag.TF32}, [], 0b11111
            self.pools, self.cache = {}, None

        def set_memory_pool_limit(self, pool, nbytes):
            self.pools[pool] = nbytes

        def create_timing_cache(self, raw):
            return TimingCache(raw) if raw == b"" or raw.startswith(b"timing") else None

        def set_timing_cache(self, cache, ignore_mismatch):
            assert ignore_mismatch is False
            self.cache = cache
            return True

        def get_timing_cache(self):
            return self.cache

        def set_flag(self, flag):
            self.flags.add(flag)

        def clear_flag(self, flag):
            self.flags.discard(flag)

        def get_tactic_sources(self):
            return self.sources

        def set_tactic_sources(self, sources):
            self.sources = sources
            return True

        def add_optimization_profile(self, profile):
            self.profiles.append(profile)
            return len(self.profiles) - 1

    class Profile(dict):
        def set_shape(self, name, low, opt, high):
            self[name] = (low, opt, high)

    class Memory(bytes):
        nbytes = property(len)

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            assert flags == 1 << trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
            return Network()

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            trt.built.append((network, config))
            names = {layer.name.replace(" ", "_") for layer in network.layers}
            trt.measured += len(names - config.cache.known)
            config.cache.known |= names
            if words := trt.fail.pop("build", None):
                self.logger.log(trt.ILogger.ERROR, words)
                return None
            free = [tensor for tensor in network.inputs if -1 in tensor.shape]
            if free:
                ((low, opt, high),) = {tuple(shape[0] for shape in config.profiles[0][tensor.name]) for tensor in free}
            else:
                low = opt = high = network.inputs[0].shape[0]
            spec = StageSpec("s", *(tuple(spec_of(tensor, side) for tensor in side) for side in (network.inputs, network.outputs)))
            graph = with_half_boundaries(network).SerializeToString()
            information = json.dumps({"Layers": describe(trt, network, config), "Bindings": []})
            return Memory(fake_tensorrt.engine_bytes(spec, graph, version, (low, opt, high), lies={"information": information}))

    trt.OnnxParser, trt.Builder = OnnxParser, Builder
    return trt


def spec_of(tensor, side):
    names = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "BOOL": "bool"}
    return TensorSpec(tensor.name, names[tensor.dtype.name], ("batch", *tensor.shape[1:]))


def with_half_boundaries(network):
    """The graph that ONNX Runtime will run, with casts where the engine takes or makes FP16."""
    model = onnx.ModelProto.FromString(network.model.SerializeToString())
    halves = {tensor.name for tensor in [*network.inputs, *network.outputs] if tensor.dtype.name == "HALF"}
    nodes, first, last = list(model.graph.node), [], []
    for value in [*model.graph.input, *model.graph.output]:
        if value.name not in halves:
            continue
        outside, inner = any(value.name == i.name for i in model.graph.input), f"{value.name}:wide"
        for node in nodes:
            for side in (node.input, node.output):
                for place, name in enumerate(side):
                    if name == value.name:
                        side[place] = inner
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
        names = ([value.name], [inner]) if outside else ([inner], [value.name])
        (first if outside else last).append(helper.make_node("Cast", *names, to=TensorProto.FLOAT if outside else TensorProto.FLOAT16))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in [*first, *nodes, *last]]
    del model.graph.node[:]
    del model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return model


def describe(trt, network, config):
    """What the inspector says: constants and shapes are gone, two elementwise layers in a row are one."""
    dequantised = {name for layer in network.layers if layer.node is not None and layer.node.op_type == "DequantizeLinear" for name in layer.node.output}
    told = []
    for layer in network.layers:
        if layer.node is None or layer.type.name in ("SHAPE", "CONSTANT") or layer.name in trt.silent:
            continue
        heard = config.flags & {trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS, trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS}
        low = layer.precision.name if layer.precision is not None and heard else "FLOAT"
        if layer.type.name == "PLUGIN_V2":  # its table of formats: the first input has the type of the outputs
            low = next((kind.name for kind in layer.asked.values()), low)
        low = trt.stubborn.get(layer.name, low)
        reads = "INT8" if layer.node.input[0] in dequantised and layer.type.name in LAYERS[:4] else low
        made = trt.stubborn.get(layer.name) or (layer.asked[0].name if 0 in layer.asked else "FLOAT")
        made = layer.get_output(0).dtype.name if layer.get_output(0).is_network_output else made
        sides = [[{"Name": name, "Format/Datatype": WORDS.get(kind, "Int32")}] for name, kind in ((layer.node.input[0], reads), (layer.node.output[0], made))]
        told.append({"Name": layer.name, "LayerType": layer.type.name, "Inputs": sides[0], "Outputs": sides[1]})
    joined = []
    for layer in told:
        if joined and joined[-1]["Outputs"] == layer["Inputs"] and layer["LayerType"] == joined[-1]["LayerType"] == "ELEMENTWISE" and len(joined) % 3:
            joined[-1] = {**layer, "Name": f"PWN({joined[-1]['Name']}, {layer['Name']})", "Inputs": joined[-1]["Inputs"]}
        else:
            joined.append(layer)
    return [*joined, {"Name": "Reformatting CopyNode for Input Tensor 0 to x", "Inputs": [], "Outputs": []}]
