"""``tensorrt`` and ``tensorrt_rtx`` whose engines are ONNX graphs, run by ONNX Runtime on the memory of a ``fake_cuda.Machine``.

An engine is 64 bytes of header (JSON: release, targets) and a JSON line with its tensors, then the ONNX graph. The names that exist are
those of the real packages; a test holds them against dumps of the real APIs.
"""

import enum
import gc
import importlib.machinery
import json
import sys
import types
from importlib import metadata

import numpy as np

from fathom.runtime.tensorrt.adapters import library_by_hand

HEADER = 64
TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "BOOL": np.bool_, "UINT8": np.uint8, "BF16": None, "INT64": np.int64}


def engine_bytes(spec, graph, release, batch=(1, 1, 1), targets=("sm86",), lies=None):
    """An engine for a stage.

    Args:
        spec: the stage.
        graph: ONNX bytes.
        batch: min, opt, max; fixed if all are equal.
        lies: replaces facts, e.g. ``{"dtypes": {"image": "HALF"}}``.
    """
    header = json.dumps({"release": release, "targets": targets}).encode()
    assert len(header) <= HEADER
    names = {np.dtype(kind).name: name for name, kind in TYPES.items() if kind is not None}
    fixed = batch[0] == batch[2]
    facts = {
        "inputs": [tensor.name for tensor in spec.inputs],
        "outputs": [tensor.name for tensor in spec.outputs],
        "dtypes": {t.name: names[t.dtype] for t in spec.inputs + spec.outputs},
        "shapes": {t.name: [(batch[0] if fixed else -1) if isinstance(size, str) else size for size in t.shape] for t in spec.inputs + spec.outputs},
        "batch": batch,
        "activation_nbytes": 1000,
    } | (lies or {})
    return header.ljust(HEADER) + json.dumps(facts).encode() + b"\n" + graph


def calls_plugins(graph):
    """Whether a graph, which stands for an engine, holds operators of ours."""
    import onnx

    try:
        return any(node.domain == "fathom" for node in onnx.load_from_string(bytes(graph)).graph.node)
    except Exception:  # where engines are anything, none calls one
        return False


def with_bodies(graph):
    """An engine's graph with the bodies of our operators, which ONNX Runtime can run."""
    import onnx

    from fathom.trt_plugins.functions import add_functions

    model = onnx.ModelProto.FromString(graph)
    add_functions(model)
    return model.SerializeToString()


