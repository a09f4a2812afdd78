"""The small network of ``conftest`` on a real GPU without TensorRT: PyTorch on the runtime's own stream and memory.

With it, streams, graphs, arena, page-locked copies and the GPU's thread are exercised on any NVIDIA card, also where TensorRT does not run.
"""


class TorchMachine:
    """Takes the place of ``fake_cuda.Machine`` beneath ``fake_tensorrt``."""

    capability = None  # engines for any target

    def __init__(self):
        self.weights = {}

    def enter(self, call):
        """Calls are made on the real device."""

    def stream_of(self, address):
        """PyTorch's view of a stream of ours."""
        import torch

        return torch.cuda.ExternalStream(address)

    def send(self, stream, work):
        """Run now, in stream order."""
        import torch

        with torch.cuda.stream(stream), torch.inference_mode():
            work()

    def execute(self, context):
        """One stage: the graph is known by its outputs."""
        import torch

        tensors = {name: self.tensor(address, context.get_tensor_shape(name)) for name, address in context.addresses.items()}
        if "features" in context.engine.facts["outputs"]:
            kernel = self.kernel(context.engine.graph)
            made = torch.nn.functional.conv2d(tensors["image"], kernel, stride=2, padding=2)
            tensors["features"].copy_(made.relu_())
        else:
            tensors["depth"].copy_(tensors["features"].mean(dim=1, keepdim=True) + 1)

    def kernel(self, graph):
        """The weights of the first stage, on the GPU, loaded once."""
        import onnx
        import torch

        if graph not in self.weights:
            (found,) = [item for item in onnx.ModelProto.FromString(graph).graph.initializer if item.name == "kernel"]
            self.weights[graph] = torch.from_numpy(onnx.numpy_helper.to_array(found).copy()).cuda()
        return self.weights[graph]

    @staticmethod
    def tensor(address, shape):
        """A PyTorch tensor over memory of ours."""
        import torch

        class Memory:
            __cuda_array_interface__ = {"data": (address, False), "shape": tuple(shape), "typestr": "<f4", "strides": None, "version": 3}

        return torch.as_tensor(Memory(), device="cuda")
