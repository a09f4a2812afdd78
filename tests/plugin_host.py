"""The TensorRT plugin classes compiled against real TensorRT headers for the host: created, serialised, cloned and run without TensorRT."""

import ctypes
import os
import shutil
from pathlib import Path

import kernel_host
import numpy as np
import stand_in_nvinfer

PLUGINS = kernel_host.SOURCES.parent / "tensorrt"
DRIVER = r"""
#include <cstdio>
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
#if NV_TENSORRT_MAJOR >= 10
static IPluginV3* first_of(const char* name) {
    int32_t count = 0;
    auto* creators = LISTING(count);
    for (int i = 0; i < count; ++i) {
        auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
        if (!strcmp(creator->getPluginName(), name)) return creator->createPlugin("a", nullptr, TensorRTPhase::kBUILD);
    }
    return nullptr;
}
#else
static IPluginV2DynamicExt* first_of(const char* name) {
    int32_t count = 0;
    auto* creators = LISTING(count);
    for (int i = 0; i < count; ++i)
        if (!strcmp(creators[i]->getPluginName(), name)) return static_cast<IPluginV2DynamicExt*>(creators[i]->createPlugin("a", nullptr));
    return nullptr;
}
#endif
static void remove(decltype(first_of("")) plugin) {
#if NV_TENSORRT_MAJOR >= 10
    delete plugin;
#else
    plugin->destroy();
#endif
}
static const DataType TYPES[] = {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32};
static const TensorFormat LAYOUTS[] = {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kHWC8, TensorFormat::kCHW32};
// Every way to give each tensor one of the types and layouts above (number 4 * type + layout, base 16, first tensor first) that a plugin takes.
extern "C" int formats_taken(const char* name, int inputs, int outputs, int* taken, int most) {
    auto* plugin = first_of(name);
    if (!plugin) return -1;
    const int count = inputs + outputs;
    int found = 0;
    std::vector<DynamicPluginTensorDesc> tensors(count);
    std::vector<PluginTensorDesc> plain(count);
    for (long long code = 0; code < 1ll << 4 * count; ++code) {
        bool fits = true;
        for (int k = 0; k < count && fits; ++k) {
            const int digit = code >> 4 * (count - 1 - k) & 15;
            plain[k].type = TYPES[digit / 4], plain[k].format = LAYOUTS[digit % 4];
            tensors[k].desc = plain[k];
#if NV_TENSORRT_MAJOR >= 10
            auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
            fits = build->supportsFormatCombination(k, tensors.data(), inputs, outputs);
#else
            fits = plugin->supportsFormatCombination(k, plain.data(), inputs, outputs);
#endif
            if (!fits) code |= (1ll << 4 * (count - 1 - k)) - 1;  // nothing that starts so is taken
        }
        if (fits && found++ < most) taken[found - 1] = (int)code;
    }
    remove(plugin);
    return found;
}
#if NV_TENSORRT_MAJOR >= 10
using Size = int64_t;
#else
using Size = int32_t;
#endif
static const char ONES[1] = {};  // sizes are only passed on: their addresses say which they are
static const IDimensionExpr* size_one() { return reinterpret_cast<const IDimensionExpr*>(ONES); }
#ifdef FATHOM_STAND_IN
struct Builder : IExprBuilder {
    const IDimensionExpr* constant(Size value) noexcept override { return value == 1 ? size_one() : nullptr; }
};
#else
struct BuilderInside : apiv::VExprBuilder {
    const IDimensionExpr* constant(Size value) noexcept override { return value == 1 ? size_one() : nullptr; }
    const IDimensionExpr* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) noexcept override { return nullptr; }
#if NV_TENSORRT_MAJOR >= 10
    const IDimensionExpr* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) noexcept override { return nullptr; }
#endif
};
struct Builder : IExprBuilder {
    BuilderInside inside;
    Builder() { mImpl = &inside; }
};
#endif
// Sizes of the outputs: -1 for the constant 1, else 16 * input + axis whose size it is; types as numbers of the first input's type.
extern "C" int shapes_made(const char* name, int inputs, int outputs, const int* ranks, int* made, int half) {
    static char places[16 * 16];
    auto* plugin = first_of(name);
    if (!plugin) return -1;
    std::vector<DimsExprs> in(inputs), out(outputs);
    std::vector<DataType> given(inputs, DataType::kFLOAT), types(outputs, DataType::kINT8);
    given[0] = half ? DataType::kHALF : DataType::kFLOAT;
    for (int k = 0; k < inputs; ++k) {
        in[k].nbDims = ranks[k];
        for (int axis = 0; axis < ranks[k]; ++axis) in[k].d[axis] = reinterpret_cast<const IDimensionExpr*>(places + 16 * k + axis);
    }
    Builder builder;
    int failed = 0;
#if NV_TENSORRT_MAJOR >= 10
    auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    failed = build->getNbOutputs() != outputs || build->getOutputShapes(in.data(), inputs, nullptr, 0, out.data(), outputs, builder) ||
             build->getOutputDataTypes(types.data(), outputs, given.data(), inputs);
#else
    failed = plugin->getNbOutputs() != outputs;
    for (int k = 0; k < outputs; ++k) {
        out[k] = plugin->getOutputDimensions(k, in.data(), inputs, builder);
        types[k] = plugin->getOutputDataType(k, given.data(), inputs);
    }
#endif
    remove(plugin);
    for (int k = 0; k < outputs; ++k) {
        failed |= types[k] != given[0];
        made[9 * k] = out[k].nbDims;
        for (int axis = 0; axis < out[k].nbDims; ++axis) {
            const char* place = reinterpret_cast<const char*>(out[k].d[axis]);
            made[9 * k + 1 + axis] = place == ONES ? -1 : (int)(place - places);
        }
    }
    return failed;
}
// Bytes of an engine for another operator, or cut short, make no plugin.
extern "C" int takes_other_bytes(const char* name) {
#if NV_TENSORRT_MAJOR >= 10
    return 0;  // fields with names and types: see drive()
#else
    int32_t count = 0, taken = 0;
    const char bytes[64] = {};
    auto* creators = LISTING(count);
    for (int i = 0; i < count; ++i)
        if (!strcmp(creators[i]->getPluginName(), name))
            for (size_t size : {size_t(0), size_t(3), size_t(40), size_t(64)}) taken += creators[i]->deserializePlugin("b", bytes, size) != nullptr;
    return taken;
#endif
}
#if defined(FATHOM_STAND_IN) && NV_TENSORRT_MAJOR < 10
struct Registry : IPluginRegistry {
    std::vector<IPluginCreator*> held;
    bool registerCreator(IPluginCreator& creator, char const*) noexcept override { return held.push_back(&creator), true; }
    bool deregisterCreator(IPluginCreator const& creator) noexcept override {
        for (size_t k = 0; k < held.size(); ++k)
            if (held[k] == &creator) return held.erase(held.begin() + k), true;
        return false;
    }
    IPluginCreator* getPluginCreator(char const* name, char const* version, char const*) noexcept override {
        for (auto* creator : held)
            if (!strcmp(creator->getPluginName(), name) && !strcmp(creator->getPluginVersion(), version)) return creator;
        return nullptr;
    }
};
extern "C" void* stand_in_registry() { return new Registry; }
extern "C" int creators_held(void* registry) { return (int)static_cast<Registry*>(registry)->held.size(); }
// Somebody else's creator with one of our names.
extern "C" void take_a_name(void* registry) {
    static fathom::Creator<fathom::GroupNormSiluOperator> other;
    static_cast<Registry*>(registry)->held.push_back(&other);
}
#endif
// What the creators ask for, as text: operator, field, type (1 FP32, 5 INT32), length.
extern "C" int fields_wanted(char* text, int size) {
    int32_t count = 0, used = 0;
    auto* creators = LISTING(count);
    for (int i = 0; i < count; ++i) {
#if NV_TENSORRT_MAJOR >= 10
        auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
#else
        auto* creator = creators[i];
#endif
        auto* wanted = creator->getFieldNames();
        for (int k = 0; k < wanted->nbFields; ++k) {
            PluginField const& field = wanted->fields[k];
            used += snprintf(text + used, size - used, "%s %s %d %d\n", creator->getPluginName(), field.name, (int)field.type, field.length);
        }
    }
    return used;
}
extern "C" long long bounds_broken() { return out_of_bounds; }
"""


