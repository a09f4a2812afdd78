// Cross-attention with its map: softmax(scale * q k) v for each head, and the mean of the probabilities over the heads, in one pass.
//
// The probabilities [heads, positions, tokens] are never written. A block holds POSITIONS positions, each of its warps one head. Scores, probabilities and
// sums stay in registers (of a text longer than 80 tokens and of FP32 in the thread's own memory), laid out as the tensor cores' product m16n8k8 has them,
// whose sum is at once the left side of the next product. Sums are FP32. Left sides in FP16 are exact: queries are FP16 as they are, and a probability,
// times 2^15, goes in as two FP16 numbers, high and low. FP32 tensors take the same way by shuffles in the place of tensor cores.
// Up to MOST_TOKENS tokens and MOST_WIDTH values a head.
#include "team.cuh"

struct CrossAttention {
    unsigned long long query, keys, values, attended, map;  // [b, h, n, d], [b or 1, h, d, t], [b or 1, h, t, d], [b, h, n, d], [b, n, t]
    int batch, heads, positions, width, tokens, text_batch, is_half;
    float scale;
};

enum { ATTENTION_THREADS = 256, HEADS_AT_ONCE = ATTENTION_THREADS / LANES, POSITIONS = 16, MOST_TOKENS = 128, MOST_WIDTH = 256 };
enum { STEP = 8, SUMMED_AT_ONCE = 32 };  // tokens, channels or products that one m16n8k8 takes; channels
#define LOWEST -3.402823466e38f  // a row of nothing but -Inf is NaN all the same
#define PROBABILITY_UNIT 32768.0f

// Two neighbours along the summed axis, in the tensors' type.
template <bool HALF>
struct Pair;
template <>
struct Pair<true> {
    unsigned int bits;
};
template <>
struct Pair<false> {
    float low, high;
};

// Lane l of a warp holds of a left side [16, 8] rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next (a[0], a[1]); of a right side [8, 8] rows
// 2 (l % 4) and the next, column l / 4; of a sum [16, 8] as of a left side, each number for itself (sum[0..1], sum[2..3]). PTX ISA, "mma.m16n8k8".

// The pair of any lane.
#ifdef FATHOM_HOST
template <bool HALF>
using Pairs = host::Shown<Pair<HALF>>;
#else
__device__ inline Pair<true> from_lane(const Pair<true>& pair, int lane) {
    Pair<true> found = {__shfl_sync(EVERY_LANE, pair.bits, lane)};
    return found;
}

__device__ inline Pair<false> from_lane(const Pair<false>& pair, int lane) {
    Pair<false> found = {__shfl_sync(EVERY_LANE, pair.low, lane), __shfl_sync(EVERY_LANE, pair.high, lane)};
    return found;
}

template <bool HALF>
class Pairs {
  public:
    __device__ explicit Pairs(const Pair<HALF>& mine) : mine_(mine) {}
    __device__ Pair<HALF> of(int lane) const { return from_lane(mine_, lane); }

  private:
    const Pair<HALF>& mine_;
};
#endif

__device__ inline float low_of(const Pair<true>& pair) { return half_value((unsigned short)pair.bits); }
__device__ inline float high_of(const Pair<true>& pair) { return half_value((unsigned short)(pair.bits >> 16)); }
__device__ inline float low_of(const Pair<false>& pair) { return pair.low; }
__device__ inline float high_of(const Pair<false>& pair) { return pair.high; }

// sum + a b without tensor cores. A function that is called: the sums of a long text would make hundreds of copies of it.
template <bool HALF>
__device__ __noinline__ float4 product_by_shuffles(float4 sum, Pair<HALF> a0, Pair<HALF> a1, Pair<HALF> b) {
    const int lane = threadIdx.x % LANES, row = lane / 4, column = lane % 4 * 2;
    const Pairs<HALF> uppers(a0), lowers(a1), rights(b);
    for (int k = 0; k < 4; ++k) {
        const Pair<HALF> upper = uppers.of(row * 4 + k), lower = lowers.of(row * 4 + k);
        const Pair<HALF> left = rights.of(column * 4 + k), right = rights.of((column + 1) * 4 + k);
        sum.x = fmaf(high_of(upper), high_of(left), fmaf(low_of(upper), low_of(left), sum.x));
        sum.y = fmaf(high_of(upper), high_of(right), fmaf(low_of(upper), low_of(right), sum.y));
        sum.z = fmaf(high_of(lower), high_of(left), fmaf(low_of(lower), low_of(left), sum.z));
        sum.w = fmaf(high_of(lower), high_of(right), fmaf(low_of(lower), low_of(right), sum.w));
    }
    return sum;
}

