"""A stand-in for Triton's onnxruntime backend, which is not in the wheel of nvidia-pytriton: a Python-based backend that runs model.onnx.

Configurations, ensembles, warm-up and batching are the real server's own; only the sessions are opened by this file. It joins the requests of one call to
one batch, as the real backend does.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        import onnxruntime

        config = json.loads(args["model_config"])
        self.inputs, self.outputs = ([tensor["name"] for tensor in config[side]] for side in ("input", "output"))
        path, options = Path(args["model_repository"]) / args["model_version"] / "model.onnx", onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path / "model.onnx" if path.is_dir() else path), options, providers=["CPUExecutionProvider"])
        self.batches = config["max_batch_size"] > 0

    def execute(self, requests):
        feeds = [{name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs} for request in requests]
        joined = [{name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}] if self.batches else feeds
        made = [self.session.run(self.outputs, feed) for feed in joined]
        if self.batches:
            ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])[:-1]
            made = list(zip(*(np.split(values, ends) for values in made[0]), strict=True))
        return [pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in zip(self.outputs, values, strict=True)]) for values in made]
