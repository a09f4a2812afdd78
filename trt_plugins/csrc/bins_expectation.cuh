// Depth from adaptive bins: per pixel a log-binomial over 64 bins with a temperature of its own, and its expectation over bin centres
// that the last level's attractors pull. None of the maps [64, ...] of the full or of the middle size is ever written.
//
// Source: models/diffusion/metric_bins.py (FlatLogBinomial, Attract, Expectation). Centres lie on the coarse grid, attractors on the
// middle one, depth on the full one; both resizes are bilinear with aligned corners. A block makes 32 x 8 pixels: the pulled centres
// under it are worked out once, a few bins at a time, and shared. The grids may not shrink towards the full size.
#include "team.cuh"

struct BinsExpectation {
    unsigned long long shape, centers, attractors, depth;  // [batch, 4, H, W], [batch, 64, h, w], [batch, attractor_count, u, v], [batch, 1, H, W]
    int batch, height, width, middle_height, middle_width, coarse_height, coarse_width;
    int attractor_count, channels_last, is_half;
    float alpha, least_temperature, greatest_temperature;
};

enum { BIN_COUNT = 64, TILE_WIDTH = 32, TILE_HEIGHT = 8, TILE = TILE_WIDTH * TILE_HEIGHT, BINS_AT_ONCE = 4 };
enum { UNDER_TILE = (TILE_WIDTH + 1) * (TILE_HEIGHT + 1) };
#define PROBABILITY_FLOOR 1e-4f

// Stirling's log binomial coefficients of 63 over k, rounded from double precision.
__device__ const float COEFFICIENTS[BIN_COUNT] = {
    2.02612318e-06f, 5.13515615f, 8.8678875f, 12.060977f, 14.8976011f, 17.4646034f, 19.8130093f, 21.9764214f,
    23.9786301f, 25.837328f, 27.5661659f, 29.1759663f, 30.6755009f, 32.0719948f, 33.3714905f, 34.5790863f,
    35.699131f, 36.7353554f, 37.6909828f, 38.5688019f, 39.3712387f, 40.1003914f, 40.7580986f, 41.3459435f,
    41.8652916f, 42.317318f, 42.7030144f, 43.0232124f, 43.2785797f, 43.4696503f, 43.596817f, 43.6603355f,
    43.6603355f, 43.596817f, 43.4696503f, 43.2785797f, 43.0232124f, 42.7030144f, 42.317318f, 41.8652916f,
    41.3459435f, 40.7580986f, 40.1003914f, 39.3712387f, 38.5688019f, 37.6909828f, 36.7353554f, 35.699131f,
    34.5790863f, 33.3714905f, 32.0719948f, 30.6755009f, 29.1759663f, 27.5661659f, 25.837328f, 23.9786301f,
    21.9764214f, 19.8130093f, 17.4646034f, 14.8976011f, 12.060977f, 8.8678875f, 5.13515568f, 0.0f,
};

// Bilinear with aligned corners, its position worked out in whole numbers: no rounding before the weight's own.
__device__ inline Taps corner_taps(int index, int size, int wanted) {
    const long long steps = wanted > 1 ? wanted - 1 : 1, at = (long long)index * (size - 1);
    Taps found;
    found.low = (int)(at / steps);
    found.high = min(found.low + 1, size - 1);
    found.weight = (float)(at % steps) / (float)steps;
    return found;
}

__device__ inline float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }  // the second term keeps a NaN

// What the pixel's four numbers say: log odds of success, mode of the log-binomial, and one over the temperature.
struct PixelBins {
    float log_odds, sharpness;
    int mode;
};

__device__ inline float at_least_floor(float p) { return p < PROBABILITY_FLOOR ? PROBABILITY_FLOOR : p; }  // NaN stays NaN

__device__ inline PixelBins pixel_bins(const BinsExpectation& p, const Map& shape, int item, long long pixel) {
    float raw[4];
    for (int c = 0; c < 4; ++c) raw[c] = softplus(get(shape, item, c, pixel)) + PROBABILITY_FLOOR;
    const float success = raw[0] / (raw[0] + raw[1]);
    const float failure = success < 0.5f ? 1.0f - success : raw[1] / (raw[0] + raw[1]);  // never a difference of near equals
    const float tau = raw[2] / (raw[2] + raw[3]);
    PixelBins bins;
    bins.log_odds = logf(at_least_floor(success)) - logf(at_least_floor(failure));
    bins.sharpness = 1.0f / ((p.greatest_temperature - p.least_temperature) * tau + p.least_temperature);
    bins.mode = 0;
    float best = COEFFICIENTS[0];
    for (int k = 1; k < BIN_COUNT; ++k) {
        const float logit = k * bins.log_odds + COEFFICIENTS[k];
        if (logit > best) best = logit, bins.mode = k;
    }
    return bins;
}

