// What the plugin classes of every TensorRT release share: an operator's fields, its table of formats, and how a kernel is started.
//
// An operator is a struct with NAME, INPUTS, OUTPUTS, FIELDS (names and types), ROWS (supported formats), `words` (the fields' values),
// and four functions: shapes, fits, workspace, run. The plugin classes (plugin_v3.hpp, plugin_v2.hpp) hold everything else.
#pragma once
#include <NvInfer.h>

#include <cstdint>
#include <cstring>
#include <new>

#ifndef FATHOM_HOST
#include <cuda_runtime_api.h>
#endif

namespace fathom {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr char const* VERSION = "1";
constexpr char const* NAMESPACE = "";  // the ONNX parser looks plugins up by name and version in the empty namespace

union Word {  // a field's value: 32 bits, serialised as they are
    float real;
    int32_t whole;
};

struct Field {
    char const* name;
    PluginFieldType type;
};

struct Format {
    DataType type;
    TensorFormat format;
};

constexpr Format HALF_PLANES{DataType::kHALF, TensorFormat::kLINEAR};
constexpr Format HALF_PIXELS{DataType::kHALF, TensorFormat::kHWC8};
constexpr Format FLOAT_PLANES{DataType::kFLOAT, TensorFormat::kLINEAR};

// Whether a row of the operator's table fits the formats of all tensors up to `position`.
template <typename Operator, typename FormatAt>
bool in_table(int32_t position, FormatAt const& at) {
    for (auto const& row : Operator::ROWS) {
        bool fits = true;
        for (int32_t k = 0; k <= position && fits; ++k) fits = at(k).type == row[k].type && at(k).format == row[k].format;
        if (fits) return true;
    }
    return false;
}

// Take the fields that the network or a serialised engine gives; false if one has another type than the operator's.
template <typename Operator>
bool take_fields(Operator& op, PluginFieldCollection const* given) {
    for (int32_t i = 0; given && i < given->nbFields; ++i) {
        for (int k = 0; k < Operator::FIELD_COUNT; ++k) {
            if (std::strcmp(given->fields[i].name, Operator::FIELDS[k].name) != 0) continue;
            if (given->fields[i].type != Operator::FIELDS[k].type || given->fields[i].length != 1 || !given->fields[i].data) return false;
            std::memcpy(&op.words[k], given->fields[i].data, sizeof(Word));
        }
    }
    return op.valid();
}

inline bool is_half(PluginTensorDesc const& tensor) { return tensor.type == DataType::kHALF; }
inline bool is_channels_last(PluginTensorDesc const& tensor) { return tensor.format == TensorFormat::kHWC8; }
inline unsigned long long address(void const* pointer) { return (unsigned long long)pointer; }

// Start a kernel: 0, or CUDA's error. The host build runs it here and now.
template <typename Kernel, typename Parameters>
int32_t start(Kernel kernel, Parameters const& parameters, int across, int down, int deep, int threads, cudaStream_t stream) {
#ifdef FATHOM_HOST
    (void)stream;
    host::run_grid(kernel, parameters, {across, down, deep}, {threads, 1, 1});
    return 0;
#else
    kernel<<<dim3(across, down, deep), threads, 0, stream>>>(parameters);
    return (int32_t)cudaPeekAtLastError();
#endif
}

}  // namespace fathom
