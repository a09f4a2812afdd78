// GroupNorm and SiLU of a map [batch, channels, pixels]: y = z / (1 + exp(-z)), z = (x - mean) / sqrt(variance + epsilon) * scale + shift.
//
// A thread keeps its values in registers, eight neighbours to a vector. A group that fits the registers of one block is read once and written once
// by fathom_group_norm_silu. A longer one is cut into chunks: fathom_group_norm_partial finds what each chunk holds, fathom_group_norm_apply joins
// that and reads the chunk again. Sums are FP32. They are taken twice, which costs no memory where values lie in registers: of differences from one of
// the values, so a mean far from zero costs no digits; then about the mean that this gives, which also tells by how much it is off (the corrected
// two-pass form; Welford's recurrence would divide for every value). Chunks are joined alike. SiLU is a division: its form with tanh has been compiled
// wrongly by TensorRT.
#include "team.cuh"

struct GroupNormSilu {
    unsigned long long x, scale, shift, y, partials;  // x and y alike; float [channels]; Moments [batch, groups, chunks]
    int batch, channels, pixels, groups, channels_last, is_half;
    float epsilon;
};

enum { EIGHT = 8, WHOLE_THREADS = 1024, WHOLE_HALVES = 40960, WHOLE_FLOATS = 16384, CHUNK_THREADS = 256, CHUNK = 8192, GREATEST_GROUP = 256 };

// Mean (as a float and what the float leaves over), sum of squared differences from it, and count.
struct Moments {
    float mean, rest, squares, count;
};

// Eight neighbours as they lie in memory.
template <bool HALF>
struct Eight {
    unsigned int words[HALF ? 4 : 8];
};

template <bool HALF>
__device__ inline float value_of(const Eight<HALF>& eight, int k) {
    if (HALF) return half_value((unsigned short)(eight.words[k / 2] >> (k % 2 * 16)));
    return *(const float*)&eight.words[HALF ? 0 : k];
}

template <bool HALF>
__device__ inline Eight<HALF> eight_of(const float (&values)[EIGHT]) {
    Eight<HALF> eight;
    for (int k = 0; k < EIGHT; ++k) {
        if (!HALF) *(float*)&eight.words[HALF ? 0 : k] = values[k];
        else if (k % 2 == 0) eight.words[k / 2] = half_pair(values[k], values[k + 1]);
    }
    return eight;
}

// The values of one group, counted along its planes or (channels last) along its channels of one pixel after the other.
struct Group {
    Map x, y;
    int item, first_channel, size, count, pixels;
    bool channels_last, wide, one_channel;  // vectors lie in one piece; and in one channel
};

template <bool HALF>
__device__ inline Group group_of(const GroupNormSilu& p) {
    Group g;
    g.x = map_of(p.x, p.batch, p.channels, p.pixels, p.channels_last, HALF);
    g.y = map_of(p.y, p.batch, p.channels, p.pixels, p.channels_last, HALF);
    g.item = blockIdx.z, g.size = p.channels / p.groups, g.first_channel = blockIdx.y * g.size, g.pixels = p.pixels, g.count = g.size * p.pixels;
    g.channels_last = p.channels_last;
    g.wide = (p.channels_last ? g.size : g.count) % EIGHT == 0 && (p.x | p.y) % 16 == 0 && g.x.pitch % EIGHT == 0;
    g.one_channel = g.wide && !p.channels_last && p.pixels % EIGHT == 0;
    return g;
}

// Where in its group a value lies, and the step to the next one.
struct Spot {
    int channel, pixel;
};

__device__ inline Spot spot_of(const Group& g, int i) {
    const int run = g.channels_last ? g.size : g.pixels, slow = i / run, fast = i - slow * run;
    Spot spot = {g.channels_last ? fast : slow, g.channels_last ? slow : fast};
    return spot;
}

__device__ inline void advance(const Group& g, Spot& spot) {
    int& fast = g.channels_last ? spot.channel : spot.pixel;
    int& slow = g.channels_last ? spot.pixel : spot.channel;
    if (++fast == (g.channels_last ? g.size : g.pixels)) fast = 0, ++slow;
}

