"""Bundles for the calibration tests: any chain of ONNX graphs as a bundle, and FastDepth with its official weights as one."""

import os
from pathlib import Path

import fathom

SHARED = Path(os.environ.get("FATHOM_SHARED") or Path(fathom.__file__).parent.parent / "shared")
FASTDEPTH, PAIRS = SHARED / "weights" / "fastdepth_7.onnx", SHARED / "data"


def have_fastdepth():
    """Whether the weights and the real pairs are here."""
    return FASTDEPTH.is_file() and (PAIRS / "manifest.json").is_file()


def write_bundle(folder, models, contract, weights="trained", islands=None):
    """Write ONNX models (in running order, named by their graphs) with a contract as a bundle into ``folder``; returns it."""
    import onnx

    from fathom.export.plan.plan_file import file_facts
    from fathom.runtime.artefact.manifest import BundleManifest, BundleStage, NetworkFacts
    from fathom.runtime.artefact.manifest_json import manifest_bytes
    from fathom.runtime.artefact.spec import StageSpec

    (folder / "stages").mkdir(parents=True)
    stages, files = [], {}
    for model in models:
        name = model.graph.name
        file = f"stages/{name}.onnx"
        weights_names = {tensor.name for tensor in model.graph.initializer}
        inputs, outputs = ([_spec(v) for v in side if v.name not in weights_names] for side in (model.graph.input, model.graph.output))
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        onnx.save(copy, folder / file, save_as_external_data=True, location=f"{name}.onnx.data", size_threshold=1024)
        for path in (file, f"{file}.data"):
            if (folder / path).is_file():
                files[path] = file_facts(folder / path)
        stages.append(BundleStage(StageSpec(name, tuple(inputs), tuple(outputs)), file, "fp32", (islands or {}).get(name, ())))
    network = NetworkFacts("test", "", {}, 0, {"kind": weights, "file": "", "sha256": "", "licence": "", "warnings": []})
    manifest = BundleManifest(network, contract, tuple(stages), files, {"fathom": "0"})
    (folder / "bundle.json").write_bytes(manifest_bytes(manifest))
    return folder


def _spec(value):
    from onnx import helper

    from fathom.runtime.artefact.spec import TensorSpec

    tensor = value.type.tensor_type
    sizes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, sizes)


def write_fastdepth(folder):
    """FastDepth as a bundle with its own evaluation's preprocessing."""
    import onnx
    from onnx import version_converter

    from fathom.runtime.artefact.contract import Contract, Crop, ImageInput, OutputContract, Protocol, Resize

    model = version_converter.convert_version(onnx.load(FASTDEPTH), 18)
    model.graph.name = "fastdepth"
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)
    model.ir_version = 9
    steps = (Resize(250, 0, "bilinear", 304), Crop(228, 304, "center"), Resize(224, 224, "bilinear"))
    protocol = Protocol("fastdepth", steps, (0,), (), False, "Wofk et al. 2019")
    image = ImageInput("0", (224, 224), (224, 224), (0.0,) * 3, (1.0,) * 3)
    return write_bundle(folder, [model], Contract(image, OutputContract("350", "metric", "m", 0.1, 10.0, "far", "bilinear"), (protocol,)))


HEIGHT, WIDTH, CHANNELS = 32, 48, 16


def small_contract():
    """A 32x48 picture in, metres out."""
    from fathom.runtime.artefact.contract import Contract, ImageInput, OutputContract, Protocol, Resize

    protocol = Protocol("single-image", (Resize(HEIGHT, WIDTH, "bilinear"),), (0,), (), False, "a test")
    output = OutputContract("depth", "metric", "m", 0.1, 10.0, "far", "bilinear")
    return Contract(ImageInput("image", (HEIGHT, WIDTH), (HEIGHT, WIDTH), (0.5,) * 3, (0.5,) * 3), output, (protocol,))