template <bool HALF>
__device__ inline void multiply_by_shuffles(float (&sum)[4], const Pair<HALF> (&a)[2], const Pair<HALF>& b) {
    const float4 found = product_by_shuffles<HALF>(make_float4(sum[0], sum[1], sum[2], sum[3]), a[0], a[1], b);
    sum[0] = found.x, sum[1] = found.y, sum[2] = found.z, sum[3] = found.w;
}

__device__ inline void multiply(float (&sum)[4], const Pair<false> (&a)[2], const Pair<false>& b) { multiply_by_shuffles(sum, a, b); }

__device__ inline void multiply(float (&sum)[4], const Pair<true> (&a)[2], const Pair<true>& b) {
#if defined(FATHOM_HOST) || __CUDA_ARCH__ < 750
    multiply_by_shuffles(sum, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0].bits), "r"(a[1].bits), "r"(b.bits));
#endif
}

// Two values of a tensor, 0 for one that is not there.
__device__ inline void read_pair(Pair<true>& pair, unsigned long long tensor, long long first, long long second, long long size, bool has_first,
                                 bool has_second) {
    const unsigned short* from = (const unsigned short*)tensor;
    pair.bits = (has_first ? from[inside(first, size)] : 0u) | (has_second ? (unsigned int)from[inside(second, size)] : 0u) << 16;
}

__device__ inline void read_pair(Pair<false>& pair, unsigned long long tensor, long long first, long long second, long long size, bool has_first,
                                 bool has_second) {
    const float* from = (const float*)tensor;
    pair.low = has_first ? from[inside(first, size)] : 0.0f;
    pair.high = has_second ? from[inside(second, size)] : 0.0f;
}

// Probabilities of eight tokens as a left side: four numbers a lane. Those in FP16 are split into two numbers each; where one is not 0, neither part is,
// so that its product with an infinite value is infinite and not NaN.
template <bool HALF>
struct Probabilities;

template <>
struct Probabilities<false> {
    Pair<false> sides[2];
    __device__ void take(const float (&p)[4]) {
        sides[0].low = p[0], sides[0].high = p[1];
        sides[1].low = p[2], sides[1].high = p[3];
    }
    __device__ void multiply_into(float (&sum)[4], const Pair<false>& b) const { multiply(sum, sides, b); }
    static __device__ float unit() { return 1.0f; }
};

template <>
struct Probabilities<true> {
    Pair<true> high[2], low[2];
    __device__ void take(const float (&p)[4]) {
        for (int k = 0; k < 2; ++k) {
            unsigned int parts[2][2];
            for (int j = 0; j < 2; ++j) split(p[2 * k + j] * PROBABILITY_UNIT, parts[0][j], parts[1][j]);
            high[k].bits = parts[0][0] | parts[0][1] << 16;
            low[k].bits = parts[1][0] | parts[1][1] << 16;
        }
    }
    __device__ void multiply_into(float (&sum)[4], const Pair<true>& b) const {
        multiply(sum, high, b);
        multiply(sum, low, b);
    }
    static __device__ float unit() { return PROBABILITY_UNIT; }
    static __device__ void split(float p, unsigned int& upper, unsigned int& lower) {
        unsigned short first = half_bits(p);
        if (half_value(first) > p) --first;  // rounded down, so that the rest is no negative number
        unsigned short rest = half_bits(p - half_value(first));
        if (p > 0.0f && first == 0) first = 1;
        if (p > 0.0f && rest == 0) rest = 1;
        upper = first, lower = rest;
    }
};

// Over the four lanes that share a row.
__device__ inline float greatest_of_row(float value) {
    value = fmaxf(value, __shfl_xor_sync(EVERY_LANE, value, 1));
    return fmaxf(value, __shfl_xor_sync(EVERY_LANE, value, 2));
}

__device__ inline float sum_of_row(float value) {
    value += __shfl_xor_sync(EVERY_LANE, value, 1);
    return value + __shfl_xor_sync(EVERY_LANE, value, 2);
}

