// The plugin library of one TensorRT major version: what IPluginRegistry::loadLibrary looks for (8.6 and later).
//
// Nothing registers itself when the library is opened, so opening it twice or closing it leaves no dangling creator: the registry that
// loads it registers and deregisters the creators below, which live as long as the library does.
#include "bins_expectation.hpp"
#include "cross_attention.hpp"
#include "group_norm_silu.hpp"

#if NV_TENSORRT_MAJOR >= 10
#include "plugin_v3.hpp"
using AnyCreator = nvinfer1::IPluginCreatorInterface;
#define LISTING getCreators
#else
#include "plugin_v2.hpp"
using AnyCreator = nvinfer1::IPluginCreator;
#define LISTING getPluginCreators
#endif

#define EXPORTED extern "C" __attribute__((visibility("default")))
#define WORDS_OF(number) #number
#define WORDS(number) WORDS_OF(number)

// Read from the file, before anything in it runs: which release this library is for.
EXPORTED char const fathom_plugins_for[];
__attribute__((used)) char const fathom_plugins_for[] = "fathom plugins for TensorRT " WORDS(NV_TENSORRT_MAJOR) "." WORDS(NV_TENSORRT_MINOR);

EXPORTED AnyCreator* const* LISTING(int32_t& count) {
    static fathom::Creator<fathom::BinsExpectationOperator> bins_expectation;
    static fathom::Creator<fathom::GroupNormSiluOperator> group_norm_silu;
    static fathom::Creator<fathom::CrossAttentionOperator> cross_attention;
    static AnyCreator* const creators[] = {&bins_expectation, &group_norm_silu, &cross_attention};
    count = (int32_t)(sizeof creators / sizeof *creators);
    return creators;
}

#if NV_TENSORRT_MAJOR >= 10 || NV_TENSORRT_MINOR >= 6
EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder*) {}  // these plugins have nothing to log
#else
// TensorRT 8.5 loads no libraries: the caller opens this one, keeps it open, and registers its creators with these two.
EXPORTED int32_t fathom_deregister(nvinfer1::IPluginRegistry* registry) {
    int32_t count = 0, failed = 0;
    AnyCreator* const* creators = LISTING(count);
    for (int32_t i = 0; i < count; ++i)
        if (registry->getPluginCreator(creators[i]->getPluginName(), fathom::VERSION, fathom::NAMESPACE) == creators[i])
            failed += !registry->deregisterCreator(*creators[i]);
    return failed;
}

// All of them, or none: the number of names that somebody else holds. Twice registers once.
EXPORTED int32_t fathom_register(nvinfer1::IPluginRegistry* registry) {
    int32_t count = 0, failed = 0;
    AnyCreator* const* creators = LISTING(count);
    for (int32_t i = 0; i < count; ++i) {
        AnyCreator const* held = registry->getPluginCreator(creators[i]->getPluginName(), fathom::VERSION, fathom::NAMESPACE);
        failed += held ? held != creators[i] : !registry->registerCreator(*creators[i], fathom::NAMESPACE);
    }
    if (failed) fathom_deregister(registry);
    return failed;
}
#endif
