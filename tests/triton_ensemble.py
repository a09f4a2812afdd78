"""Triton's ensemble scheduler in small: what a repository's configurations say, carried out by ONNX Runtime.

It follows ensemble_models.md of Triton's server and nothing of ours: a step runs as soon as all it takes is there, tensors are known by the values of the
maps, models are called by the keys, and every tensor is held against the configuration that it enters or leaves.
"""

from pathlib import Path

import numpy as np

TYPES = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64, "TYPE_INT32": np.int32, "TYPE_UINT8": np.uint8, "TYPE_BOOL": np.bool_}


class Served:
    """One model of a repository that ONNX Runtime or the scheduler executes."""

    def __init__(self, repository, name):
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

        self.repository, self.name, self.type_name = Path(repository), name, DataType.Name
        self.config = text_format.Parse((self.repository / name / "config.pbtxt").read_text(), ModelConfig())
        assert self.config.name == name
        self.steps = [(step, Served(repository, step.model_name)) for step in self.config.ensemble_scheduling.step]
        if not self.steps:
            import onnxruntime

            assert self.config.backend == "onnxruntime"
            path, options = self.repository / name / "1" / "model.onnx", onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(str(path / "model.onnx" if path.is_dir() else path), options, providers=["CPUExecutionProvider"])

    def __call__(self, tensors):
        self._check(self.config.input, tensors)
        made = self._schedule(dict(tensors)) if self.steps else self._run(tensors)
        made = {tensor.name: made[tensor.name] for tensor in self.config.output}
        self._check(self.config.output, made)
        return made

    def _run(self, tensors):
        names = [output.name for output in self.config.output]
        return dict(zip(names, self.session.run(names, dict(tensors)), strict=True))

    def _schedule(self, known):
        waiting = list(self.steps)
        while waiting:
            ready = next(((step, model) for step, model in waiting if set(step.input_map.values()) <= set(known)), None)
            assert ready, f"{self.name}: nothing is ready, and {[step.model_name for step, _ in waiting]} wait"
            waiting.remove(ready)
            step, model = ready
            made = model({key: known[value] for key, value in step.input_map.items()})
            for key, value in step.output_map.items():
                assert value not in known
                known[value] = made[key]
        return known

    def _check(self, described, tensors):
        assert {tensor.name for tensor in described} == set(tensors), self.name
        for tensor in described:
            value, shape = tensors[tensor.name], tensors[tensor.name].shape
            if self.config.max_batch_size:
                assert 1 <= shape[0] <= self.config.max_batch_size, (self.name, tensor.name, shape)
                shape = shape[1:]
            assert value.dtype == TYPES[self.type_name(tensor.data_type)], (self.name, tensor.name)
            assert len(shape) == len(tensor.dims) and all(want in (-1, got) for got, want in zip(shape, tensor.dims, strict=True)), (self.name, tensor.name)


def ensemble_depth(repository, name, artefact, photo, protocol=None, inputs=None):
    """A photo's map by way of a repository's ensemble: float32 [H, W], NaN where there is no depth.

    Args:
        artefact: the plan or bundle whose contract says how the photo becomes tensors; its engines are not used.
        inputs: callable(image tensor) -> the other tensors, for networks that take words.
    """
    from fathom.runtime.photo.postprocess import Assembly
    from fathom.runtime.photo.preprocess import network_inputs, place_steps, windows_of

    contract = artefact.manifest.contract
    chosen = next(known for known in contract.protocols if protocol in (None, known.name))
    served, assembly = Served(repository, name), Assembly(contract, chosen, place_steps(chosen.steps, *photo.shape[:2]), photo.shape[:2])
    for window, tensor in zip(windows_of(chosen), network_inputs(photo, contract, chosen, 1), strict=True):
        (made,) = served({contract.input.tensor: tensor, **(inputs(tensor) if inputs else {})}).values()
        assembly.add(window, made[0])
    values, valid = assembly.finish()
    if contract.output.kind == "metric":
        valid &= values > 0
    return np.where(valid, values, np.float32(np.nan))