// How often a loop over the tokens is written out. Once: scores then lie in memory. Long texts and FP32 are rare, and their code would be long.
template <bool HALF, int TILES>
struct Copies {
    enum { COUNT = HALF && TILES * STEP <= 80 ? TILES : 1 };
};

// What one lane has to do with one head.
struct Part {
    int row, column;         // of a left side's or a sum's fragment
    long long rows[2];       // where the queries of its two positions begin
    bool has_row[2];         // whether there are such positions
    long long text;          // where the head's keys and values begin
    long long query_size, text_size;
};

__device__ inline Part part_of(const CrossAttention& p, int head) {
    const int item = blockIdx.z, lane = threadIdx.x % LANES, first = blockIdx.x * POSITIONS + lane / 4;
    const long long head_start = ((long long)item * p.heads + head) * p.positions;
    Part part;
    part.row = lane / 4, part.column = lane % 4 * 2;
    for (int k = 0; k < 2; ++k) part.rows[k] = (head_start + first + 8 * k) * p.width, part.has_row[k] = first + 8 * k < p.positions;
    part.text = ((long long)(p.text_batch == 1 ? 0 : item) * p.heads + head) * p.tokens * p.width;
    part.query_size = (long long)p.batch * p.heads * p.positions * p.width;
    part.text_size = (long long)p.text_batch * p.heads * p.tokens * p.width;
    return part;
}

// Products of queries and keys, not scaled yet; of tokens that are not there 0.
template <bool HALF, int TILES>
__device__ inline void products_of(const CrossAttention& p, const Part& part, float (&scores)[TILES][4]) {
    enum { COPIES = Copies<HALF, TILES>::COUNT };
#pragma unroll COPIES
    for (int tile = 0; tile < TILES; ++tile)
        for (int k = 0; k < 4; ++k) scores[tile][k] = 0.0f;
    for (int first = 0; first < p.width; first += SUMMED_AT_ONCE) {  // a long row of additions loses digits
        float some[TILES][4];
#pragma unroll COPIES
        for (int tile = 0; tile < TILES; ++tile)
            for (int k = 0; k < 4; ++k) some[tile][k] = 0.0f;
#pragma unroll 2
        for (int channel = first; channel < min(first + SUMMED_AT_ONCE, p.width); channel += STEP) {
            const int c = channel + part.column;
            const bool has[2] = {c < p.width, c + 1 < p.width};
            Pair<HALF> query[2];
            for (int k = 0; k < 2; ++k)
                read_pair(query[k], p.query, part.rows[k] + c, part.rows[k] + c + 1, part.query_size, part.has_row[k] && has[0], part.has_row[k] && has[1]);
#pragma unroll COPIES
            for (int tile = 0; tile < TILES; ++tile) {
                const int token = tile * STEP + part.row;
                const long long at = part.text + (long long)c * p.tokens + token;
                Pair<HALF> keys;
                read_pair(keys, p.keys, at, at + p.tokens, part.text_size, token < p.tokens && has[0], token < p.tokens && has[1]);
                multiply(some[tile], query, keys);
            }
        }
#pragma unroll COPIES
        for (int tile = 0; tile < TILES; ++tile)
            for (int k = 0; k < 4; ++k) scores[tile][k] += some[tile][k];
    }
}

// Probabilities in the products' place, up to the factors that `inverse` gets: one over the sum of each of the two rows.
template <bool HALF, int TILES>
__device__ inline void soften(const CrossAttention& p, const Part& part, float (&scores)[TILES][4], float (&inverse)[2]) {
    enum { COPIES = Copies<HALF, TILES>::COUNT };
    const float sharpness = p.scale * LOG2_E;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float greatest = LOWEST, sum = 0.0f;
#pragma unroll COPIES
        for (int tile = 0; tile < TILES; ++tile)
            for (int k = 0; k < 2; ++k)
                if (tile * STEP + part.column + k < p.tokens) greatest = fmaxf(greatest, scores[tile][2 * half + k]);
        greatest = greatest_of_row(greatest);
#pragma unroll COPIES
        for (int tile = 0; tile < TILES; ++tile)
            for (int k = 0; k < 2; ++k) {
                float& score = scores[tile][2 * half + k];
                score = tile * STEP + part.column + k < p.tokens ? exp2f((score - greatest) * sharpness) : 0.0f;  // NaN reaches the whole row by its sum
                sum += score;
            }
        inverse[half] = 1.0f / sum_of_row(sum);
    }
}

