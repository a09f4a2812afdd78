// From the network's output back to the photo's own pixels, and a look at the output for what no working network puts out.
#include "sampling.cuh"

struct Window {
    int left, flip, fill;
};

struct Postprocess {
    unsigned long long tensor, windows, values, valid;  // [count, planes, height, width]; Window[count]; float and uint8 [photo_h, photo_w]
    int count, planes, height, width, tensor_is_half, upsample;
    int window_height, window_width;
    int photo_height, photo_width;
    int region_top, region_left, region_height, region_width;
    int resized_height, resized_width, kind;
    int shift_top, shift_left;
    int visible_top, visible_left, visible_bottom, visible_right;
};

// One item of the output, brought to the window's size.
__device__ inline float in_window(const Postprocess& p, int item, int plane, int y, int x) {
    const Taps row = taps(y, p.height, p.window_height, p.upsample);
    const Taps column = taps(x, p.width, p.window_width, p.upsample);
    const long long start = ((long long)item * p.planes + plane) * p.height;
    const long long upper = (start + row.low) * p.width, lower = (start + row.high) * p.width;
    const float above = mix(load(p.tensor, upper + column.low, p.tensor_is_half), load(p.tensor, upper + column.high, p.tensor_is_half), column.weight);
    const float below = mix(load(p.tensor, lower + column.low, p.tensor_is_half), load(p.tensor, lower + column.high, p.tensor_is_half), column.weight);
    return mix(above, below, row.weight);
}

// The mean of all windows over one pixel of the shaped picture; filling windows count only where no other one does.
__device__ inline bool in_picture(const Postprocess& p, int y, int x, float found[2]) {
    const Window* windows = (const Window*)p.windows;
    for (int fill = 0; fill < 2; ++fill) {
        float sum[2] = {0.0f, 0.0f};
        int seen = 0;
        for (int item = 0; item < p.count; ++item) {
            const int inside = x - windows[item].left;
            if (windows[item].fill != fill || inside < 0 || inside >= p.window_width) continue;
            const int column = windows[item].flip ? p.window_width - 1 - inside : inside;
            for (int plane = 0; plane < p.planes; ++plane) sum[plane] += in_window(p, item, plane, y, column);
            ++seen;
        }
        if (seen) {
            for (int plane = 0; plane < p.planes; ++plane) found[plane] = sum[plane] / (float)seen;
            return true;
        }
    }
    return false;
}

extern "C" __global__ void fathom_postprocess(const Postprocess p) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= p.photo_width || y >= p.photo_height) return;
    const int region_y = y - p.region_top, region_x = x - p.region_left;
    float value[2] = {0.0f, 0.0f};
    float certain = 0.0f;  // weight of the taps that are valid
    if (region_y >= 0 && region_y < p.region_height && region_x >= 0 && region_x < p.region_width) {
        const Taps row = taps(region_y, p.resized_height, p.region_height, p.kind);
        const Taps column = taps(region_x, p.resized_width, p.region_width, p.kind);
        for (int tap = 0; tap < 4; ++tap) {
            const float weight = (tap & 2 ? row.weight : 1.0f - row.weight) * (tap & 1 ? column.weight : 1.0f - column.weight);
            if (weight == 0.0f) continue;
            const int shaped_y = (tap & 2 ? row.high : row.low) + p.shift_top;
            const int shaped_x = (tap & 1 ? column.high : column.low) + p.shift_left;
            const bool seen = shaped_y >= p.visible_top && shaped_y < p.visible_bottom && shaped_x >= p.visible_left && shaped_x < p.visible_right;
            float found[2] = {0.0f, 0.0f};
            if (!seen || !in_picture(p, shaped_y, shaped_x, found)) continue;
            for (int plane = 0; plane < p.planes; ++plane) value[plane] += weight * found[plane];
            certain += weight;
        }
    }
    const bool valid = certain > 1.0f - 1e-6f;
    const float result = p.planes == 2 ? (value[1] > value[0] ? 1.0f : 0.0f) : value[0];
    const long long index = (long long)y * p.photo_width + x;
    ((float*)p.values)[index] = valid ? result : 0.0f;
    ((unsigned char*)p.valid)[index] = valid;
}

struct Inspect {
    unsigned long long tensor, found;  // [items, item_size]; int[items][3]: values that are not finite, least, greatest (as ordered ints)
    int items, item_size, tensor_is_half;
};

// Finite floats as ints of the same order, so that integer atomics find the extremes.
__device__ inline int ordered(float value) {
    const int bits = __float_as_int(value);
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

extern "C" __global__ void fathom_inspect(const Inspect p) {
    const int item = blockIdx.y;
    const int stride = gridDim.x * blockDim.x;
    int bad = 0, least = 0x7fffffff, greatest = -0x7fffffff - 1;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.item_size; i += stride) {
        const float value = load(p.tensor, (long long)item * p.item_size + i, p.tensor_is_half);
        if (!(fabsf(value) <= 3.402823466e38f)) {  // NaN compares false
            ++bad;
        } else {
            least = min(least, ordered(value));
            greatest = max(greatest, ordered(value));
        }
    }
    int* found = (int*)p.found + item * 3;
    if (bad) atomicAdd(found, bad);
    atomicMin(found + 1, least);
    atomicMax(found + 2, greatest);
}