def module(machine, rtx=False, version="10.13.3.9"):
    """The package on a machine, which may carry engines out itself (``execute``).

    ``module.counts`` tells how many engines and contexts are alive; ``module.fail`` makes calls fail; ``module.kinds`` are the
    classes whose methods the runtime calls.
    """
    trt, old = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt"), not rtx and version.startswith("8.")
    trt.__version__ = version
    trt.counts, trt.fail, trt.deserialised, trt.caches = {"engine": 0, "context": 0}, {}, 0, []
    trt.DataType = enum.Enum("DataType", [name for name in TYPES if not old or name not in ("INT64", "BF16")])
    trt.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    trt.TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
    if not old:
        trt.ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self):
            pass

    class IProfiler:
        def __init__(self):
            self.made = True

    def needs_context():
        machine.enter("tensorrt")

    class Context:
        def __init__(self, engine, strategy, graphs):
            assert old or strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self.profile = not old or engine.facts["batch"][0] == engine.facts["batch"][2] or engine.contexts == 0
            engine.contexts += 1
            self.engine, self.graphs, self.shapes, self.addresses, self.memory, self.profiler = engine, graphs, {}, {}, None, None
            trt.counts["context"] += 1

        def __del__(self):
            trt.counts["context"] -= 1

        def set_input_shape(self, name, shape):
            assert self.profile, "TensorRT 8 gives a profile to one context"
            low, _, high = self.engine.get_tensor_profile_shape(name, 0)
            if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
                return False
            self.shapes[name] = tuple(shape)
            return True

        def infer_shapes(self):
            return [name for name in self.engine.facts["inputs"] if name not in self.shapes]

        def get_tensor_shape(self, name):
            if name in self.shapes:
                return self.shapes[name]
            batch = self.shapes[self.engine.facts["inputs"][0]][0]
            return tuple(batch if size == -1 else size for size in self.engine.facts["shapes"][name])

        def set_tensor_address(self, name, address):
            assert address % 256 == 0
            self.addresses[name] = address
            return name in self.engine.facts["dtypes"]

        def set_device_memory(self, address, size):
            assert address % 256 == 0 and size >= self.engine.facts["activation_nbytes"]
            self.memory = (address, size)

        def execute_async_v3(self, stream):
            needs_context()
            if words := trt.fail.pop("execute", None):
                self.engine.logger.log(ILogger.ERROR, words)
                return False
            machine.send(machine.stream_of(stream), self._work if machine.execute is None else lambda: machine.execute(self))
            if self.profiler is not None:
                assert isinstance(self.profiler, IProfiler) and self.profiler.made  # a binding crashes without its base class's constructor
                for number, name in enumerate(self.engine.facts.get("layers", ["one layer"])):
                    self.profiler.report_layer_time(name, 0.5 + number)
            return True

        def _work(self):
            address, _ = self.memory
            machine.view(address, max(self.engine.facts["activation_nbytes"], 1))[:] = 0xAB  # the arena is scratch: nobody may rely on it
            tensors = {name: self._tensor(name) for name in self.addresses}
            feed = {name: tensors[name].copy() for name in self.engine.facts["inputs"]}
            for name, value in zip(self.engine.facts["outputs"], self.engine.session.run(self.engine.facts["outputs"], feed), strict=True):
                tensors[name][...] = value

        def _tensor(self, name):
            dtype = np.dtype(TYPES[self.engine.facts["dtypes"][name]])
            shape = self.get_tensor_shape(name)
            return machine.view(self.addresses[name], int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)

    if rtx:
        Context.is_stream_capturable = lambda self, stream: False
    if old:  # the size is not told, and the address is a property that can only be set
        Context.device_memory = property(None, lambda self, address: plain(self, address, self.engine.facts["activation_nbytes"]))
        plain = Context.set_device_memory
        del Context.set_device_memory

    class Engine:
        def __init__(self, facts, graph, logger):
            trt.counts["engine"] += 1
            self.plugins = calls_plugins(graph)
            trt.engines_with_plugins += self.plugins
            if self.plugins:
                assert trt.registry.libraries, "no creator is registered for the plugins of this engine"
                graph = with_bodies(graph)
            self.facts, self.graph, self.logger, self.contexts = facts, graph, logger, 0
            if machine.execute is not None:
                return
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

        def __del__(self):
            trt.counts["engine"] -= 1
            trt.engines_with_plugins -= self.plugins

        num_io_tensors = property(lambda self: len(self.facts["dtypes"]))
        device_memory_size_v2 = property(lambda self: self.facts["activation_nbytes"])

        def get_tensor_name(self, index):
            return list(self.facts["dtypes"])[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name in self.facts["inputs"] else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return trt.DataType[self.facts["dtypes"][name]]

        def get_tensor_shape(self, name):
            return tuple(self.facts["shapes"][name])

        def get_tensor_location(self, name):
            return trt.TensorLocation.DEVICE

        def get_tensor_profile_shape(self, name, index):
            return [tuple(size if dim == -1 else dim for dim in self.facts["shapes"][name]) for size in self.facts["batch"]]

        def create_engine_inspector(self):
            return types.SimpleNamespace(get_engine_information=lambda form: self.facts["information"])

        def create_execution_context(self, how):
            needs_context()
            if words := trt.fail.pop("context", None):
                self.logger.log(ILogger.ERROR, words)
                return None
            if rtx:
                return Context(self, how.strategy, how.cuda_graph_strategy)
            return Context(self, how, None)

    if old:
        Engine.device_memory_size = Engine.device_memory_size_v2
        del Engine.device_memory_size_v2
        Engine.create_execution_context_without_device_memory = lambda self, make=Engine.create_execution_context: make(self, None)
        del Engine.create_execution_context

    class RuntimeCache:
        def __init__(self):
            self.raw = b""
            trt.caches.append(self)

        def deserialize(self, raw):
            self.raw = bytes(raw)
            return raw.startswith(b"kernels")

        def serialize(self):
            return self.raw or b"kernels compiled here"

    class RuntimeConfig:
        def set_execution_context_allocation_strategy(self, strategy):
            self.strategy = strategy

        def create_runtime_cache(self):
            needs_context()
            return RuntimeCache()

        def set_runtime_cache(self, cache):
            self.cache = cache
            return True

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, raw):
            needs_context()
            trt.deserialised += 1
            if words := trt.fail.pop("deserialize", None):
                self.logger.log(ILogger.ERROR, words)
                return None
            raw = bytes(raw)
            if json.loads(raw[:HEADER])["release"] != version:
                self.logger.log(ILogger.ERROR, "Assertion serializationVersion == kCURRENT failed")
                return None
            facts, _, graph = raw[HEADER:].partition(b"\n")
            return Engine(json.loads(facts), graph, self.logger)

    class Registry:  # that of TensorRT 8.5 has the same two under the names of the library's own entries; see ``install``
        def __init__(self):
            self.libraries, self.loads = [], 0

        def load_library(self, path):
            if self.libraries or trt.fail.pop("library", None):
                return None  # as the real one, if creators of these names are registered already
            self.libraries.append(path)
            self.loads += 1
            return path

        def deregister_library(self, handle):
            assert not trt.engines_with_plugins, "an engine still calls the plugins"
            self.libraries.remove(handle)

    trt.registry, trt.engines_with_plugins = Registry(), 0
    by_hand = types.SimpleNamespace(register_creator=None, get_plugin_creator=None)  # 8.5 opens no libraries
    trt.get_plugin_registry = lambda: by_hand if version.startswith("8.5") else trt.registry
    trt.ILogger, trt.IProfiler, trt.Runtime, trt.kinds = ILogger, IProfiler, Runtime, (Context, Engine, RuntimeConfig, RuntimeCache, Runtime)
    if rtx:
        trt.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
        trt.EngineValidity = enum.Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
        trt.ComputeCapability = enum.Enum("ComputeCapability", ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"])
        trt.IRuntimeCache = RuntimeCache
        Engine.create_runtime_config = lambda self: RuntimeConfig()
        Runtime.engine_header_size = HEADER

        def get_engine_validity(self, header):
            facts = json.loads(header)
            here = f"sm{machine.capability[0]}{machine.capability[1]}"
            fits = facts["release"] == version and here in facts["targets"]
            return (trt.EngineValidity.VALID if fits else trt.EngineValidity.INVALID), 0

        Runtime.get_engine_validity = get_engine_validity
    return trt


def install(monkeypatch, machine, rtx=False, version=None, cuda=None):
    """Let ``import tensorrt`` or ``tensorrt_rtx`` give a fake; ``cuda`` is the major release its wheels claim to be built for."""
    trt = module(machine, rtx, version or ("1.7.1.116" if rtx else "10.13.3.9"))
    trt.__spec__ = importlib.machinery.ModuleSpec(trt.__name__, None)
    monkeypatch.setitem(sys.modules, trt.__name__, trt)
    real = metadata.distribution

    def distribution(name):
        if name.startswith(trt.__name__ + "_cu"):
            if name == f"{trt.__name__}_cu{cuda}":
                return object()
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    if trt.__version__.startswith("8.5"):
        monkeypatch.setattr(library_by_hand, "native_registry", lambda: 85)
        monkeypatch.setattr(library_by_hand, "ctypes", types.SimpleNamespace(CDLL=lambda path: Opened(trt.registry, path), c_void_p=int))
    return trt


class Opened:
    """A plugin library for TensorRT 8.5 that the process has opened: its two entries, and a registry that is handed to them."""

    def __init__(self, registry, path):
        self._registry, self._path = registry, path

    def fathom_register(self, registry):
        assert registry == 85
        return 0 if self._registry.load_library(self._path) else 3

    def fathom_deregister(self, registry):
        self._registry.deregister_library(self._path)
        return 0


def nothing_left(machine):
    """Nothing of the driver's is held any more, and no engine or context of any package of ``machine.trt``."""
    gc.collect()
    packages = machine.trt.values() if isinstance(machine.trt, dict) else (machine.trt,)
    assert machine.leaks() == {} and all(package.counts == {"engine": 0, "context": 0} for package in packages)
