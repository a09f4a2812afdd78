// What the operators share: tensors whose bounds the host build asserts, and what the threads of a block find out together.
//
// The text is plain CUDA. With FATHOM_HOST it compiles as C++ on a stand-in of the CUDA it uses, whose threads really wait for each other, and
// every index is checked; the device takes indices as they are.
#pragma once
#include "sampling.cuh"

#ifdef FATHOM_HOST
static long long out_of_bounds;
static inline long long inside(long long index, long long size) {
    if (index >= 0 && index < size) return index;
    ++out_of_bounds;
    return 0;
}
#else
__device__ inline long long inside(long long index, long long) { return index; }
#endif

enum { LANES = 32 };  // of a warp
#define EVERY_LANE 0xffffffffu
#define LOG2_E 1.44269504f

// exp(x) and a / b in two instructions each, a few units of FP32's last place off: for results in FP16. What is below 2^-126 on the way is 0.
#ifdef FATHOM_HOST
static inline float quick_exp(float x) { return expf(x); }
static inline float quick_quotient(float a, float b) { return a / b; }
#else
__device__ inline float quick_exp(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * LOG2_E));
    return power;
}

__device__ inline float quick_quotient(float a, float b) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    return a * inverse;
}
#endif

__device__ inline unsigned int half_pair(float low, float high) { return half_bits(low) | (unsigned int)half_bits(high) << 16; }

// Sums of two numbers over all threads of a block of whole warps; every thread gets both. `pool` is shared, and free for another call.
__device__ inline void sum_over_block(float& a, float& b, float (&pool)[2 * LANES]) {
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    for (int reach = LANES / 2; reach > 0; reach /= 2) {
        a += __shfl_xor_sync(EVERY_LANE, a, reach);
        b += __shfl_xor_sync(EVERY_LANE, b, reach);
    }
    __syncthreads();  // the call before may still be read
    if (lane == 0) pool[warp] = a, pool[LANES + warp] = b;
    __syncthreads();
    a = lane < warps ? pool[lane] : 0.0f;
    b = lane < warps ? pool[LANES + lane] : 0.0f;
    for (int reach = LANES / 2; reach > 0; reach /= 2) {
        a += __shfl_xor_sync(EVERY_LANE, a, reach);
        b += __shfl_xor_sync(EVERY_LANE, b, reach);
    }
}

// A tensor [batch, channels, pixels]: planes one after the other, or (channels last) pixels of channels, padded to a multiple of eight
// where the values have 16 bits, as TensorRT's format HWC8 wants it.
struct Map {
    unsigned long long address;
    long long channels, pixels, size;
    int is_half, pitch;  // pitch: values from one pixel to the next with channels last, else 0
};

__device__ inline Map map_of(unsigned long long address, int batch, int channels, long long pixels, int channels_last, int is_half) {
    Map map;
    map.address = address;
    map.channels = channels;
    map.pixels = pixels;
    map.is_half = is_half;
    map.pitch = channels_last ? (is_half ? (channels + 7) / 8 * 8 : channels) : 0;
    map.size = batch * pixels * (channels_last ? map.pitch : channels);
    return map;
}

__device__ inline long long place(const Map& map, int item, int channel, long long pixel) {
    return map.pitch ? (item * map.pixels + pixel) * map.pitch + channel : (item * map.channels + channel) * map.pixels + pixel;
}

__device__ inline float get(const Map& map, int item, int channel, long long pixel) {
    return load(map.address, inside(place(map, item, channel, pixel), map.size), map.is_half);
}

__device__ inline void set(const Map& map, int item, int channel, long long pixel, float value) {
    store(map.address, inside(place(map, item, channel, pixel), map.size), map.is_half, value);
}
