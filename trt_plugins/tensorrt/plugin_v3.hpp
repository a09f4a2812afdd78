// An operator as IPluginV3 with its creator: TensorRT 10.0 and later.
#pragma once
#include "operator.hpp"

namespace fathom {

using nvinfer1::DynamicPluginTensorDesc;

template <typename Operator>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
  public:
    explicit Plugin(Operator const& op) : op_(op) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        if (type == nvinfer1::PluginCapabilityType::kCORE) return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        if (type == nvinfer1::PluginCapabilityType::kBUILD) return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        if (type == nvinfer1::PluginCapabilityType::kRUNTIME) return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(op_); }

    char const* getPluginName() const noexcept override { return Operator::NAME; }
    char const* getPluginVersion() const noexcept override { return VERSION; }
    char const* getPluginNamespace() const noexcept override { return NAMESPACE; }

    int32_t getNbOutputs() const noexcept override { return Operator::OUTPUTS; }
    int32_t getOutputDataTypes(DataType* out, int32_t outputs, DataType const* in, int32_t inputs) const noexcept override {
        if (outputs != Operator::OUTPUTS || inputs != Operator::INPUTS) return 1;
        for (int32_t k = 0; k < outputs; ++k) out[k] = in[0];
        return 0;
    }
    int32_t getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*, int32_t, DimsExprs* out, int32_t outputs,
                            IExprBuilder& builder) noexcept override {
        if (outputs != Operator::OUTPUTS || inputs != Operator::INPUTS) return 1;
        Operator::shapes(in, out, builder);
        return 0;
    }
    bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
        return in_table<Operator>(position, [&](int32_t k) { return Format{tensors[k].desc.type, tensors[k].desc.format}; });
    }
    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const*, int32_t) noexcept override {
        Dims greatest[Operator::INPUTS];
        if (inputs != Operator::INPUTS) return 1;
        for (int32_t k = 0; k < inputs; ++k) greatest[k] = in[k].max;
        return op_.fits(greatest) ? 0 : 1;
    }
    size_t getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*, int32_t) const noexcept override {
        Dims greatest[Operator::INPUTS];
        for (int32_t k = 0; k < Operator::INPUTS; ++k) greatest[k] = in[k].max;
        return op_.workspace(greatest);
    }

    int32_t onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*, int32_t) noexcept override {
        Dims now[Operator::INPUTS];
        if (inputs != Operator::INPUTS) return 1;
        for (int32_t k = 0; k < inputs; ++k) now[k] = in[k].dims;
        return op_.fits(now) ? 0 : 1;
    }
    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override {
        return op_.run(in, inputs, outputs, workspace, stream);
    }
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        for (int k = 0; k < Operator::FIELD_COUNT; ++k) fields_[k] = PluginField(Operator::FIELDS[k].name, &op_.words[k], Operator::FIELDS[k].type, 1);
        collection_.nbFields = Operator::FIELD_COUNT;
        collection_.fields = fields_;
        return &collection_;
    }

  private:
    Operator op_;
    PluginField fields_[Operator::FIELD_COUNT];
    PluginFieldCollection collection_{};
};

template <typename Operator>
class Creator final : public nvinfer1::IPluginCreatorV3One {
  public:
    Creator() {
        for (int k = 0; k < Operator::FIELD_COUNT; ++k) fields_[k] = PluginField(Operator::FIELDS[k].name, nullptr, Operator::FIELDS[k].type, 1);
        collection_.nbFields = Operator::FIELD_COUNT;
        collection_.fields = fields_;
    }
    nvinfer1::IPluginV3* createPlugin(char const*, PluginFieldCollection const* given, nvinfer1::TensorRTPhase) noexcept override {
        Operator op;
        return take_fields(op, given) ? new (std::nothrow) Plugin<Operator>(op) : nullptr;
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    char const* getPluginName() const noexcept override { return Operator::NAME; }
    char const* getPluginVersion() const noexcept override { return VERSION; }
    char const* getPluginNamespace() const noexcept override { return NAMESPACE; }

  private:
    PluginField fields_[Operator::FIELD_COUNT];
    PluginFieldCollection collection_{};
};

}  // namespace fathom
