"""The configurations of a Triton repository: one model per stage, an ensemble over them, and a photo model.

Facts of Triton (model_configuration.md, ensemble_models.md of its server repository): with ``max_batch_size`` above 0, shapes leave the batch out; in the
maps of an ensemble step the key is the model's tensor and the value the ensemble's; ensembles have neither instances nor warm-up of their own.
"""

from __future__ import annotations

from typing import Any

from ...runtime.artefact.manifest import Manifest, PlanManifest
from ...runtime.artefact.spec import StageSpec, TensorSpec, network_inputs
from ...runtime.errors import InputError, UsageError
from ...runtime.serving.photo_model import FACTS
from ...runtime.serving.photo_service import OUTPUTS
from .config_text import load_protobuf

TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "int32": "TYPE_INT32", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL"}
BACKENDS = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt"}  # ours -> Triton's; it has none for TensorRT-RTX
QUEUE_DELAY_US = 2000  # how long a request may wait for others, where a model takes several together
BUNDLE_BATCH = 8  # bundles name no greatest batch
PHOTOS = 8  # that the photo model takes at once: some are decoded and shaped while one is in the network
PREFIX = "fathom."


def max_batch(manifest: Manifest) -> int:
    """Triton's ``max_batch_size`` for the stages of this artefact: 0 where engines fix the batch.

    Raises:
        UsageError: if the engines refuse small batches, which Triton cannot promise to avoid.
    """
    if any(size != "batch" for spec in manifest.specs() for tensor in spec.inputs + spec.outputs for size in tensor.shape[:1]):
        return 0
    least, _, most = manifest.batch if isinstance(manifest, PlanManifest) else (1, 1, BUNDLE_BATCH)
    if least > 1:
        raise UsageError(f"this plan takes no fewer than {least} windows per run", wanted="a plan that takes one", fix=f"depth-build --batch 1:{least}:{most}")
    return most


def stage_config(name: str, manifest: Manifest, spec: StageSpec, facts: dict[str, str]) -> Any:
    """The model of one stage.

    Args:
        name: of the model.
        facts: parameters besides the stage's own.

    Raises:
        InputError: if a tensor has no dimension besides the batch.
    """
    config, most = load_protobuf().ModelConfig(name=name), max_batch(manifest)
    config.backend = BACKENDS[manifest.backend if isinstance(manifest, PlanManifest) else "onnxruntime"]
    config.max_batch_size = most
    for tensor in spec.inputs:
        _describe(config.input.add(), tensor, most)
    for tensor in spec.outputs:
        _describe(config.output.add(), tensor, most)
    _serve(config, manifest, most)
    warm = config.model_warmup.add(name="zeros", batch_size=1)
    for tensor in spec.inputs:
        about = warm.inputs[tensor.name]
        about.data_type, about.zero_data = load_protobuf().DataType.Value(TYPES[tensor.dtype]), True
        about.dims.extend(size if isinstance(size, int) else 1 for size in (tensor.shape[1:] if most else tensor.shape))
    _parameters(config, {**facts, "stage": spec.name})
    return config


def ensemble_config(name: str, manifest: Manifest, models: dict[str, str], facts: dict[str, str]) -> Any:
    """All stages in a row: the network's input tensors in, its output tensor out. Tensors keep the names that they have in the stages.

    Args:
        models: stage -> name of its model.
    """
    config, most = load_protobuf().ModelConfig(name=name, platform="ensemble"), max_batch(manifest)
    config.max_batch_size = most
    config.version_policy.latest.num_versions = 1
    for tensor in network_inputs(manifest.specs()).values():
        _describe(config.input.add(), tensor, most)
    output = manifest.contract.output.tensor
    made = {tensor.name: tensor for spec in manifest.specs() for tensor in spec.outputs}
    _describe(config.output.add(), made[output], most)
    wanted = {tensor.name for spec in manifest.specs() for tensor in spec.inputs} | {output}
    for spec in manifest.specs():
        step = config.ensemble_scheduling.step.add(model_name=models[spec.name], model_version=-1)
        for tensor in spec.inputs:
            step.input_map[tensor.name] = tensor.name
        for tensor in spec.outputs:
            if tensor.name in wanted:
                step.output_map[tensor.name] = tensor.name
    _parameters(config, facts)
    return config


