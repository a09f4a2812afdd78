"""The TensorRT plugin classes compiled against real TensorRT headers for the host: created, serialised, cloned and run without TensorRT."""

import ctypes
import os
import shutil
from pathlib import Path

import kernel_host
import numpy as np

PLUGINS = kernel_host.SOURCES.parent / "tensorrt"
DRIVER = r"""
#include <vector>
#include "library.cu"
using namespace nvinfer1;
static Dims dims_of(const int* d) {
    Dims dims{};
    dims.nbDims = d[0];
    for (int k = 0; k < d[0]; ++k) dims.d[k] = d[1 + k];
    return dims;
}
// Errors: 1 no such plugin, 2 not created, 3 not cloned or serialised, 4 a format refused, 5 a shape refused, 6 a failed run.
extern "C" int drive(const char* name, int fields, const char** names, const int* types, const void** values, int inputs, int outputs, const int* shapes,
                     const int* halves, const int* last, void** addresses, void* workspace, unsigned long long* workspace_size) {
    int32_t count = 0;
    auto* creators = LISTING(count);
    PluginFieldCollection given{};
    std::vector<PluginField> list;
    for (int k = 0; k < fields; ++k) list.emplace_back(names[k], values[k], types[k] ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32, 1);
    given.nbFields = fields;
    given.fields = list.data();
    std::vector<DynamicPluginTensorDesc> tensors(inputs + outputs);
    std::vector<PluginTensorDesc> plain(inputs + outputs);
    for (int k = 0; k < inputs + outputs; ++k) {
        plain[k].dims = dims_of(shapes + 9 * k);
        plain[k].type = halves[k] ? DataType::kHALF : DataType::kFLOAT;
        plain[k].format = last[k] ? TensorFormat::kHWC8 : TensorFormat::kLINEAR;
        tensors[k].desc = plain[k];
        tensors[k].min = tensors[k].max = plain[k].dims;
    }
    for (int i = 0; i < count; ++i) {
#if NV_TENSORRT_MAJOR >= 10
        auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
        if (strcmp(creator->getPluginName(), name)) continue;
        auto* first = creator->createPlugin("a", &given, TensorRTPhase::kBUILD);
        if (!first) return 2;
        auto* build = static_cast<IPluginV3OneBuild*>(first->getCapabilityInterface(PluginCapabilityType::kBUILD));
        for (int k = 0; k < inputs + outputs; ++k)
            if (!build->supportsFormatCombination(k, tensors.data(), inputs, outputs)) { delete first; return 4; }
        if (build->configurePlugin(tensors.data(), inputs, tensors.data() + inputs, outputs)) { delete first; return 5; }
        *workspace_size = build->getWorkspaceSize(tensors.data(), inputs, tensors.data() + inputs, outputs);
        auto* kept = static_cast<IPluginV3OneRuntime*>(first->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
        auto* again = creator->createPlugin("b", kept->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
        delete first;
        if (!again) return 3;
        auto* run = again->clone();
        delete again;
        auto* runtime = static_cast<IPluginV3OneRuntime*>(run->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
        int failed = runtime->onShapeChange(plain.data(), inputs, plain.data() + inputs, outputs) ? 5 : 0;
        if (!failed && workspace) failed = runtime->enqueue(plain.data(), plain.data() + inputs, addresses, addresses + inputs, workspace, nullptr) ? 6 : 0;
        delete run;
        return failed;
#else
        auto* creator = creators[i];
        if (strcmp(creator->getPluginName(), name)) continue;
        auto* first = static_cast<IPluginV2DynamicExt*>(creator->createPlugin("a", &given));
        if (!first) return 2;
        for (int k = 0; k < inputs + outputs; ++k)
            if (!first->supportsFormatCombination(k, plain.data(), inputs, outputs)) { first->destroy(); return 4; }
        *workspace_size = first->getWorkspaceSize(plain.data(), inputs, plain.data() + inputs, outputs);
        std::vector<char> bytes(first->getSerializationSize());
        first->serialize(bytes.data());
        first->destroy();
        auto* again = static_cast<IPluginV2DynamicExt*>(creator->deserializePlugin("b", bytes.data(), bytes.size()));
        if (!again) return 3;
        auto* run = again->clone();
        again->destroy();
        int failed = 0;
        if (workspace) failed = run->enqueue(plain.data(), plain.data() + inputs, addresses, addresses + inputs, workspace, nullptr) ? 6 : 0;
        run->destroy();
        return failed;
#endif
    }
    return 1;
}
extern "C" long long bounds_broken() { return out_of_bounds; }
"""


def header_folders() -> list[Path]:
    """Folders with ``NvInfer.h``, from ``FATHOM_TENSORRT_INCLUDE`` (separated like PATH)."""
    return [Path(folder) for folder in os.environ.get("FATHOM_TENSORRT_INCLUDE", "").split(os.pathsep) if folder]


def cuda_include() -> Path | None:
    """CUDA's own headers, which TensorRT's read."""
    nvcc = shutil.which("nvcc")
    homes = [Path("/usr/local/cuda"), *([Path(nvcc).resolve().parent.parent] if nvcc else [])]
    return next((home / "include" for home in homes if (home / "include" / "cuda_runtime_api.h").exists()), None)


class HostPlugins:
    """The plugin library of one set of headers."""

    def __init__(self, headers: Path, folder: Path):
        source, library = folder / "plugins.cpp", folder / "plugins.so"
        source.write_text(kernel_host.SHIM + DRIVER)
        includes = [word for place in (PLUGINS, headers, cuda_include()) for word in ("-I", str(place))]
        warnings = ["-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable", "-Wno-deprecated-declarations"]
        kernel_host.compile_library(source, library, "-O1", *warnings, *includes)
        self.library = ctypes.CDLL(str(library))
        self.library.bounds_broken.restype = ctypes.c_longlong

    def run(self, name: str, fields: dict, inputs: list[np.ndarray], outputs: list[np.ndarray], shapes=None, channels_last=(), dry: bool = False) -> int:
        """Create, serialise, read back, clone and (unless dry) run a plugin; 0, or the driver's error. Shapes: of all tensors, where they are padded."""
        tensors = [*inputs, *outputs]
        shapes = shapes or [t.shape for t in tensors]
        packed = [number for shape in shapes for number in (len(shape), *shape, *[0] * (8 - len(shape)))]
        words = [np.array(value, np.int32 if isinstance(value, int) else np.float32) for value in fields.values()]
        ints = lambda numbers: (ctypes.c_int * len(numbers))(*numbers)  # noqa: E731
        size = ctypes.c_ulonglong(0)

        def call(workspace):
            return self.library.drive(
                name.encode(),
                len(words),
                (ctypes.c_char_p * len(words))(*[key.encode() for key in fields]),
                ints([isinstance(value, int) for value in fields.values()]),
                (ctypes.c_void_p * len(words))(*[word.ctypes.data for word in words]),
                len(inputs),
                len(outputs),
                ints(packed),
                ints([t.dtype == np.float16 for t in tensors]),
                ints([int(k in channels_last) for k in range(len(tensors))]),
                (ctypes.c_void_p * len(tensors))(*[t.ctypes.data for t in tensors]),
                workspace,
                ctypes.byref(size),
            )

        failed = call(None)
        if failed or dry:
            return failed
        scratch = np.full(size.value + 1, 7, np.uint8)
        return call(ctypes.c_void_p(scratch.ctypes.data))
