// GroupNorm and SiLU of a map [batch, channels, pixels]: y = z / (1 + exp(-z)), z = (x - mean) / sqrt(variance + epsilon) * scale + shift.
//
// A group that fits the block's shared memory is read once and written once by fathom_group_norm_silu. A longer one is cut into chunks:
// fathom_group_norm_partial finds each chunk's mean and sum of squares, fathom_group_norm_apply joins them and reads the chunk again.
// Welford's recurrence runs in FP32 on differences from the chunk's first value, so a mean far from zero costs no digits; the few numbers
// per thread, group and channel are joined in double. SiLU is a division: its form with tanh has been compiled wrongly by TensorRT.
#include "team.cuh"

struct GroupNormSilu {
    unsigned long long x, scale, shift, y, partials;  // x and y alike; float [channels]; double [batch, groups, chunks, 3]: count, mean, squares
    int batch, channels, pixels, groups, chunk, chunks, channels_last, is_half;
    float epsilon;
};

enum { NORM_THREADS = 256, WHOLE_WORDS = 10240, GREATEST_GROUP = 256, CHUNK = 8192 };  // words of 4 bytes: 20480 halves; channels of a group

// Count, mean and sum of squared differences from the mean.
struct Moments {
    double count, mean, squares;
};

__device__ inline Moments join(const Moments& a, const Moments& b) {
    Moments both;
    both.count = a.count + b.count;
    if (both.count == 0.0) return a;
    const double distance = b.mean - a.mean, part = b.count / both.count;
    both.mean = a.mean + distance * part;
    both.squares = a.squares + b.squares + distance * distance * a.count * part;
    return both;
}

// Value number i of a group: planes one after the other, or the group's channels of each pixel.
__device__ inline void group_place(const GroupNormSilu& p, int group, int i, int& channel, int& pixel) {
    const int size = p.channels / p.groups;
    channel = group * size + (p.channels_last ? i % size : i / p.pixels);
    pixel = p.channels_last ? i / size : i % p.pixels;
}

__device__ inline float group_value(const GroupNormSilu& p, const Map& x, int item, int group, int i) {
    int channel, pixel;
    group_place(p, group, i, channel, pixel);
    return get(x, item, channel, pixel);
}

// Welford's recurrence over every NORM_THREADS-th value from `first` on.
template <typename Value>
__device__ inline Moments moments_of(const Value& value, int thread, int first, int last, float pivot) {
    float mean = 0.0f, squares = 0.0f;
    int count = 0;
    for (int i = first + thread; i < last; i += NORM_THREADS) {
        const float distance = value(i) - pivot, from_old = distance - mean;
        mean += from_old / (float)++count;
        squares += from_old * (distance - mean);
    }
    Moments found = {(double)count, (double)pivot + (double)mean, (double)squares};
    return found;
}

// Scale and shift of one channel, z = x * (a + a_rest) + (b + b_rest), each as a float and what the float leaves over.
struct Affine {
    float a, a_rest, b, b_rest;
};

__device__ inline Affine affine_of(const GroupNormSilu& p, const Moments& all, int channel) {
    const double scale = ((const float*)p.scale)[inside(channel, p.channels)], shift = ((const float*)p.shift)[inside(channel, p.channels)];
    const double a = scale / sqrt(all.squares / all.count + (double)p.epsilon), b = shift - all.mean * a;
    Affine affine = {(float)a, (float)(a - (double)(float)a), (float)b, (float)(b - (double)(float)b)};
    return affine;
}

__device__ inline float silu_of(const Affine& affine, float x) {
    const float z = fmaf(x, affine.a, affine.b) + fmaf(x, affine.a_rest, affine.b_rest);  // exact before the one rounding, even where x is near the mean
    return z / (1.0f + expf(-z));
}

// The team's moments joined into the first; `pool` holds one for each thread.
#define JOIN_TEAM(pool)                                                                       \
    for (int reach = NORM_THREADS / 2; reach > 0; reach /= 2) {                               \
        PHASE(t, NORM_THREADS) if (t < reach) pool[t] = join(pool[t], pool[t + reach]);       \
        MEET;                                                                                 \
    }

