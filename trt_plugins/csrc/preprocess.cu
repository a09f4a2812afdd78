// One look of the network: uint8 [height, width, 3] -> resize, crop, pad, window, mirror, normalise -> float [3, canvas_h, canvas_w].
//
// The host reduces the steps of a protocol to one gather (runtime/kernels/records.py): a region of the photo is resized, the result is
// shifted onto the shaped picture, and only the visible rectangle of that picture shows it; the rest is black.
#include "sampling.cuh"

struct Preprocess {
    unsigned long long photo, out;
    int photo_width;
    int region_top, region_left, region_height, region_width;
    int resized_height, resized_width, kind;
    int shift_top, shift_left;
    int visible_top, visible_left, visible_bottom, visible_right;
    int window_left, window_height, window_width, flip;
    int canvas_height, canvas_width, out_is_half;
    float mean[3], std[3];
};

extern "C" __global__ void fathom_preprocess(const Preprocess p) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= p.canvas_width || y >= p.canvas_height) return;
    float value[3] = {0.0f, 0.0f, 0.0f};  // the canvas beside the window is 0 after normalisation
    if (x < p.window_width && y < p.window_height) {
        const int shaped_x = p.window_left + (p.flip ? p.window_width - 1 - x : x);
        const bool seen = y >= p.visible_top && y < p.visible_bottom && shaped_x >= p.visible_left && shaped_x < p.visible_right;
        if (seen) {
            const Taps row = taps(y - p.shift_top, p.region_height, p.resized_height, p.kind);
            const Taps column = taps(shaped_x - p.shift_left, p.region_width, p.resized_width, p.kind);
            const unsigned char* photo = (const unsigned char*)p.photo;
            const long long upper = (long long)(p.region_top + row.low) * p.photo_width + p.region_left;
            const long long lower = (long long)(p.region_top + row.high) * p.photo_width + p.region_left;
            for (int c = 0; c < 3; ++c) {
                const float above = mix(photo[(upper + column.low) * 3 + c], photo[(upper + column.high) * 3 + c], column.weight);
                const float below = mix(photo[(lower + column.low) * 3 + c], photo[(lower + column.high) * 3 + c], column.weight);
                value[c] = mix(above, below, row.weight) / 255.0f;
            }
        }
        for (int c = 0; c < 3; ++c) value[c] = (value[c] - p.mean[c]) / p.std[c];
    }
    const long long plane = (long long)p.canvas_height * p.canvas_width;
    for (int c = 0; c < 3; ++c) store(p.out, c * plane + (long long)y * p.canvas_width + x, p.out_is_half, value[c]);
}