def photo_config(name: str, manifest: Manifest, facts: dict[str, str]) -> Any:
    """Photos in, metres out: a Python model on the lean runtime, with the whole plan in its own process."""
    proto = load_protobuf()
    text, output = manifest.contract.text, manifest.contract.output
    most = max(PHOTOS, manifest.batch[2] if isinstance(manifest, PlanManifest) else 1)
    config = proto.ModelConfig(name=name, backend="python", max_batch_size=most, default_model_filename="model.py")
    for tensor, kind, dims in (("photo", "TYPE_STRING", [1]), ("pixels", "TYPE_UINT8", [-1, -1, 3]), ("camera", "TYPE_FP32", [4])):
        config.input.add(name=tensor, data_type=proto.DataType.Value(kind), dims=dims, optional=True)
    if text is not None and text.asked:
        config.input.add(name="prompt", data_type=proto.TYPE_STRING, dims=[1])
    kind = proto.TYPE_UINT8 if output.kind == "mask" else proto.TYPE_FP32
    config.output.add(name=OUTPUTS[output.kind], data_type=kind, dims=[-1, -1])
    config.output.add(name=FACTS, data_type=proto.TYPE_STRING, dims=[1])
    for tensor in config.input:
        tensor.allow_ragged_batch = True  # photos of any sizes go to the model together; it takes each request's tensors as they are
    _serve(config, manifest, most)
    if not config.dynamic_batching.preferred_batch_size:
        config.dynamic_batching.max_queue_delay_microseconds = 0  # whatever waits goes along, and nothing waits for it
    _parameters(config, facts)
    return config


def facts_of(manifest: Manifest, sha256: str) -> dict[str, str]:
    """What the network's numbers mean, as parameters that every model of a repository carries."""
    output, network, plan = manifest.contract.output, manifest.network, isinstance(manifest, PlanManifest)
    facts = {"network": network.called, "kind": output.kind, "unit": output.unit or "none", "larger_is": output.larger_is}
    facts.update({"trained_range": f"{output.near:g} to {output.far:g}", "protocol": manifest.contract.protocols[0].name, "manifest_sha256": sha256})
    facts["precision"] = manifest.computes if plan else "fp32"
    facts["built_with"] = f"{manifest.backend} {manifest.backend_version}" if plan else "bundle"
    facts["targets"] = " ".join(manifest.targets) if plan else ""
    facts["weights"] = network.weights["kind"]
    return {key: value for key, value in facts.items() if value}


def _describe(about: Any, tensor: TensorSpec, most: int) -> None:
    shape = tensor.shape[1:] if most else tensor.shape
    if not shape:
        raise InputError(f"the tensor {tensor.name} has no dimension besides the batch", wanted="at least one, for Triton")
    about.name, about.data_type = tensor.name, load_protobuf().DataType.Value(TYPES[tensor.dtype])
    about.dims.extend(size if isinstance(size, int) else -1 for size in shape)


def _serve(config: Any, manifest: Manifest, most: int) -> None:
    """Instances, batching and versions."""
    kinds = load_protobuf().ModelInstanceGroup
    gpu = isinstance(manifest, PlanManifest) and (manifest.backend != "onnxruntime" or manifest.targets == ("cuda",))
    config.instance_group.add(count=1, kind=kinds.KIND_GPU if gpu else kinds.KIND_CPU)
    config.version_policy.latest.num_versions = 1
    if most > 1:
        config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_US
        preferred = manifest.batch[1] if isinstance(manifest, PlanManifest) else 1
        if preferred > 1:
            config.dynamic_batching.preferred_batch_size.append(preferred)


def _parameters(config: Any, facts: dict[str, str]) -> None:
    for key, value in sorted(facts.items()):
        config.parameters[PREFIX + key].string_value = value