// Grid: 1, groups, batch; NORM_THREADS threads.
extern "C" __global__ void fathom_group_norm_silu(const GroupNormSilu p) {
    const int group = blockIdx.y, item = blockIdx.z, size = p.channels / p.groups, count = size * p.pixels;
    const Map x = map_of(p.x, p.batch, p.channels, p.pixels, p.channels_last, p.is_half), y = map_of(p.y, p.batch, p.channels, p.pixels, p.channels_last, p.is_half);
    SHARED unsigned int words[WHOLE_WORDS];
    SHARED Moments pool[NORM_THREADS];
    Affine* affines = (Affine*)pool;  // takes the pool's place once it is joined
    const int is_half = p.is_half;
    const auto kept = [=](int i) { return is_half ? half_value(((const unsigned short*)words)[inside(i, 2 * WHOLE_WORDS)]) : ((const float*)words)[inside(i, WHOLE_WORDS)]; };
    PHASE(t, NORM_THREADS) {
        for (int i = t; i < count; i += NORM_THREADS) {
            const float value = group_value(p, x, item, group, i);
            if (is_half) {
                ((unsigned short*)words)[inside(i, 2 * WHOLE_WORDS)] = half_bits(value);
            } else {
                ((float*)words)[inside(i, WHOLE_WORDS)] = value;
            }
        }
    }
    MEET;
    PHASE(t, NORM_THREADS) pool[t] = moments_of(kept, t, 0, count, kept(0));
    MEET;
    JOIN_TEAM(pool)
    const Moments all = pool[0];
    MEET;
    PHASE(t, NORM_THREADS) if (t < size) affines[inside(t, GREATEST_GROUP)] = affine_of(p, all, group * size + t);
    MEET;
    PHASE(t, NORM_THREADS) {
        for (int i = t; i < count; i += NORM_THREADS) {
            int channel, pixel;
            group_place(p, group, i, channel, pixel);
            set(y, item, channel, pixel, silu_of(affines[inside(channel - group * size, GREATEST_GROUP)], kept(i)));
        }
    }
}

// Grid: chunks, groups, batch; NORM_THREADS threads.
extern "C" __global__ void fathom_group_norm_partial(const GroupNormSilu p) {
    const int group = blockIdx.y, item = blockIdx.z, count = p.channels / p.groups * p.pixels;
    const int first = blockIdx.x * p.chunk, last = min(first + p.chunk, count);
    const Map x = map_of(p.x, p.batch, p.channels, p.pixels, p.channels_last, p.is_half);
    SHARED Moments pool[NORM_THREADS];
    const auto value = [&](int i) { return group_value(p, x, item, group, i); };
    PHASE(t, NORM_THREADS) pool[t] = moments_of(value, t, first, last, value(first));
    MEET;
    JOIN_TEAM(pool)
    PHASE(t, NORM_THREADS) if (t == 0) {
        const long long at = ((long long)item * p.groups + group) * p.chunks + blockIdx.x;
        ((Moments*)p.partials)[inside(at, (long long)p.batch * p.groups * p.chunks)] = pool[0];
    }
}

// Grid: chunks, groups, batch; NORM_THREADS threads.
extern "C" __global__ void fathom_group_norm_apply(const GroupNormSilu p) {
    const int group = blockIdx.y, item = blockIdx.z, size = p.channels / p.groups, count = size * p.pixels;
    const int first = blockIdx.x * p.chunk, last = min(first + p.chunk, count);
    const Map x = map_of(p.x, p.batch, p.channels, p.pixels, p.channels_last, p.is_half), y = map_of(p.y, p.batch, p.channels, p.pixels, p.channels_last, p.is_half);
    SHARED Moments pool[NORM_THREADS];
    Affine* affines = (Affine*)pool;
    PHASE(t, NORM_THREADS) {
        Moments mine = {0.0, 0.0, 0.0};
        const long long start = ((long long)item * p.groups + group) * p.chunks;
        for (int chunk = t; chunk < p.chunks; chunk += NORM_THREADS)
            mine = join(mine, ((const Moments*)p.partials)[inside(start + chunk, (long long)p.batch * p.groups * p.chunks)]);
        pool[t] = mine;
    }
    MEET;
    JOIN_TEAM(pool)
    const Moments all = pool[0];
    MEET;
    PHASE(t, NORM_THREADS) if (t < size) affines[inside(t, GREATEST_GROUP)] = affine_of(p, all, group * size + t);
    MEET;
    PHASE(t, NORM_THREADS) {
        for (int i = first + t; i < last; i += NORM_THREADS) {
            int channel, pixel;
            group_place(p, group, i, channel, pixel);
            set(y, item, channel, pixel, silu_of(affines[inside(channel - group * size, GREATEST_GROUP)], get(x, item, channel, pixel)));
        }
    }
}
