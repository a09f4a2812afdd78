// An operator as IPluginV2DynamicExt with its creator: TensorRT 8.5 and 8.6.
#pragma once
#include <string>

#include "operator.hpp"

namespace fathom {

using nvinfer1::DynamicPluginTensorDesc;

template <typename Operator>
class Plugin final : public nvinfer1::IPluginV2DynamicExt {
  public:
    explicit Plugin(Operator const& op) : op_(op) {}

    char const* getPluginType() const noexcept override { return Operator::NAME; }
    char const* getPluginVersion() const noexcept override { return VERSION; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name ? name : ""; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void destroy() noexcept override { delete this; }
    nvinfer1::IPluginV2DynamicExt* clone() const noexcept override { return new (std::nothrow) Plugin(*this); }
    size_t getSerializationSize() const noexcept override { return sizeof op_.words; }
    void serialize(void* buffer) const noexcept override { std::memcpy(buffer, op_.words, sizeof op_.words); }

    int32_t getNbOutputs() const noexcept override { return Operator::OUTPUTS; }
    DataType getOutputDataType(int32_t, DataType const* in, int32_t) const noexcept override { return in[0]; }
    DimsExprs getOutputDimensions(int32_t output, DimsExprs const* in, int32_t, IExprBuilder& builder) noexcept override {
        DimsExprs out[Operator::OUTPUTS];
        Operator::shapes(in, out, builder);
        return out[output];
    }
    bool supportsFormatCombination(int32_t position, PluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
        return in_table<Operator>(position, [&](int32_t k) { return Format{tensors[k].type, tensors[k].format}; });
    }
    void configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept override {}
    size_t getWorkspaceSize(PluginTensorDesc const* in, int32_t, PluginTensorDesc const*, int32_t) const noexcept override {
        Dims sizes[Operator::INPUTS];
        for (int32_t k = 0; k < Operator::INPUTS; ++k) sizes[k] = in[k].dims;
        return op_.workspace(sizes);
    }
    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override {
        Dims now[Operator::INPUTS];
        for (int32_t k = 0; k < Operator::INPUTS; ++k) now[k] = in[k].dims;
        return op_.fits(now) ? op_.run(in, inputs, outputs, workspace, stream) : 1;  // this interface has no other place to refuse a shape
    }

  private:
    Operator op_;
    std::string namespace_;
};

template <typename Operator>
class Creator final : public nvinfer1::IPluginCreator {
  public:
    Creator() {
        for (int k = 0; k < Operator::FIELD_COUNT; ++k) fields_[k] = PluginField(Operator::FIELDS[k].name, nullptr, Operator::FIELDS[k].type, 1);
        collection_.nbFields = Operator::FIELD_COUNT;
        collection_.fields = fields_;
    }
    char const* getPluginName() const noexcept override { return Operator::NAME; }
    char const* getPluginVersion() const noexcept override { return VERSION; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    nvinfer1::IPluginV2* createPlugin(char const*, PluginFieldCollection const* given) noexcept override {
        Operator op;
        return take_fields(op, given) ? new (std::nothrow) Plugin<Operator>(op) : nullptr;
    }
    nvinfer1::IPluginV2* deserializePlugin(char const*, void const* bytes, size_t size) noexcept override {
        Operator op;
        if (size != sizeof op.words) return nullptr;
        std::memcpy(op.words, bytes, size);
        return op.valid() ? new (std::nothrow) Plugin<Operator>(op) : nullptr;
    }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name ? name : ""; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

  private:
    std::string namespace_;
    PluginField fields_[Operator::FIELD_COUNT];
    PluginFieldCollection collection_{};
};

}  // namespace fathom
