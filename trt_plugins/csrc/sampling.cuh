// Where a resampled pixel reads from, and how 16-bit floats are read and written.
//
// Positions follow runtime/interpolate.py: float32, the multiply-add rounded once. No CUDA header is needed, so NVRTC compiles this
// as it stands; with FATHOM_HOST the same text compiles as C++ and is compared with NumPy on machines without a GPU.
#pragma once

enum Kind { BILINEAR = 0, BILINEAR_CORNERS = 1, NEAREST = 2 };

struct Taps {
    int low, high;
    float weight;  // of the upper tap
};

__device__ inline Taps taps(int index, int size, int wanted, int kind) {
    float source;
    if (kind == BILINEAR_CORNERS) {
        const float scale = wanted > 1 ? (float)(size - 1) / (float)(wanted - 1) : 0.0f;
        source = (float)index * scale;
    } else if (kind == NEAREST) {
        source = floorf((float)index * ((float)size / (float)wanted));
    } else {
        source = fmaxf(fmaf((float)index + 0.5f, (float)size / (float)wanted, -0.5f), 0.0f);
    }
    Taps found;
    found.low = min((int)source, size - 1);
    found.high = min(found.low + 1, size - 1);
    found.weight = kind == NEAREST ? 0.0f : fminf(fmaxf(source - (float)found.low, 0.0f), 1.0f);
    return found;
}

__device__ inline float mix(float low, float high, float weight) { return low + (high - low) * weight; }

#ifndef FATHOM_HOST
__device__ inline unsigned short half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ inline float half_value(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

__device__ inline float load(unsigned long long tensor, long long index, int is_half) {
    return is_half ? half_value(((const unsigned short*)tensor)[index]) : ((const float*)tensor)[index];
}

__device__ inline void store(unsigned long long tensor, long long index, int is_half, float value) {
    if (is_half) {
        ((unsigned short*)tensor)[index] = half_bits(value);
    } else {
        ((float*)tensor)[index] = value;
    }
}
