// Depth from adaptive bins: per pixel a log-binomial over 64 bins with a temperature of its own, and its expectation over bin centres
// that the last level's attractors pull. None of the maps [64, ...] of the full or of the middle size is ever written.
//
// Source: models/diffusion/metric_bins.py (FlatLogBinomial, Attract, Expectation). Centres lie on the coarse grid, attractors on the
// middle one, depth on the full one; both resizes are bilinear with aligned corners. A block makes 32 x 8 pixels: the pulled centres
// under it are worked out once and shared, of all bins where the middle grid is half as fine or coarser. The grids may not shrink towards the full size.
#include "team.cuh"

struct BinsExpectation {
    unsigned long long shape, centers, attractors, depth;  // [batch, 4, H, W], [batch, 64, h, w], [batch, attractor_count, u, v], [batch, 1, H, W]
    int batch, height, width, middle_height, middle_width, coarse_height, coarse_width;
    int attractor_count, channels_last, is_half;
    float alpha, least_temperature, greatest_temperature;
};

enum { BIN_COUNT = 64, TILE_WIDTH = 32, TILE_HEIGHT = 8, TILE = TILE_WIDTH * TILE_HEIGHT };
enum { COLUMNS = TILE_WIDTH + 1, ROWS = TILE_HEIGHT + 1, UNDER_TILE = COLUMNS * ROWS };  // places of the middle grid under a tile, at most
enum { FOUR = 4, PULLED = 18 * 6 * (BIN_COUNT + FOUR) };  // values shared: all bins of 18 x 6 places, those under a tile at half the full size
#define PROBABILITY_FLOOR 1e-4f

// Stirling's log binomial coefficients of 63 over k, rounded from double precision.
__constant__ float COEFFICIENTS[BIN_COUNT] = {
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
    const unsigned long long at = (unsigned long long)index * (size - 1);
    const unsigned int steps = wanted > 1 ? wanted - 1 : 1;
    Taps found;
    found.low = at >> 32 ? (int)(at / steps) : (int)((unsigned int)at / steps);  // a division of 64 bits takes ten times as long
    found.high = min(found.low + 1, size - 1);
    found.weight = (float)(unsigned int)(at - (unsigned long long)found.low * steps) / (float)steps;
    return found;
}

__device__ inline float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }  // the second term keeps a NaN

// What the pixel's four numbers say: log odds of success, mode of the log-binomial, and one over the temperature (times log2 e: weights are powers of 2).
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
    bins.sharpness = LOG2_E / ((p.greatest_temperature - p.least_temperature) * tau + p.least_temperature);
    bins.mode = 0;
    for (int step = BIN_COUNT / 2; step > 0; step /= 2) {  // the coefficients are concave: logits rise up to the mode
        const int next = bins.mode + step;
        if (bins.log_odds + (COEFFICIENTS[next] - COEFFICIENTS[next - 1]) > 0.0f) bins.mode = next;
    }
    return bins;
}

// Four values around a place of the coarse grid, for one bin after the other.
struct Corners {
    long long at[4];  // of bin 0: upper left, upper right, lower left, lower right
    float down, right;
};

__device__ inline Corners corners_of(const Map& centers, int item, const Taps& row, const Taps& column, int width) {
    const long long upper = (long long)row.low * width, lower = (long long)row.high * width;
    Corners found;
    found.at[0] = place(centers, item, 0, upper + column.low), found.at[1] = place(centers, item, 0, upper + column.high);
    found.at[2] = place(centers, item, 0, lower + column.low), found.at[3] = place(centers, item, 0, lower + column.high);
    found.down = row.weight, found.right = column.weight;
    return found;
}

__device__ inline float center_of(const Map& centers, const Corners& corners, int bin) {
    const long long further = bin * (centers.pitch ? 1 : centers.pixels);
    float value[4];
    for (int k = 0; k < 4; ++k) value[k] = load(centers.address, inside(corners.at[k] + further, centers.size), centers.is_half);
    return mix(mix(value[0], value[1], corners.right), mix(value[2], value[3], corners.right), corners.down);
}

// What a block shares.
struct Tile {
    float4 pulled[PULLED / FOUR];  // [places, bins at once + FOUR]: the bins of a place side by side, four to a word; places start in different banks
    float attractor[UNDER_TILE];
    Taps rows[ROWS], columns[COLUMNS];  // from the middle grid to the coarse one
};

// The places of the middle grid under a tile.
struct Places {
    int top, left, columns, count;
    int at_once, pitch;  // bins that fit into what is shared, and words from one place to the next
};

__device__ inline Places places_of(const BinsExpectation& p, int first_y, int first_x) {
    Places found;
    found.top = corner_taps(first_y, p.middle_height, p.height).low, found.left = corner_taps(first_x, p.middle_width, p.width).low;
    const int bottom = corner_taps(min(first_y + TILE_HEIGHT, p.height) - 1, p.middle_height, p.height).high;
    const int right = corner_taps(min(first_x + TILE_WIDTH, p.width) - 1, p.middle_width, p.width).high;
    found.columns = right - found.left + 1, found.count = (bottom - found.top + 1) * found.columns;
    found.at_once = max(min((int)BIN_COUNT, (PULLED / found.count - FOUR) / FOUR * FOUR), (int)FOUR), found.pitch = found.at_once / FOUR + 1;
    return found;
}