// A bin's centre at one place of the middle grid: the coarse centres in between, pulled by every attractor there.
__device__ inline float pulled_center(const BinsExpectation& p, const Map& centers, const Map& attractors, int item, int bin, int y, int x) {
    const Taps row = corner_taps(y, p.coarse_height, p.middle_height), column = corner_taps(x, p.coarse_width, p.middle_width);
    const long long upper = (long long)row.low * p.coarse_width, lower = (long long)row.high * p.coarse_width;
    const float above = mix(get(centers, item, bin, upper + column.low), get(centers, item, bin, upper + column.high), column.weight);
    const float below = mix(get(centers, item, bin, lower + column.low), get(centers, item, bin, lower + column.high), column.weight);
    const float center = mix(above, below, row.weight);
    float shift = 0.0f;
    for (int j = 0; j < p.attractor_count; ++j) {
        const float distance = softplus(get(attractors, item, j, (long long)y * p.middle_width + x)) - center;
        shift += distance / (1.0f + p.alpha * distance * distance);
    }
    return center + shift / (float)p.attractor_count;
}

// Grid: tiles across, tiles down, batch; TILE threads.
extern "C" __global__ void fathom_bins_expectation(const BinsExpectation p) {
    const int item = blockIdx.z, first_x = blockIdx.x * TILE_WIDTH, first_y = blockIdx.y * TILE_HEIGHT;
    const Map shape = map_of(p.shape, p.batch, 4, (long long)p.height * p.width, p.channels_last, p.is_half);
    const Map centers = map_of(p.centers, p.batch, BIN_COUNT, (long long)p.coarse_height * p.coarse_width, p.channels_last, p.is_half);
    const Map attractors = map_of(p.attractors, p.batch, p.attractor_count, (long long)p.middle_height * p.middle_width, p.channels_last, p.is_half);
    const Map depth = map_of(p.depth, p.batch, 1, (long long)p.height * p.width, p.channels_last, p.is_half);
    const int top = corner_taps(first_y, p.middle_height, p.height).low, left = corner_taps(first_x, p.middle_width, p.width).low;
    const int rows = corner_taps(min(first_y + TILE_HEIGHT, p.height) - 1, p.middle_height, p.height).high - top + 1;
    const int columns = corner_taps(min(first_x + TILE_WIDTH, p.width) - 1, p.middle_width, p.width).high - left + 1;
    SHARED float pulled[BINS_AT_ONCE * UNDER_TILE];
    Own<PixelBins, TILE> bins;
    Own<float, TILE> total, sum;
    PHASE(t, TILE) {
        const int y = first_y + t / TILE_WIDTH, x = first_x + t % TILE_WIDTH;
        total[t] = sum[t] = 0.0f;
        if (y < p.height && x < p.width) bins[t] = pixel_bins(p, shape, item, (long long)y * p.width + x);
    }
    for (int first = 0; first < BIN_COUNT; first += BINS_AT_ONCE) {
        PHASE(t, TILE) {
            for (int i = t; i < BINS_AT_ONCE * rows * columns; i += TILE) {
                const int bin = i / (rows * columns), y = i / columns % rows, x = i % columns;
                pulled[inside(i, BINS_AT_ONCE * UNDER_TILE)] = pulled_center(p, centers, attractors, item, first + bin, top + y, left + x);
            }
        }
        MEET;
        PHASE(t, TILE) {
            const int y = first_y + t / TILE_WIDTH, x = first_x + t % TILE_WIDTH;
            if (y < p.height && x < p.width) {
                const Taps row = corner_taps(y, p.middle_height, p.height), column = corner_taps(x, p.middle_width, p.width);
                for (int k = 0; k < BINS_AT_ONCE; ++k) {
                    const int bin = first + k, base = k * rows * columns - left;
                    const int upper = base + (row.low - top) * columns, lower = base + (row.high - top) * columns;
                    const int last = BINS_AT_ONCE * UNDER_TILE;
                    const float above = mix(pulled[inside(upper + column.low, last)], pulled[inside(upper + column.high, last)], column.weight);
                    const float below = mix(pulled[inside(lower + column.low, last)], pulled[inside(lower + column.high, last)], column.weight);
                    const float logit = (bin - bins[t].mode) * bins[t].log_odds + (COEFFICIENTS[bin] - COEFFICIENTS[bins[t].mode]);
                    const float weight = expf(logit * bins[t].sharpness);
                    total[t] += weight;
                    sum[t] += weight * mix(above, below, row.weight);
                }
            }
        }
        MEET;
    }
    PHASE(t, TILE) {
        const int y = first_y + t / TILE_WIDTH, x = first_x + t % TILE_WIDTH;
        if (y < p.height && x < p.width) set(depth, item, 0, (long long)y * p.width + x, sum[t] / total[t]);
    }
}
