// Cross-attention with its map: softmax(scale * q k) v for each head, and the mean of the probabilities over the heads, in one pass.
//
// The probabilities [heads, positions, tokens] are never written. A block holds POSITIONS positions and takes one head after the other;
// LANES threads share a position's softmax. Sums are FP32, each in four parts: a long row of additions loses digits, and waits for itself. Products
// of FP16 values are exact in FP32, so the scale comes after their sum. Up to MOST_TOKENS tokens and MOST_WIDTH values a head.
#include "team.cuh"

struct CrossAttention {
    unsigned long long query, keys, values, attended, map;  // [b, h, n, d], [b or 1, h, d, t], [b or 1, h, t, d], [b, h, n, d], [b, n, t]
    int batch, heads, positions, width, tokens, text_batch, is_half;
    float scale;
};

enum { ATTENTION_THREADS = 256, POSITIONS = 8, LANES = ATTENTION_THREADS / POSITIONS, MOST_TOKENS = 128, MOST_WIDTH = 256 };
#define LOWEST -3.402823466e38f  // a row of nothing but -Inf is NaN all the same

__device__ inline float item_of(unsigned long long tensor, long long index, long long size, int is_half) { return load(tensor, inside(index, size), is_half); }

__device__ inline void put(unsigned long long tensor, long long index, long long size, int is_half, float value) {
    if (is_half) {
        ((unsigned short*)tensor)[inside(index, size)] = half_bits(value);
    } else {
        ((float*)tensor)[inside(index, size)] = value;
    }
}

// Sum of a(i) * b(i).
template <typename A, typename B>
__device__ inline float product(int count, const A& a, const B& b) {
    float sum0 = 0.0f, sum1 = 0.0f, sum2 = 0.0f, sum3 = 0.0f;
    int i = 0;
    for (; i + 3 < count; i += 4) {
        sum0 = fmaf(a(i), b(i), sum0);
        sum1 = fmaf(a(i + 1), b(i + 1), sum1);
        sum2 = fmaf(a(i + 2), b(i + 2), sum2);
        sum3 = fmaf(a(i + 3), b(i + 3), sum3);
    }
    for (; i < count; ++i) sum0 = fmaf(a(i), b(i), sum0);
    return (sum0 + sum1) + (sum2 + sum3);
}

// Grid: blocks of positions, 1, batch; ATTENTION_THREADS threads.
extern "C" __global__ void fathom_cross_attention(const CrossAttention p) {
    const int item = blockIdx.z, first = blockIdx.x * POSITIONS, text = p.text_batch == 1 ? 0 : item;
    const int rows = min(POSITIONS, p.positions - first), tokens = p.tokens, width = p.width;
    const long long query_size = (long long)p.batch * p.heads * p.positions * width, text_size = (long long)p.text_batch * p.heads * tokens * width;
    const long long map_size = (long long)p.batch * p.positions * tokens;
    SHARED float query[POSITIONS * MOST_WIDTH], scores[POSITIONS * MOST_TOKENS], means[POSITIONS * MOST_TOKENS], lanes[ATTENTION_THREADS];
    PHASE(t, ATTENTION_THREADS)
    for (int i = t; i < rows * tokens; i += ATTENTION_THREADS) means[inside(i, POSITIONS * MOST_TOKENS)] = 0.0f;
    for (int head = 0; head < p.heads; ++head) {
        const long long query_start = (((long long)item * p.heads + head) * p.positions + first) * width;
        const long long text_start = ((long long)text * p.heads + head) * tokens * width;
        PHASE(t, ATTENTION_THREADS)
        for (int i = t; i < rows * width; i += ATTENTION_THREADS)
            query[inside(i, POSITIONS * MOST_WIDTH)] = item_of(p.query, query_start + i, query_size, p.is_half);
        MEET;
        PHASE(t, ATTENTION_THREADS)
        for (int i = t; i < rows * tokens; i += ATTENTION_THREADS) {
            const int row = i / tokens, token = i % tokens;
            const float sum = product(
                width, [&](int c) { return query[inside(row * width + c, POSITIONS * MOST_WIDTH)]; },
                [&](int c) { return item_of(p.keys, text_start + (long long)c * tokens + token, text_size, p.is_half); });
            scores[inside(i, POSITIONS * MOST_TOKENS)] = sum * p.scale;
        }
        MEET;
        PHASE(t, ATTENTION_THREADS) {
            const int row = t / LANES;
            float greatest = LOWEST;
            if (row < rows)
                for (int token = t % LANES; token < tokens; token += LANES) greatest = fmaxf(greatest, scores[inside(row * tokens + token, POSITIONS * MOST_TOKENS)]);
            lanes[t] = greatest;
        }
        MEET;
        Own<float, ATTENTION_THREADS> sums;
        PHASE(t, ATTENTION_THREADS) {
            const int row = t / LANES;
            float greatest = LOWEST, sum = 0.0f;
            for (int lane = 0; lane < LANES; ++lane) greatest = fmaxf(greatest, lanes[row * LANES + lane]);
            if (row < rows)
                for (int token = t % LANES; token < tokens; token += LANES) {
                    float& score = scores[inside(row * tokens + token, POSITIONS * MOST_TOKENS)];
                    score = expf(score - greatest);  // NaN stays NaN, and reaches the whole row by its sum
                    sum += score;
                }
            sums[t] = sum;
        }
        MEET;
        PHASE(t, ATTENTION_THREADS) lanes[t] = sums[t];
        MEET;
        PHASE(t, ATTENTION_THREADS)
        for (int i = t; i < rows * tokens; i += ATTENTION_THREADS) {
            const int row = i / tokens;
            float sum = 0.0f;
            for (int lane = 0; lane < LANES; ++lane) sum += lanes[row * LANES + lane];
            const float probability = scores[inside(i, POSITIONS * MOST_TOKENS)] / sum;
            scores[i] = probability;
            means[i] += probability;
        }
        MEET;
        PHASE(t, ATTENTION_THREADS)
        for (int i = t; i < rows * width; i += ATTENTION_THREADS) {
            const int row = i / width, c = i % width;
            const float sum = product(
                tokens, [&](int token) { return scores[inside(row * tokens + token, POSITIONS * MOST_TOKENS)]; },
                [&](int token) { return item_of(p.values, text_start + (long long)token * width + c, text_size, p.is_half); });
            put(p.attended, query_start + i, query_size, p.is_half, sum);
        }
        MEET;
    }
    PHASE(t, ATTENTION_THREADS)
    for (int i = t; i < rows * tokens; i += ATTENTION_THREADS)
        put(p.map, ((long long)item * p.positions + first) * tokens + i, map_size, p.is_half, means[inside(i, POSITIONS * MOST_TOKENS)] / (float)p.heads);
}
