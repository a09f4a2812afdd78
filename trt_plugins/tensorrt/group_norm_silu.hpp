// GroupNormSilu: x [B, C, ...], scale and shift of C values to y like x; see csrc/group_norm_silu.cuh.
#pragma once
#include "../csrc/group_norm_silu.cuh"
#include "operator.hpp"

namespace fathom {

struct GroupNormSiluOperator {
    static constexpr char const* NAME = "GroupNormSilu";
    static constexpr int INPUTS = 3, OUTPUTS = 1, FIELD_COUNT = 2;
    static constexpr Field FIELDS[FIELD_COUNT] = {{"groups", PluginFieldType::kINT32}, {"epsilon", PluginFieldType::kFLOAT32}};
    static constexpr Format ROWS[3][INPUTS + OUTPUTS] = {
        //  x           scale         shift         y
        {HALF_PLANES, FLOAT_PLANES, FLOAT_PLANES, HALF_PLANES},
        {HALF_PIXELS, FLOAT_PLANES, FLOAT_PLANES, HALF_PIXELS},
        {FLOAT_PLANES, FLOAT_PLANES, FLOAT_PLANES, FLOAT_PLANES},
    };
    Word words[FIELD_COUNT] = {{}, {1e-5f}};

    GroupNormSiluOperator() { words[0].whole = 32; }
    bool valid() const { return words[0].whole >= 1 && words[1].real > 0; }

    static void shapes(DimsExprs const* in, DimsExprs* out, IExprBuilder&) { out[0] = in[0]; }

    static long long pixels(Dims const& x) {
        long long pixels = 1;
        for (int k = 2; k < x.nbDims; ++k) pixels *= x.d[k];
        return pixels;
    }

    static long long values(Dims const& tensor) {
        long long count = 1;
        for (int k = 0; k < tensor.nbDims; ++k) count *= tensor.d[k];
        return count;
    }

    bool fits(Dims const* in) const {
        const int groups = words[0].whole;
        if (in[0].nbDims < 3) return false;
        const long long channels = in[0].d[1], size = channels / groups;
        if (values(in[1]) != channels || values(in[2]) != channels) return false;
        return channels % groups == 0 && size <= GREATEST_GROUP && size * pixels(in[0]) < (1ll << 31);
    }

    int chunks(Dims const& x) const { return (int)((x.d[1] / words[0].whole * pixels(x) + CHUNK - 1) / CHUNK); }

    // As if x were FP32: the format is chosen after the size is asked for.
    size_t workspace(Dims const* in) const {
        const bool whole = in[0].d[1] / words[0].whole * pixels(in[0]) <= WHOLE_FLOATS;
        return whole ? 0 : (size_t)in[0].d[0] * words[0].whole * chunks(in[0]) * sizeof(Moments);
    }

    int32_t run(PluginTensorDesc const* in, void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) const {
        GroupNormSilu p;
        Dims const& x = in[0].dims;
        p.x = address(inputs[0]), p.scale = address(inputs[1]), p.shift = address(inputs[2]), p.y = address(outputs[0]), p.partials = address(workspace);
        p.batch = (int)x.d[0], p.channels = (int)x.d[1], p.pixels = (int)pixels(x), p.groups = words[0].whole;
        p.channels_last = is_channels_last(in[0]), p.is_half = is_half(in[0]), p.epsilon = words[1].real;
        const long long length = (long long)p.channels / p.groups * p.pixels;
        if (length <= (p.is_half ? WHOLE_HALVES : WHOLE_FLOATS)) {
            const int vectors = (int)((length + EIGHT - 1) / EIGHT), threads = (vectors + LANES - 1) / LANES * LANES;
            return start(fathom_group_norm_silu, p, 1, p.groups, p.batch, threads < WHOLE_THREADS ? threads : (int)WHOLE_THREADS, stream);
        }
        const int32_t failed = start(fathom_group_norm_partial, p, chunks(x), p.groups, p.batch, CHUNK_THREADS, stream);
        return failed ? failed : start(fathom_group_norm_apply, p, chunks(x), p.groups, p.batch, CHUNK_THREADS, stream);
    }
};

}  // namespace fathom
