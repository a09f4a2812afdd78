// How one text runs as CUDA and as C++: the threads of a block as a team, and tensors whose bounds the host build asserts.
//
// A cooperative kernel is a sequence of phases. On the device every thread runs each phase once and the team meets after it; on the host
// (FATHOM_HOST) one call runs a whole block, phase by phase, over all its threads. Whatever a thread carries from one phase to the next
// lives in Own, whatever the team shares in SHARED.
#pragma once
#include "sampling.cuh"

#ifdef FATHOM_HOST
#define SHARED static thread_local
#define PHASE(thread, size) for (int thread = 0; thread < (size); ++thread)
#define MEET
template <typename T, int SIZE>
struct Own {
    T items[SIZE];
    T& operator[](int thread) { return items[thread]; }
};
static long long out_of_bounds;
static inline long long inside(long long index, long long size) {
    if (index >= 0 && index < size) return index;
    ++out_of_bounds;
    return 0;
}
#else
#define SHARED __shared__
#define PHASE(thread, size) for (int thread = threadIdx.x, once = 1; once; once = 0)
#define MEET __syncthreads()
template <typename T, int SIZE>
struct Own {
    T item;
    __device__ T& operator[](int) { return item; }
};
__device__ inline long long inside(long long index, long long) { return index; }
#endif

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
    const long long index = inside(place(map, item, channel, pixel), map.size);
    if (map.is_half) {
        ((unsigned short*)map.address)[index] = half_bits(value);
    } else {
        ((float*)map.address)[index] = value;
    }
}