template <bool HALF>
__device__ inline uint4* pieces(const Map& map, const Group& g, int first) {
    long long index = place(map, g.item, g.first_channel, 0) + first;
    if (g.channels_last) {
        const Spot spot = spot_of(g, first);
        index = place(map, g.item, g.first_channel + spot.channel, spot.pixel);
    }
    return (uint4*)(map.address + (inside(index, map.size - EIGHT + 1) * (HALF ? 2 : 4)));
}

// Eight values that do not lie in one piece. Called: where they do, registers and instructions are left alone.
template <bool HALF>
__device__ __noinline__ Eight<HALF> gather_eight(const GroupNormSilu p, int first) {
    const Group g = group_of<HALF>(p);
    float values[EIGHT];
    Spot spot = spot_of(g, first);
#pragma unroll
    for (int k = 0; k < EIGHT; ++k) {
        values[k] = first + k < g.count ? get(g.x, g.item, g.first_channel + spot.channel, spot.pixel) : 0.0f;
        advance(g, spot);
    }
    return eight_of<HALF>(values);
}

template <bool HALF>
__device__ inline Eight<HALF> read_eight(const GroupNormSilu& p, const Group& g, int first) {
    if (!g.wide) return gather_eight<HALF>(p, first);
    Eight<HALF> eight;
    const uint4* from = pieces<HALF>(g.x, g, first);
    for (int k = 0; k < (HALF ? 1 : 2); ++k) {
        const uint4 piece = from[k];
        eight.words[4 * k] = piece.x, eight.words[4 * k + 1] = piece.y, eight.words[4 * k + 2] = piece.z, eight.words[4 * k + 3] = piece.w;
    }
    return eight;
}

template <bool HALF>
__device__ inline void write_eight(const Group& g, int first, const float (&values)[EIGHT]) {
    const Eight<HALF> eight = eight_of<HALF>(values);
    uint4* to = pieces<HALF>(g.y, g, first);
    for (int k = 0; k < (HALF ? 1 : 2); ++k) {
        uint4 piece;
        piece.x = eight.words[4 * k], piece.y = eight.words[4 * k + 1], piece.z = eight.words[4 * k + 2], piece.w = eight.words[4 * k + 3];
        to[k] = piece;
    }
}

// A block's part of a group: values `begin` to `end`, VECTORS vectors to a thread.
template <bool HALF, int VECTORS>
struct Kept {
    Eight<HALF> vectors[VECTORS];
};

// The first value of a thread's vector number j.
__device__ inline int first_of(int begin, int j) { return begin + (j * (int)blockDim.x + (int)threadIdx.x) * EIGHT; }

template <bool HALF, int VECTORS>
__device__ inline void read_part(const GroupNormSilu& p, const Group& g, int begin, int end, Kept<HALF, VECTORS>& kept) {
#pragma unroll
    for (int j = 0; j < VECTORS; ++j)
        if (first_of(begin, j) < end) kept.vectors[j] = read_eight<HALF>(p, g, first_of(begin, j));
}

// Two sums over the part, to which `add` adds a value.
template <bool HALF, int VECTORS, typename Add>
__device__ inline void sum_of_part(const Kept<HALF, VECTORS>& kept, int begin, int end, float (&pool)[2 * LANES], float& a, float& b, const Add& add) {
    a = b = 0.0f;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int left = end - first_of(begin, j);
        if (left >= EIGHT) {
#pragma unroll
            for (int k = 0; k < EIGHT; ++k) add(value_of(kept.vectors[j], k), a, b);
        } else {
#pragma unroll
            for (int k = 0; k < EIGHT; ++k)
                if (k < left) add(value_of(kept.vectors[j], k), a, b);
        }
    }
    sum_over_block(a, b, pool);
}