// Centres of bins `first` to `last` at every place: coarse ones in between, pulled by every attractor there. The team has met when this returns.
__device__ inline void pull_centers(const BinsExpectation& p, const Map& centers, const Map& attractors, const Places& places, int first, int last,
                                    Tile& tile) {
    const int item = blockIdx.z, side_by_side = max(TILE / places.count, 1);  // threads that share the bins of a place
    for (int j = 0; j < p.attractor_count; ++j) {
        __syncthreads();  // what was shared is no longer read
        for (int at = threadIdx.x; at < places.count; at += TILE) {
            const long long pixel = (long long)(places.top + at / places.columns) * p.middle_width + places.left + at % places.columns;
            tile.attractor[inside(at, UNDER_TILE)] = softplus(get(attractors, item, j, pixel));
        }
        __syncthreads();
        for (int i = threadIdx.x; i < places.count * side_by_side; i += TILE) {
            const int at = i % places.count;
            const float attractor = tile.attractor[inside(at, UNDER_TILE)];
            const Taps row = tile.rows[inside(at / places.columns, ROWS)], column = tile.columns[inside(at % places.columns, COLUMNS)];
            const Corners around = corners_of(centers, item, row, column, p.coarse_width);
            for (int bin = first + i / places.count * FOUR; bin < last; bin += side_by_side * FOUR) {
                float pulled[FOUR];
#pragma unroll
                for (int k = 0; k < FOUR; ++k) {
                    const float center = center_of(centers, around, bin + k), distance = attractor - center;
                    pulled[k] = (j == 0 ? center : 0.0f) + quick_quotient(distance, (1.0f + p.alpha * distance * distance) * (float)p.attractor_count);
                }
                float4& kept = tile.pulled[inside(at * places.pitch + (bin - first) / FOUR, PULLED / FOUR)];
                if (j > 0) pulled[0] += kept.x, pulled[1] += kept.y, pulled[2] += kept.z, pulled[3] += kept.w;
                kept = make_float4(pulled[0], pulled[1], pulled[2], pulled[3]);
            }
        }
    }
    __syncthreads();
}

template <bool HALF>
__device__ inline void expect(const BinsExpectation& p, Tile& tile) {
    const int item = blockIdx.z, first_x = blockIdx.x * TILE_WIDTH, first_y = blockIdx.y * TILE_HEIGHT, t = threadIdx.x;
    const Map shape = map_of(p.shape, p.batch, 4, (long long)p.height * p.width, p.channels_last, HALF);
    const Map centers = map_of(p.centers, p.batch, BIN_COUNT, (long long)p.coarse_height * p.coarse_width, p.channels_last, HALF);
    const Map attractors = map_of(p.attractors, p.batch, p.attractor_count, (long long)p.middle_height * p.middle_width, p.channels_last, HALF);
    const Map depth = map_of(p.depth, p.batch, 1, (long long)p.height * p.width, p.channels_last, HALF);
    const Places places = places_of(p, first_y, first_x);
    const int place_row = t, place_column = t - LANES;  // which of them this thread works out; two warps side by side
    if (place_row < places.count / places.columns) tile.rows[inside(place_row, ROWS)] = corner_taps(places.top + place_row, p.coarse_height, p.middle_height);
    if (place_column >= 0 && place_column < places.columns)
        tile.columns[inside(place_column, COLUMNS)] = corner_taps(places.left + place_column, p.coarse_width, p.middle_width);

    const int x = first_x + t % TILE_WIDTH, y = first_y + t / TILE_WIDTH;
    const bool has_pixel = y < p.height && x < p.width;
    PixelBins bins = {0.0f, 0.0f, 0};
    Taps row = {places.top, places.top, 0.0f}, column = {places.left, places.left, 0.0f};
    if (has_pixel) {
        bins = pixel_bins(p, shape, item, (long long)y * p.width + x);
        row = corner_taps(y, p.middle_height, p.height), column = corner_taps(x, p.middle_width, p.width);
    }
    const float mode = (float)bins.mode, greatest = COEFFICIENTS[bins.mode];
    const int upper = (row.low - places.top) * places.columns - places.left, lower = (row.high - places.top) * places.columns - places.left;
    const int corners[4] = {upper + column.low, upper + column.high, lower + column.low, lower + column.high};
    float total = 0.0f, sum = 0.0f;
    for (int first = 0; first < BIN_COUNT; first += places.at_once) {
        const int last = min(first + places.at_once, BIN_COUNT);
        pull_centers(p, centers, attractors, places, first, last, tile);
        if (!has_pixel) continue;
        for (int bin = first; bin < last; bin += FOUR) {
            float value[4][FOUR];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const float4 four = tile.pulled[inside(corners[k] * places.pitch + (bin - first) / FOUR, PULLED / FOUR)];
                value[k][0] = four.x, value[k][1] = four.y, value[k][2] = four.z, value[k][3] = four.w;
            }
#pragma unroll
            for (int k = 0; k < FOUR; ++k) {
                const float logit = ((float)(bin + k) - mode) * bins.log_odds + (COEFFICIENTS[bin + k] - greatest);
                const float weight = exp2f(logit * bins.sharpness);
                total += weight;
                sum += weight * mix(mix(value[0][k], value[1][k], column.weight), mix(value[2][k], value[3][k], column.weight), row.weight);
            }
        }
    }
    if (has_pixel) set(depth, item, 0, (long long)y * p.width + x, sum / total);
}

// Grid: tiles across, tiles down, batch; TILE threads.
extern "C" __global__ void __launch_bounds__(TILE) fathom_bins_expectation(const BinsExpectation p) {
    __shared__ Tile tile;
    if (p.is_half) expect<true>(p, tile);
    else expect<false>(p, tile);
}
