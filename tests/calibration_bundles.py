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

    from fathom.export.plan_file import file_facts
    from fathom.runtime.manifest import BundleManifest, BundleStage, NetworkFacts
    from fathom.runtime.manifest_json import manifest_bytes
    from fathom.runtime.spec import StageSpec

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

    from fathom.runtime.spec import TensorSpec

    tensor = value.type.tensor_type
    sizes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, sizes)


def write_fastdepth(folder):
    """FastDepth as a bundle with its own evaluation's preprocessing."""
    import onnx
    from onnx import version_converter

    from fathom.runtime.contract import Contract, Crop, ImageInput, OutputContract, Protocol, Resize

    model = version_converter.convert_version(onnx.load(FASTDEPTH), 18)
    model.graph.name = "fastdepth"
    steps = (Resize(250, 0, "bilinear", 304), Crop(228, 304, "center"), Resize(224, 224, "bilinear"))
    protocol = Protocol("fastdepth", steps, (0,), (), False, "Wofk et al. 2019")
    image = ImageInput("0", (224, 224), (224, 224), (0.0,) * 3, (1.0,) * 3)
    return write_bundle(folder, [model], Contract(image, OutputContract("350", "metric", "m", 0.1, 10.0, "far", "bilinear"), (protocol,)))