// Moments of the part; every thread gets them.
template <bool HALF, int VECTORS>
__device__ inline Moments moments_of(const Kept<HALF, VECTORS>& kept, int begin, int end, float pivot, float (&pool)[2 * LANES]) {
    Moments found;
    float sum, squares;
    sum_of_part(kept, begin, end, pool, sum, squares, [=](float x, float& a, float&) { a += x - pivot; });
    const float count = (float)(end - begin), mean = pivot + sum / count;
    sum_of_part(kept, begin, end, pool, sum, squares, [=](float x, float& a, float& b) {
        const float distance = x - mean;
        a += distance;
        b = fmaf(distance, distance, b);
    });
    found.mean = mean, found.rest = sum / count, found.squares = squares - sum * found.rest, found.count = count;
    return found;
}

// Scale and shift of one channel, z = x * (a + a_rest) + (b + b_rest), each as a float and what the float leaves over: a value near the mean keeps its digits.
struct Affine {
    float a, a_rest, b, b_rest;
};

__device__ inline Affine affine_of(const GroupNormSilu& p, const Moments& all, int channel) {
    const double scale = ((const float*)p.scale)[inside(channel, p.channels)], shift = ((const float*)p.shift)[inside(channel, p.channels)];
    const double a = scale / sqrt((double)all.squares / (double)all.count + (double)p.epsilon), b = shift - ((double)all.mean + (double)all.rest) * a;
    Affine affine = {(float)a, (float)(a - (double)(float)a), (float)b, (float)(b - (double)(float)b)};
    return affine;
}

template <bool HALF>
__device__ inline float silu_of(const Affine& affine, float x) {
    const float z = fmaf(x, affine.a, affine.b) + fmaf(x, affine.a_rest, affine.b_rest);  // exact before the one rounding
    return HALF ? quick_quotient(z, 1.0f + quick_exp(-z)) : z / (1.0f + expf(-z));
}

// The same where eight values may lie in several channels or pieces.
template <bool HALF>
__device__ __noinline__ void finish_eight(const GroupNormSilu p, int first, const Eight<HALF> eight, const Affine* affines) {
    const Group g = group_of<HALF>(p);
    float values[EIGHT];
    Spot spot = spot_of(g, first);
#pragma unroll
    for (int k = 0; k < EIGHT; ++k) {
        if (first + k >= g.count) break;
        values[k] = silu_of<HALF>(affines[inside(spot.channel, GREATEST_GROUP)], value_of(eight, k));
        if (!g.wide) set(g.y, g.item, g.first_channel + spot.channel, spot.pixel, values[k]);
        advance(g, spot);
    }
    if (g.wide) write_eight<HALF>(g, first, values);
}

template <bool HALF, int VECTORS>
__device__ inline void write_part(const GroupNormSilu& p, const Group& g, int begin, int end, const Kept<HALF, VECTORS>& kept, const Moments& all,
                                  Affine* affines) {
    for (int t = threadIdx.x; t < g.size; t += blockDim.x) affines[inside(t, GREATEST_GROUP)] = affine_of(p, all, g.first_channel + t);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int first = first_of(begin, j);
        if (first >= end) break;
        if (!g.one_channel) {
            finish_eight<HALF>(p, first, kept.vectors[j], affines);
            continue;
        }
        const Affine affine = affines[inside(first / g.pixels, GREATEST_GROUP)];
        float values[EIGHT];
#pragma unroll
        for (int k = 0; k < EIGHT; ++k) values[k] = silu_of<HALF>(affine, value_of(kept.vectors[j], k));
        write_eight<HALF>(g, first, values);
    }
}

template <bool HALF>
__device__ inline void whole_group(const GroupNormSilu& p, float (&pool)[2 * LANES], Affine* affines) {
    enum { VECTORS = (HALF ? WHOLE_HALVES : WHOLE_FLOATS) / WHOLE_THREADS / EIGHT };
    const Group g = group_of<HALF>(p);
    Kept<HALF, VECTORS> kept;
    read_part(p, g, 0, g.count, kept);
    const Moments all = moments_of(kept, 0, g.count, get(g.x, g.item, g.first_channel, 0), pool);
    write_part(p, g, 0, g.count, kept, all, affines);
}

