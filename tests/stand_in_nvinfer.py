"""What our plugin classes use of TensorRT's plugin interface, declared anew, so that they compile and run in tests on machines without its headers.

Releases 8.5 and 8.6 (``IPluginV2DynamicExt``) and 10 and later (``IPluginV3``). Nothing here tells whether the real headers agree: that is what
``FATHOM_TENSORRT_INCLUDE`` is for.
"""

TEXT = r"""
#pragma once
#include <cstddef>
#include <cstdint>
#include "NvInferVersion.h"
#define FATHOM_STAND_IN 1
#ifndef CUDART_VERSION
using cudaStream_t = void*;
#endif
namespace nvinfer1 {
#if NV_TENSORRT_MAJOR >= 10
using Extent = int64_t;
#else
using Extent = int32_t;
#endif
enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3 };
enum class TensorFormat : int32_t { kLINEAR = 0, kCHW2 = 1, kHWC8 = 2, kCHW4 = 3, kCHW16 = 4, kCHW32 = 5 };
enum class PluginFieldType : int32_t { kFLOAT16 = 0, kFLOAT32 = 1, kINT32 = 5 };
struct Dims { int32_t nbDims; Extent d[8]; };
struct IDimensionExpr;
struct DimsExprs { int32_t nbDims; IDimensionExpr const* d[8]; };
struct IExprBuilder { virtual IDimensionExpr const* constant(Extent value) noexcept = 0; };
struct PluginTensorDesc { Dims dims; DataType type; TensorFormat format; float scale; };
struct DynamicPluginTensorDesc { PluginTensorDesc desc; Dims min, max; };
struct PluginField {
    char const* name = nullptr;
    void const* data = nullptr;
    PluginFieldType type = PluginFieldType::kFLOAT16;
    int32_t length = 0;
    PluginField() = default;
    PluginField(char const* n, void const* d, PluginFieldType t, int32_t l) : name(n), data(d), type(t), length(l) {}
};
struct PluginFieldCollection { int32_t nbFields; PluginField const* fields; };
struct ILoggerFinder;
#if NV_TENSORRT_MAJOR >= 10
enum class PluginCapabilityType : int32_t { kCORE, kBUILD, kRUNTIME };
enum class TensorRTPhase : int32_t { kBUILD, kRUNTIME };
struct IPluginResourceContext;
struct IPluginCapability { virtual ~IPluginCapability() = default; };
struct IPluginV3 {
    virtual ~IPluginV3() = default;
    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType) noexcept = 0;
    virtual IPluginV3* clone() noexcept = 0;
};
struct IPluginV3OneCore : IPluginCapability {
    virtual char const* getPluginName() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};
struct IPluginV3OneBuild : IPluginCapability {
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual int32_t getOutputDataTypes(DataType*, int32_t, DataType const*, int32_t) const noexcept = 0;
    virtual int32_t getOutputShapes(DimsExprs const*, int32_t, DimsExprs const*, int32_t, DimsExprs*, int32_t, IExprBuilder&) noexcept = 0;
    virtual bool supportsFormatCombination(int32_t, DynamicPluginTensorDesc const*, int32_t, int32_t) noexcept = 0;
    virtual int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept = 0;
    virtual size_t getWorkspaceSize(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) const noexcept { return 0; }
};
struct IPluginV3OneRuntime : IPluginCapability {
    virtual int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept = 0;
    virtual int32_t enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const*, void* const*, void*, cudaStream_t) noexcept = 0;
    virtual IPluginV3* attachToContext(IPluginResourceContext*) noexcept = 0;
    virtual PluginFieldCollection const* getFieldsToSerialize() noexcept = 0;
};
struct IPluginCreatorInterface { virtual ~IPluginCreatorInterface() = default; };
struct IPluginCreatorV3One : IPluginCreatorInterface {
    virtual IPluginV3* createPlugin(char const*, PluginFieldCollection const*, TensorRTPhase) noexcept = 0;
    virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
    virtual char const* getPluginName() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};
#else
struct IPluginV2 {
    virtual ~IPluginV2() = default;
    virtual char const* getPluginType() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual int32_t initialize() noexcept = 0;
    virtual void terminate() noexcept = 0;
    virtual size_t getSerializationSize() const noexcept = 0;
    virtual void serialize(void*) const noexcept = 0;
    virtual void destroy() noexcept = 0;
    virtual void setPluginNamespace(char const*) noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};
struct IPluginV2DynamicExt : IPluginV2 {
    virtual IPluginV2DynamicExt* clone() const noexcept = 0;
    virtual DataType getOutputDataType(int32_t, DataType const*, int32_t) const noexcept = 0;
    virtual DimsExprs getOutputDimensions(int32_t, DimsExprs const*, int32_t, IExprBuilder&) noexcept = 0;
    virtual bool supportsFormatCombination(int32_t, PluginTensorDesc const*, int32_t, int32_t) noexcept = 0;
    virtual void configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept = 0;
    virtual size_t getWorkspaceSize(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) const noexcept = 0;
    virtual int32_t enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const*, void* const*, void*, cudaStream_t) noexcept = 0;
};
struct IPluginCreator {
    virtual ~IPluginCreator() = default;
    virtual char const* getPluginName() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
    virtual IPluginV2* createPlugin(char const*, PluginFieldCollection const*) noexcept = 0;
    virtual IPluginV2* deserializePlugin(char const*, void const*, size_t) noexcept = 0;
    virtual void setPluginNamespace(char const*) noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};
struct IPluginRegistry {
    virtual bool registerCreator(IPluginCreator&, char const*) noexcept = 0;
    virtual bool deregisterCreator(IPluginCreator const&) noexcept = 0;
    virtual IPluginCreator* getPluginCreator(char const*, char const*, char const*) noexcept = 0;
};
#endif
}  // namespace nvinfer1
"""
