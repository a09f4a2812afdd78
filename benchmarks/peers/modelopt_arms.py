"""NVIDIA ModelOpt: its ONNX quantisation with both calibrators, and AutoQuantize, which is PyTorch's alone; in an environment of its own.

AutoQuantize chooses for every layer between 8 bits and none, by the gradient of a loss and a bound on the mean bits of weights. The network is made of
``torch.nn`` layers by the ONNX file for it, with its batch norms folded; the depth is computed there, as ModelOpt simulates it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .arms import Arm, run_script

METHODS = ("max", "entropy")
EFFECTIVE_BITS = {"int8": (8.4, 9.6), "fp8": (8.4, 9.6)}  # of weights, 16 where they are not quantised
ONNX_CODE = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
source, target, data, bits, method = sys.argv[1:]
images = np.load(data, allow_pickle=False)
quantize(source, quantize_mode=bits, calibration_data=images, calibration_method=method, output_path=target, high_precision_dtype="fp32")
"""
AUTO_CODE = """
import json, sys, numpy as np, onnx, torch
import modelopt.torch.quantization as mtq
from onnx import helper, numpy_helper
source, calibration, proof, target, bits, effective, seed = sys.argv[1:]
torch.manual_seed(int(seed))
graph = onnx.load(source).graph
values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
for node in graph.node:
    if node.op_type == "Constant":
        values[node.output[0]] = torch.from_numpy(numpy_helper.to_array(node.attribute[0].t).copy())
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.steps, folded = [], {}
        readers = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        for node in graph.node:
            facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            name = "n" + str(len(self.steps))
            if node.op_type == "Conv":
                weight = values[node.input[1]]
                bias = values[node.input[2]] if len(node.input) > 2 else torch.zeros(len(weight))
                out = node.output[0]
                after = readers.get(out, [])
                if len(after) == 1 and after[0].op_type == "BatchNormalization":
                    scale, shift, mean, var = (values[n] for n in after[0].input[1:])
                    eps = next((a.f for a in after[0].attribute if a.name == "epsilon"), 1e-5)
                    gain = scale / torch.sqrt(var + eps)
                    weight, bias, out = weight * gain[:, None, None, None], (bias - mean) * gain + shift, after[0].output[0]
                    folded[out] = True
                pads, groups = facts.get("pads", [0] * 4), facts.get("group", 1)
                layer = torch.nn.Conv2d(weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]), tuple(facts.get("strides", [1, 1])),
                    tuple(pads[:2]), tuple(facts.get("dilations", [1, 1])), groups)
                layer.weight.data, layer.bias.data = weight, bias
                layer.macs_per_pixel = weight.numel()
                self.add_module(name, layer)
                self.steps.append((name, None, [node.input[0]], out))
            elif node.op_type == "BatchNormalization":
                assert node.output[0] in folded
            elif node.op_type == "Relu":
                self.steps.append((None, torch.relu, [node.input[0]], node.output[0]))
            elif node.op_type == "Clip":
                low = facts.get("min", float(values[node.input[1]]) if len(node.input) > 1 else None)
                high = facts.get("max", float(values[node.input[2]]) if len(node.input) > 2 else None)
                self.steps.append((None, lambda x, low=low, high=high: torch.clamp(x, low, high), [node.input[0]], node.output[0]))
            elif node.op_type in ("Upsample", "Resize"):
                assert facts.get("mode", b"nearest") == b"nearest"
                factor = float((values[node.input[-1]] if len(node.input) > 1 else torch.tensor(facts["scales"]))[-1])
                self.steps.append((None, lambda x, factor=factor: torch.nn.functional.interpolate(x, scale_factor=factor), [node.input[0]], node.output[0]))
            elif node.op_type == "Add":
                self.steps.append((None, torch.add, list(node.input), node.output[0]))
            elif node.op_type != "Constant":
                raise NotImplementedError(node.op_type)
    def forward(self, x):
        held = {graph.input[0].name: x}
        for name, function, inputs, output in self.steps:
            held[output] = (getattr(self, name) if name else function)(*[held[i] for i in inputs])
        return held[graph.output[0].name]
net = Net().eval()
images = [torch.from_numpy(image[None]) for image in np.load(calibration, allow_pickle=False)]
with torch.no_grad():
    wanted = [net(image) for image in images]
def loss(output, batch):
    return (output - batch[1]).abs().mean() / batch[1].abs().mean() + output.square().mean() * 0
formats = [mtq.INT8_DEFAULT_CFG if bits == "int8" else mtq.FP8_DEFAULT_CFG]
found = mtq.auto_quantize(net, constraints={"effective_bits": float(effective)}, quantization_formats=formats,
    data_loader=list(zip(images, wanted)), forward_step=lambda model, batch: model(batch[0]), loss_func=loss,
    num_calib_steps=len(images), num_score_steps=len(images))
net = (found[0] if isinstance(found, tuple) else found).eval()
sizes = {"all": 0, "low": 0}
def count(layer, inputs, output):
    macs = layer.weight.numel() * output.shape[-1] * output.shape[-2]
    sizes["all"] += macs
    sizes["low"] += macs * bool(layer.input_quantizer.is_enabled and layer.weight_quantizer.is_enabled)
hooks = [module.register_forward_hook(count) for module in net.modules() if hasattr(module, "input_quantizer") and hasattr(module, "weight")]
with torch.no_grad():
    net(images[0])
    for hook in hooks:
        hook.remove()
    outputs = [net(torch.from_numpy(image[None])).numpy()[0] for image in np.load(proof, allow_pickle=False)]
np.save(target, np.stack(outputs), allow_pickle=False)
with open(target + ".json", "w") as file:
    json.dump({"share": sizes["low"] / sizes["all"], "types": [bits], "offsets": False}, file)
"""


def modelopt_arms(python: Path, network: Path, inputs: np.ndarray, proof: np.ndarray, folder: Path, seed: int) -> Iterator[Arm]:
    """Quantise a network; a failure is a result too.

    Args:
        network: of opset 18 or later.
        inputs: to calibrate with, [N, C, H, W].
        proof: inputs that AutoQuantize's result is computed for.
        folder: for the files.
    """
    data, shown = folder / "modelopt.npy", folder / "modelopt_proof.npy"
    np.save(data, inputs, allow_pickle=False)
    np.save(shown, proof, allow_pickle=False)
    for bits in ("int8", "fp8"):
        for method in METHODS:
            target = folder / f"modelopt_{bits}_{method}.onnx"
            failed = run_script(python, ONNX_CODE, str(network), str(target), str(data), bits, method)
            name = f"ModelOpt, {method}"
            yield Arm(name, bits, failed=failed) if failed else Arm(name, bits, target)
        for effective in EFFECTIVE_BITS[bits]:
            made = folder / f"modelopt_auto_{bits}_{effective}.npy"
            failed = run_script(python, AUTO_CODE, str(network), str(data), str(shown), str(made), bits, str(effective), str(seed))
            name = f"ModelOpt, AutoQuantize, {effective} bits"
            if failed:
                yield Arm(name, bits, failed=failed)
            else:
                facts = json.loads(Path(f"{made}.json").read_text())
                yield Arm(name, bits, outputs=np.load(made, allow_pickle=False), facts=facts)