def token_models(norm_scale=1.0, outlier=1.0, poison=None, seed=0):
    """Two stages: ``encoder`` (patches, a layer norm, a feed-forward, a residual) and ``head`` (convolutions to depth in 1..5 m).

    In FP32 the depth does not depend on ``norm_scale`` or ``outlier``.

    Args:
        norm_scale: the layer norm's output is that much larger, and the weights after it smaller.
        outlier: one channel of the second linear layer's input is that much larger, and its weights smaller.
        poison: value of one weight of the head.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    c, h, w = CHANNELS, HEIGHT // 4, WIDTH // 4

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    def model(name, nodes, inputs, outputs, weights):
        graph = helper.make_graph(nodes, name, inputs, outputs, [numpy_helper.from_array(np.asarray(v, order="C"), k) for k, v in weights.items()])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    def normal(*shape):
        fan = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return (rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32)

    grow = np.ones(4 * c, np.float32)
    grow[3] = outlier
    encoder = {
        "patch.weight": normal(c, 3, 4, 4) * 3,
        "patch.bias": normal(c, 1)[:, 0],
        "to_tokens": np.array([0, c, h * w], np.int64),
        "to_picture": np.array([0, c, h, w], np.int64),
        "blocks.0.norm.weight": np.full(c, norm_scale, np.float32),
        "blocks.0.norm.bias": np.zeros(c, np.float32),
        "blocks.0.ff.0.weight": (normal(c, 4 * c) * grow / norm_scale).astype(np.float32),
        "blocks.0.ff.0.bias": (normal(4 * c, 1)[:, 0] * grow).astype(np.float32),
        "blocks.0.ff.2.weight": (normal(4 * c, c) / grow[:, None]).astype(np.float32),
        "blocks.0.ff.2.bias": normal(c, 1)[:, 0],
    }
    make = helper.make_node
    nodes = [
        make("Conv", ["image", "patch.weight", "patch.bias"], ["p"], name="patch/Conv_0", strides=[4, 4], kernel_shape=[4, 4]),
        make("Reshape", ["p", "to_tokens"], ["flat"], name="/Reshape_0"),
        make("Transpose", ["flat"], ["tokens"], name="/Transpose_0", perm=[0, 2, 1]),
        make(
            "LayerNormalization",
            ["tokens", "blocks.0.norm.weight", "blocks.0.norm.bias"],
            ["n"],
            name="blocks.0.norm/LayerNormalization_0",
            axis=-1,
            epsilon=1e-5,
        ),
        make("MatMul", ["n", "blocks.0.ff.0.weight"], ["m0"], name="blocks.0.ff.0/MatMul_0"),
        make("Add", ["m0", "blocks.0.ff.0.bias"], ["a0"], name="blocks.0.ff.0/Add_0"),
        make("Relu", ["a0"], ["r0"], name="blocks.0.ff.1/Relu_0"),
        make("MatMul", ["r0", "blocks.0.ff.2.weight"], ["m1"], name="blocks.0.ff.2/MatMul_0"),
        make("Add", ["m1", "blocks.0.ff.2.bias"], ["a1"], name="blocks.0.ff.2/Add_0"),
        make("Add", ["tokens", "a1"], ["s"], name="blocks.0/Add_0"),
        make("Transpose", ["s"], ["t"], name="/Transpose_1", perm=[0, 2, 1]),
        make("Reshape", ["t", "to_picture"], ["features"], name="/Reshape_1"),
    ]
    first = model("encoder", nodes, [value("image", 3, HEIGHT, WIDTH)], [value("features", c, h, w)], encoder)
    head = {
        "up.weight": normal(c, 8, 2, 2),
        "up.bias": normal(8, 1)[:, 0],
        "out.weight": normal(1, 8, 3, 3),
        "out.bias": np.zeros(1, np.float32),
        "one": np.float32(1),
        "four": np.float32(4),
    }
    if poison is not None:
        head["up.weight"].flat[0] = poison
    nodes = [
        make("ConvTranspose", ["features", "up.weight", "up.bias"], ["u"], name="deconv/ConvTranspose_0", strides=[2, 2], kernel_shape=[2, 2]),
        make("Relu", ["u"], ["ur"], name="deconv/Relu_0"),
        make("Conv", ["ur", "out.weight", "out.bias"], ["o"], name="out_conv/Conv_0", pads=[1] * 4, kernel_shape=[3, 3]),
        make("Sigmoid", ["o"], ["g"], name="out_conv/Sigmoid_0"),
        make("Mul", ["g", "four"], ["g4"], name="out_conv/Mul_0"),
        make("Add", ["g4", "one"], ["depth"], name="out_conv/Add_0"),
    ]
    return [first, model("head", nodes, [value("features", c, h, w)], [value("depth", 1, 2 * h, 2 * w)], head)]


def load_graph(folder, model):
    """One model as a stage graph with its weights in a file."""
    import onnx

    from fathom.calibration.graph.stage_graph import StageGraph

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{model.graph.name}.onnx"
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(copy, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=256)
    return StageGraph.load(file)
