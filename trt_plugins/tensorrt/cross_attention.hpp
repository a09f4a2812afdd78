// CrossAttention: query [B, h, N, d], keys [B or 1, h, d, T], values [B or 1, h, T, d] to attended [B, h, N, d] and map [B, N, T];
// see csrc/cross_attention.cuh.
#pragma once
#include "../csrc/cross_attention.cuh"
#include "operator.hpp"

namespace fathom {

struct CrossAttentionOperator {
    static constexpr char const* NAME = "CrossAttention";
    static constexpr int INPUTS = 3, OUTPUTS = 2, FIELD_COUNT = 1;
    static constexpr Field FIELDS[FIELD_COUNT] = {{"scale", PluginFieldType::kFLOAT32}};
    static constexpr Format ROWS[2][INPUTS + OUTPUTS] = {
        //  query         keys          values        attended      map
        {HALF_PLANES, HALF_PLANES, HALF_PLANES, HALF_PLANES, HALF_PLANES},
        {FLOAT_PLANES, FLOAT_PLANES, FLOAT_PLANES, FLOAT_PLANES, FLOAT_PLANES},
    };
    Word words[FIELD_COUNT] = {{1.0f}};

    bool valid() const { return words[0].real > 0; }

    static void shapes(DimsExprs const* in, DimsExprs* out, IExprBuilder&) {
        out[0] = in[0];
        out[1].nbDims = 3;
        out[1].d[0] = in[0].d[0];
        out[1].d[1] = in[0].d[2];
        out[1].d[2] = in[1].d[3];
    }

    bool fits(Dims const* in) const {
        Dims const &query = in[0], &keys = in[1], &values = in[2];
        if (query.nbDims != 4 || keys.nbDims != 4 || values.nbDims != 4) return false;
        if (keys.d[0] != values.d[0] || (keys.d[0] != 1 && keys.d[0] != query.d[0])) return false;
        if (keys.d[1] != query.d[1] || values.d[1] != query.d[1] || keys.d[2] != query.d[3] || values.d[3] != query.d[3]) return false;
        return keys.d[3] == values.d[2] && keys.d[3] <= MOST_TOKENS && query.d[3] <= MOST_WIDTH;
    }

    size_t workspace(Dims const*) const { return 0; }

    int32_t run(PluginTensorDesc const* in, void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) const {
        CrossAttention p;
        p.query = address(inputs[0]), p.keys = address(inputs[1]), p.values = address(inputs[2]);
        p.attended = address(outputs[0]), p.map = address(outputs[1]);
        p.batch = (int)in[0].dims.d[0], p.heads = (int)in[0].dims.d[1], p.positions = (int)in[0].dims.d[2], p.width = (int)in[0].dims.d[3];
        p.tokens = (int)in[1].dims.d[3], p.text_batch = (int)in[1].dims.d[0], p.is_half = is_half(in[0]), p.scale = words[0].real;
        const int length = p.is_half ? p.tokens : MOST_TOKENS;
        const auto kernel = length <= 40 ? fathom_cross_attention_40 : length <= 80 ? fathom_cross_attention_80 : fathom_cross_attention_128;
        return start(kernel, p, (p.positions + POSITIONS - 1) / POSITIONS, 1, p.batch, ATTENTION_THREADS, stream);
    }
};

}  // namespace fathom