template <bool HALF, int TILES>
__device__ inline void add_to_means(const CrossAttention& p, const Part& part, const float (&scores)[TILES][4], const float (&inverse)[2],
                                    float (&means)[POSITIONS * TILES * STEP]) {
    enum { COPIES = Copies<HALF, TILES>::COUNT };
#pragma unroll COPIES
    for (int tile = 0; tile < TILES; ++tile)
        for (int k = 0; k < 4; ++k) {
            const int token = tile * STEP + part.column + k % 2;
            if (token < p.tokens) means[inside((part.row + k / 2 * 8) * p.tokens + token, POSITIONS * TILES * STEP)] += scores[tile][k] * inverse[k / 2];
        }
}

template <bool HALF, int TILES>
__device__ inline void write_attended(const CrossAttention& p, const Part& part, const float (&scores)[TILES][4], const float (&inverse)[2]) {
    enum { COPIES = Copies<HALF, TILES>::COUNT };
    Probabilities<HALF> probabilities[TILES];
#pragma unroll COPIES
    for (int tile = 0; tile < TILES; ++tile) probabilities[tile].take(scores[tile]);
#pragma unroll 2
    for (int channel = 0; channel < p.width; channel += STEP) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const int c = channel + part.row;
#pragma unroll COPIES
        for (int tile = 0; tile < TILES; ++tile) {
            const int token = tile * STEP + part.column;
            const long long at = part.text + (long long)token * p.width + c;
            Pair<HALF> values;
            read_pair(values, p.values, at, at + p.width, part.text_size, token < p.tokens && c < p.width, token + 1 < p.tokens && c < p.width);
            probabilities[tile].multiply_into(sum, values);
        }
        for (int k = 0; k < 4; ++k) {
            const int out = channel + part.column + k % 2;
            const float value = sum[k] * inverse[k / 2] / Probabilities<HALF>::unit();
            if (part.has_row[k / 2] && out < p.width) store(p.attended, inside(part.rows[k / 2] + out, part.query_size), HALF, value);
        }
    }
}

template <bool HALF, int TILES>
__device__ inline void attend(const CrossAttention& p, float (&means)[POSITIONS * TILES * STEP]) {
    const int warp = threadIdx.x / LANES, first = blockIdx.x * POSITIONS;
    for (int i = threadIdx.x; i < POSITIONS * p.tokens; i += ATTENTION_THREADS) means[inside(i, POSITIONS * TILES * STEP)] = 0.0f;
    for (int round = 0; round < p.heads; round += HEADS_AT_ONCE) {
        const bool busy = round + warp < p.heads;  // the same for a whole warp
        const Part part = part_of(p, round + warp);
        float scores[TILES][4], inverse[2];
        if (busy) {
            products_of<HALF>(p, part, scores);
            soften<HALF>(p, part, scores, inverse);
        }
        for (int turn = 0; turn < HEADS_AT_ONCE; ++turn) {  // one head after the other: the same sums in every run
            __syncthreads();
            if (turn == warp && busy) add_to_means<HALF>(p, part, scores, inverse, means);
        }
        if (busy) write_attended<HALF>(p, part, scores, inverse);
    }
    __syncthreads();
    const long long map_size = (long long)p.batch * p.positions * p.tokens, start = ((long long)blockIdx.z * p.positions + first) * p.tokens;
    const int filled = min(POSITIONS, p.positions - first) * p.tokens;
    for (int i = threadIdx.x; i < filled; i += ATTENTION_THREADS)
        store(p.map, inside(start + i, map_size), HALF, means[inside(i, POSITIONS * TILES * STEP)] / (float)p.heads);
}

// Three kernels, because the registers of the longest text would leave room for few blocks.
// Of each: grid blocks of positions, 1, batch; ATTENTION_THREADS threads.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) fathom_cross_attention_40(const CrossAttention p) {
    __shared__ float means[POSITIONS * 40];
    attend<true, 40 / STEP>(p, means);
}

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) fathom_cross_attention_80(const CrossAttention p) {
    __shared__ float means[POSITIONS * 80];
    attend<true, 80 / STEP>(p, means);
}

// The longest, and any in FP32.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) fathom_cross_attention_128(const CrossAttention p) {
    __shared__ float means[POSITIONS * MOST_TOKENS];
    if (p.is_half) attend<true, MOST_TOKENS / STEP>(p, means);
    else attend<false, MOST_TOKENS / STEP>(p, means);
}