// What chunk number k of this block's group holds.
__device__ inline Moments& partial_at(const GroupNormSilu& p, int k) {
    const long long first = ((long long)blockIdx.z * p.groups + blockIdx.y) * gridDim.x;
    return ((Moments*)p.partials)[inside(first + k, (long long)p.batch * p.groups * gridDim.x)];
}

template <bool HALF>
__device__ inline void part_of_group(const GroupNormSilu& p, float (&pool)[2 * LANES]) {
    const Group g = group_of<HALF>(p);
    const int begin = blockIdx.x * CHUNK, end = min(begin + CHUNK, g.count);
    Kept<HALF, CHUNK / CHUNK_THREADS / EIGHT> kept;
    read_part(p, g, begin, end, kept);
    const Moments found = moments_of(kept, begin, end, get(g.x, g.item, g.first_channel, 0), pool);
    if (threadIdx.x == 0) partial_at(p, blockIdx.x) = found;
}

// The moments of all chunks together, by the same two steps; every thread gets them.
__device__ inline Moments join_parts(const GroupNormSilu& p, int count, float (&pool)[2 * LANES]) {
    const float pivot = partial_at(p, 0).mean;
    float sum = 0.0f, squares = 0.0f;
    for (int k = threadIdx.x; k < (int)gridDim.x; k += blockDim.x) {
        const Moments part = partial_at(p, k);
        sum = fmaf(part.count, (part.mean - pivot) + part.rest, sum);
    }
    sum_over_block(sum, squares, pool);
    const float mean = pivot + sum / (float)count;
    sum = 0.0f;
    for (int k = threadIdx.x; k < (int)gridDim.x; k += blockDim.x) {
        const Moments part = partial_at(p, k);
        const float distance = (part.mean - mean) + part.rest;
        sum = fmaf(part.count, distance, sum);
        squares += fmaf(part.count * distance, distance, part.squares);
    }
    sum_over_block(sum, squares, pool);
    Moments all = {mean, sum / (float)count, squares - sum * (sum / (float)count), (float)count};
    return all;
}

template <bool HALF>
__device__ inline void finish_part(const GroupNormSilu& p, float (&pool)[2 * LANES], Affine* affines) {
    const Group g = group_of<HALF>(p);
    const int begin = blockIdx.x * CHUNK, end = min(begin + CHUNK, g.count);
    Kept<HALF, CHUNK / CHUNK_THREADS / EIGHT> kept;
    read_part(p, g, begin, end, kept);  // under way while the parts are joined
    write_part(p, g, begin, end, kept, join_parts(p, g.count, pool), affines);
}

// Grid: 1, groups, batch; threads: one to a vector, in whole warps, at most WHOLE_THREADS.
extern "C" __global__ void __launch_bounds__(WHOLE_THREADS) fathom_group_norm_silu(const GroupNormSilu p) {
    __shared__ float pool[2 * LANES];
    __shared__ Affine affines[GREATEST_GROUP];
    if (p.is_half) whole_group<true>(p, pool, affines);
    else whole_group<false>(p, pool, affines);
}

// Grid: chunks, groups, batch; CHUNK_THREADS threads.
extern "C" __global__ void __launch_bounds__(CHUNK_THREADS) fathom_group_norm_partial(const GroupNormSilu p) {
    __shared__ float pool[2 * LANES];
    if (p.is_half) part_of_group<true>(p, pool);
    else part_of_group<false>(p, pool);
}

// Grid: chunks, groups, batch; CHUNK_THREADS threads.
extern "C" __global__ void __launch_bounds__(CHUNK_THREADS) fathom_group_norm_apply(const GroupNormSilu p) {
    __shared__ float pool[2 * LANES];
    __shared__ Affine affines[GREATEST_GROUP];
    if (p.is_half) finish_part<true>(p, pool, affines);
    else finish_part<false>(p, pool, affines);
}
