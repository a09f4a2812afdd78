// BinsExpectation: shape [B, 4, H, W], centers [B, 64, h, w], attractors [B, n, u, v] to depth [B, 1, H, W]; see csrc/bins_expectation.cuh.
#pragma once
#include "../csrc/bins_expectation.cuh"
#include "operator.hpp"

namespace fathom {

struct BinsExpectationOperator {
    static constexpr char const* NAME = "BinsExpectation";
    static constexpr int INPUTS = 3, OUTPUTS = 1, FIELD_COUNT = 3;
    static constexpr Field FIELDS[FIELD_COUNT] = {
        {"alpha", PluginFieldType::kFLOAT32}, {"least_temperature", PluginFieldType::kFLOAT32}, {"greatest_temperature", PluginFieldType::kFLOAT32}};
    static constexpr Format ROWS[3][INPUTS + OUTPUTS] = {
        //  shape         centers       attractors    depth
        {HALF_PLANES, HALF_PLANES, HALF_PLANES, HALF_PLANES},
        {HALF_PIXELS, HALF_PIXELS, HALF_PIXELS, HALF_PIXELS},
        {FLOAT_PLANES, FLOAT_PLANES, FLOAT_PLANES, FLOAT_PLANES},
    };
    Word words[FIELD_COUNT] = {{300.0f}, {0.0212f}, {50.0f}};

    bool valid() const { return words[0].real >= 0 && words[1].real > 0 && words[2].real > words[1].real; }

    static void shapes(DimsExprs const* in, DimsExprs* out, IExprBuilder& builder) {
        out[0] = in[0];
        out[0].d[1] = builder.constant(1);
    }

    bool fits(Dims const* in) const {
        Dims const &shape = in[0], &centers = in[1], &attractors = in[2];
        if (shape.nbDims != 4 || centers.nbDims != 4 || attractors.nbDims != 4) return false;
        if (shape.d[1] != 4 || centers.d[1] != BIN_COUNT || attractors.d[1] < 1) return false;
        if (centers.d[0] != shape.d[0] || attractors.d[0] != shape.d[0]) return false;
        for (int side = 2; side < 4; ++side)
            if (centers.d[side] > attractors.d[side] || attractors.d[side] > shape.d[side]) return false;
        return true;
    }

    size_t workspace(Dims const*) const { return 0; }

    int32_t run(PluginTensorDesc const* in, void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) const {
        BinsExpectation p;
        p.shape = address(inputs[0]), p.centers = address(inputs[1]), p.attractors = address(inputs[2]), p.depth = address(outputs[0]);
        p.batch = (int)in[0].dims.d[0], p.height = (int)in[0].dims.d[2], p.width = (int)in[0].dims.d[3];
        p.coarse_height = (int)in[1].dims.d[2], p.coarse_width = (int)in[1].dims.d[3];
        p.attractor_count = (int)in[2].dims.d[1], p.middle_height = (int)in[2].dims.d[2], p.middle_width = (int)in[2].dims.d[3];
        p.channels_last = is_channels_last(in[0]), p.is_half = is_half(in[0]);
        p.alpha = words[0].real, p.least_temperature = words[1].real, p.greatest_temperature = words[2].real;
        const int across = (p.width + TILE_WIDTH - 1) / TILE_WIDTH, down = (p.height + TILE_HEIGHT - 1) / TILE_HEIGHT;
        return start(fathom_bins_expectation, p, across, down, p.batch, TILE, stream);
    }
};

}  // namespace fathom