def header_folders() -> list[Path]:
    """Folders with ``NvInfer.h``, from ``FATHOM_TENSORRT_INCLUDE`` (separated like PATH)."""
    return [Path(folder) for folder in os.environ.get("FATHOM_TENSORRT_INCLUDE", "").split(os.pathsep) if folder]


def stand_in_headers(folder: Path, release: str) -> Path:
    """A folder with headers of our own that declare what the plugin classes use of a release's interface, for machines without the real ones."""
    major, minor = release.split(".")
    (folder / "NvInferVersion.h").write_text(f"#define NV_TENSORRT_MAJOR {major}\n#define NV_TENSORRT_MINOR {minor}\n")
    (folder / "NvInfer.h").write_text(stand_in_nvinfer.TEXT)
    return folder


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
        includes = [word for place in filter(None, (PLUGINS, headers, cuda_include())) for word in ("-I", str(place))]
        warnings = ["-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable", "-Wno-deprecated-declarations"]
        kernel_host.compile_library(source, library, "-O1", *warnings, *includes)
        self.path = library
        self.library = ctypes.CDLL(str(library))
        self.library.bounds_broken.restype = ctypes.c_longlong

    def formats_taken(self, name: str, inputs: int, outputs: int) -> set[tuple[tuple[str, str], ...]]:
        """Every row of (type, layout) of all tensors that a plugin says it supports, of four types and four layouts each."""
        most = 1000
        taken, types, layouts = (ctypes.c_int * most)(), ("float32", "float16", "int8", "int32"), ("planes", "pairs", "pixels", "blocks of 32")
        count = self.library.formats_taken(name.encode(), inputs, outputs, taken, most)
        assert 0 <= count <= most
        digits = [[code >> 4 * (inputs + outputs - 1 - k) & 15 for k in range(inputs + outputs)] for code in taken[:count]]
        return {tuple((types[digit // 4], layouts[digit % 4]) for digit in row) for row in digits}

    def shapes_made(self, name: str, ranks: tuple[int, ...], outputs: int, half: bool) -> list[list[tuple[int, int] | int]]:
        """Sizes of every output: 1, or (input, axis) whose size it is. The types are those of the first input."""
        made = (ctypes.c_int * (9 * outputs))()
        assert self.library.shapes_made(name.encode(), len(ranks), outputs, (ctypes.c_int * len(ranks))(*ranks), made, half) == 0
        sizes = [made[9 * k + 1 : 9 * k + 1 + made[9 * k]] for k in range(outputs)]
        return [[1 if size == -1 else divmod(size, 16) for size in row] for row in sizes]

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
