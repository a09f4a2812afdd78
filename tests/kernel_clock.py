"""How long a typed graph takes on a stand-in GPU: kernel by kernel, from the element types in the graph itself, not from any plan.

Every kernel pays a launch. A matrix product or convolution whose activation and weight come from DequantizeLinear runs on INT8 cores
and reads bytes; one on FP16 tensors runs on FP16 cores. A QuantizeLinear behind a kernel that can round is part of it, any other is a
kernel that reads FP16 and writes INT8. What an INT8 convolution wrote for one in FP16 is laid out anew by another kernel.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

LAUNCH_MS = 2e-3
RATE = {"int8": 120e9, TensorProto.FLOAT16: 30e9, TensorProto.FLOAT: 10e9}  # multiply-adds per millisecond, of no real card
NBYTES_PER_MS = 700e6
WEIGHTED = ("Conv", "MatMul", "Gemm", "ConvTranspose")
POINTWISE = ("Add", "Mul", "Sub", "Div", "Relu", "Sigmoid", "Cast", "Reshape", "Erf")


def graph_ms(graph: bytes) -> float:
    """Milliseconds of one run."""
    model = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(graph), data_prop=True)
    facts = {v.name: v.type.tensor_type for v in [*model.graph.input, *model.graph.output, *model.graph.value_info]}
    constants = {t.name: t for t in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    readers = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def kind(name):
        return constants[name].data_type if name in constants else facts[name].elem_type

    def size(name):
        return int(np.prod(constants[name].dims)) if name in constants else int(np.prod([d.dim_value or 1 for d in facts[name].shape.dim]))

    def nbytes(name):
        return size(name) * np.dtype(helper.tensor_dtype_to_np_dtype(kind(name))).itemsize

    def dequantized(name):
        return name in maker and maker[name].op_type == "DequantizeLinear"

    def stored(name):
        """Bytes that a kernel really reads of an input: those before DequantizeLinear."""
        return nbytes(maker[name].input[0]) if dequantized(name) else nbytes(name)

    def lands(name):
        """Bytes that a kernel writes: INT8 if, behind pointwise work, nothing but QuantizeLinear reads it."""
        while len(readers.get(name, [])) == 1 and readers[name][0].op_type in POINTWISE:
            name = readers[name][0].output[0]
        quantised = readers.get(name) and all(reader.op_type == "QuantizeLinear" for reader in readers[name])
        return size(name) if quantised else nbytes(name)

    def from_int8_convolution(name):
        """Whether a tensor lies as an INT8 convolution writes it, which one in FP16 cannot read."""
        while name in maker and maker[name].op_type in POINTWISE:
            name = maker[name].input[0]
        return name in maker and maker[name].op_type == "Conv" and dequantized(maker[name].input[0])

    total = 0.0
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            int8 = all(dequantized(name) for name in node.input[:2])
            weight = constants[maker[node.input[1]].input[0]] if dequantized(node.input[1]) else constants[node.input[1]]
            inner = int(np.prod(weight.dims[1:])) if node.op_type == "Conv" else weight.dims[0]
            work = size(node.output[0]) * inner / RATE["int8" if int8 else kind(node.input[0])]
            total += 0 if int8 or not from_int8_convolution(node.input[0]) else LAUNCH_MS + 2 * nbytes(node.input[0]) / NBYTES_PER_MS
            total += LAUNCH_MS + max(work, (sum(map(stored, node.input[:2])) + lands(node.output[0])) / NBYTES_PER_MS)
        elif node.op_type == "QuantizeLinear":
            source = node.input[0]
            while source in maker and maker[source].op_type in POINTWISE:
                source = maker[source].input[0]
            before = maker.get(source)
            rounds = before is not None and (before.op_type == "LayerNormalization" or (before.op_type in WEIGHTED and dequantized(before.input[0])))
            total += 0 if rounds or node.input[0] in constants else LAUNCH_MS + (2 * size(node.input[0]) + size(node.input[0])) / NBYTES_PER_MS
        elif node.op_type not in (*POINTWISE, "DequantizeLinear", "Constant"):
            total += LAUNCH_MS + (sum(nbytes(n) for n in node.input if n not in constants) + sum(map(nbytes, node.output))) / NBYTES_PER_MS
    return total
